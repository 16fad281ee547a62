"""Trains `ensemble`: several strategies, and how much each is to be believed.

`direct`: the weights are those with the least squared error of the weighted mean, none negative, their sum 1, on predictions
for rows that the members were fitted without (stacking: Wolpert, 1992; Breiman, 1996). `standard`: equal weights, because what
is averaged there has no units in which an error could be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pointsman.errors import BundleError
from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.base import Progress, Settings, Trainer, folds, predict, silent
from pointsman.strategies.base import Matrix, Strategy
from pointsman.strategies.ensemble import Combine, EnsembleStrategy, Member

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TRAINER", "EnsembleSettings", "simplex_weights"]

STEPS = 2000


class MemberSettings(Settings):
    """A member: its kind, its slice of the vector (by default all of it), its trainer's settings, its weight once known."""

    kind: str
    start: Annotated[int, Field(ge=0)] = 0
    stop: Annotated[int, Field(ge=1)] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    weight: Annotated[float, Field(ge=0, le=1)] | None = None


class EnsembleSettings(Settings):
    """`members`: kinds, or objects as `MemberSettings` says. `combine`: `direct` or `standard`."""

    members: Annotated[tuple[MemberSettings, ...], Field(min_length=1, max_length=8)] = (
        MemberSettings(kind="knn"),
        MemberSettings(kind="linear"),
        MemberSettings(kind="svm"),
    )
    combine: Combine = "direct"

    @field_validator("members", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(",")
        return [{"kind": each} if isinstance(each, str) else each for each in value] if isinstance(value, list) else value


def _trainers() -> Mapping[str, Trainer[Any]]:
    from pointsman.mlops.trainers import TRAINERS  # which imports this module

    return TRAINERS


def _part(member: MemberSettings, vectors: Matrix) -> Matrix:
    stop = vectors.shape[1] if member.stop is None else member.stop
    if stop > vectors.shape[1] or member.start >= stop:
        raise BundleError(
            f"the slice {member.start}:{stop} of the member {member.kind!r} lies outside of {vectors.shape[1]} dimensions",
            code="E4320",
            where="settings members",
        )
    return np.ascontiguousarray(vectors[:, member.start : stop])


def _fit(member: MemberSettings, part: Matrix, data: Dataset, seed: int, groups: NDArray[np.intp]) -> Strategy:
    trainer = _trainers()[member.kind]
    return trainer.fit(part, data, seed=seed, settings=trainer.parse(member.settings), groups=groups)


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: EnsembleSettings, groups: NDArray[np.intp]) -> EnsembleStrategy:
    """See `Fit`. Without weights all count the same; a member that counts nothing is left out where the vector allows it."""
    members = []
    for member in settings.members:
        stop = vectors.shape[1] if member.stop is None else member.stop
        weight = 1 / len(settings.members) if member.weight is None else member.weight
        members.append(Member(_fit(member, _part(member, vectors), data, seed, groups), member.start, stop, weight))
    counting = [member for member in members if member.weight > 0]
    whole = any(member.stop == vectors.shape[1] for member in counting)
    return EnsembleStrategy(data.models, counting if whole else members, settings.combine)


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: EnsembleSettings, groups: NDArray[np.intp], progress: Progress
) -> EnsembleSettings:
    """See `Choose`: each member's own settings, then the weights."""
    trainers = _trainers()
    members = []
    for member in settings.members:
        trainer = trainers.get(member.kind)
        if trainer is None or member.kind == TRAINER.kind:
            raise BundleError(f"{member.kind!r} cannot be a member of an ensemble", code="E4320", where="settings members")
        chosen = trainer.parse(member.settings)
        if trainer.choose is not None:
            part = _part(member, vectors)
            chosen = trainer.choose(part, data, seed=seed, settings=chosen, groups=groups, progress=silent)
        members.append(member.model_copy(update={"settings": chosen.model_dump(mode="json")}))
    if settings.combine == "direct" and any(member.weight is None for member in members):
        weights = _stack(vectors, data, members, seed, groups)
        progress("weights: " + ", ".join(f"{m.kind} {weight:.2f}" for m, weight in zip(members, weights, strict=True)))
        members = [m.model_copy(update={"weight": weight}) for m, weight in zip(members, weights, strict=True)]
    return settings.model_copy(update={"members": tuple(members)})


def _stack(
    vectors: Matrix, data: Dataset, members: Sequence[MemberSettings], seed: int, groups: NDArray[np.intp]
) -> list[float]:
    """Weights of the members by their predictions for rows of other folds."""
    seen: list[NDArray[np.float64]] = []
    truth: list[NDArray[np.float64]] = []
    for learn, check in folds(groups, seed):
        judge, told = data.take(check), []
        for member in members:
            part = _part(member, vectors)
            strategy = _fit(member, part[learn], data.take(learn), seed, groups[learn])
            if strategy.scale != "quality":
                raise BundleError(
                    f"the scores of {member.kind!r} only rank; combine them with combine=standard",
                    code="E4320",
                    where="settings combine",
                )
            told.append(predict(strategy, part[check], judge)[judge.known])
        seen.append(np.stack(told).astype(np.float64))
        truth.append(judge.scores[judge.known].astype(np.float64))
    if not seen:
        return [1 / len(members)] * len(members)
    return [round(float(weight), 6) for weight in simplex_weights(np.concatenate(seen, axis=1), np.concatenate(truth))]


def simplex_weights(predictions: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights w >= 0, sum 1, with the least squared error of w @ predictions.

    Args:
        predictions: (k, n).
        truth: (n,).

    By projected gradient steps (projection: Duchi et al., 2008).
    """
    count = len(predictions)
    errors = predictions - truth
    quadratic = errors @ errors.T / max(errors.shape[1], 1)
    weights = np.full(count, 1 / count)
    rate = 1 / max(float(np.linalg.eigvalsh(quadratic)[-1]), 1e-12)
    for _ in range(STEPS):
        moved = weights - rate * (quadratic @ weights)
        ordered = np.sort(moved)[::-1]
        excess = (np.cumsum(ordered) - 1) / np.arange(1, count + 1)
        weights = np.maximum(moved - excess[np.flatnonzero(ordered > excess)[-1]], 0)
    return weights


TRAINER = Trainer("ensemble", EnsembleSettings, fit, choose)
