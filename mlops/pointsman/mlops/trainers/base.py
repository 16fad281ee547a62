"""What a trainer is, and what all of them share: settings, an order of rows that is nobody's choice, folds by whole groups.

A trainer learns from a score for each prompt and model, never from the label of "the best" one: equal models stay equal. It
must not notice in which order rows or models stood in the file. `fit_strategy` sees to the rows: whatever a trainer draws by
chance, it draws for rows in the order of their content. Columns are sorted by `read_dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pointsman.errors import BundleError
from pointsman.mlops.data import Dataset
from pointsman.strategies.base import Matrix, Personal, Strategy

__all__ = ["FOLDS", "Progress", "Settings", "Trainer", "fit_strategy", "folds", "in_order", "predict", "silent"]

FOLDS = 5
Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress that nobody wants to see."""


class Settings(BaseModel):
    """Base of trainers' settings (`--set key=value`). None where a trainer chooses itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)
_S_contra = TypeVar("_S_contra", bound=Settings, contravariant=True)


class Fit(Protocol[_S_contra]):
    """Fits a strategy; the same arguments give the same bytes."""

    def __call__(self, vectors: Matrix, data: Dataset, *, seed: int, settings: _S_contra, groups: NDArray[np.intp]) -> Strategy:
        """Args:
        vectors: float32 (n, d), from the encoder, a row for each of `data`.
        data: scores in [0, 1], known or not, and perhaps costs and users.
        seed: of every random choice.
        settings: complete where `Choose` has filled them in.
        groups: (n,) groups of near-duplicates; folds and validation sets must not tear one apart (see `folds`).
        """


class Choose(Protocol[S]):
    """Fills in what settings leave open, by cross-validation on these rows. What it chose holds for the refit as well."""

    def __call__(
        self, vectors: Matrix, data: Dataset, *, seed: int, settings: S, groups: NDArray[np.intp], progress: Progress
    ) -> S:
        """See `Fit`."""


@dataclass(frozen=True, slots=True)
class Trainer(Generic[S]):
    """How one kind is trained.

    Attributes:
        kind: of the strategy.
        settings: what may be set.
        fit: see `Fit`.
        choose: see `Choose`; None if nothing is to be chosen.
        encoder: default encoder; `none` for a strategy that looks at no text.
        max_rows: more are thinned out by chance before anything else.
    """

    kind: str
    settings: type[S]
    fit: Fit[S]
    choose: Choose[S] | None = None
    encoder: str = "tfidf"
    max_rows: int = 20_000

    def parse(self, values: Mapping[str, Any]) -> S:
        """Settings from values.

        Raises:
            BundleError: E4320, with the key that is wrong.
        """
        try:
            return self.settings.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise BundleError(
                f"setting {key!r} of {self.kind}: {first['msg']}",
                code="E4320",
                where=f"settings {key}",
                mend=f"settings of {self.kind}: {', '.join(sorted(self.settings.model_fields)) or 'none'}",
            ) from error


def in_order(data: Dataset) -> NDArray[np.intp]:
    """The rows in the order of their content, so that their order in a file decides nothing."""
    users = data.users or (None,) * len(data)
    costs = data.costs if data.costs is not None else np.empty((len(data), 0))
    content = zip(data.queries, users, data.tasks, data.scores, data.known, costs, strict=True)
    keys = [
        (query, user or "", task, scores.tobytes(), known.tobytes(), cost.tobytes(), row)
        for row, (query, user, task, scores, known, cost) in enumerate(content)
    ]
    return np.array([key[-1] for key in sorted(keys)], np.intp)


def _renumbered(groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """The same groups, numbered in the order in which they first occur."""
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index]


def fit_strategy(
    trainer: Trainer[Any],
    vectors: Matrix,
    data: Dataset,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    groups: NDArray[np.intp] | None = None,
    progress: Progress = silent,
) -> tuple[Strategy, dict[str, Any]]:
    """Fit a strategy, whatever the order of the rows.

    Args:
        trainer: of `TRAINERS`.
        vectors: float32 (n, d).
        data: n rows.
        seed: of every random choice.
        settings: of the trainer; what is left out is chosen.
        groups: of near-duplicates; by default each row is a group of its own.
        progress: told what was chosen.

    Returns:
        The strategy, and the complete settings that it was fitted with.

    Raises:
        BundleError: E4320.
    """
    order = in_order(data)
    vectors, data = np.ascontiguousarray(vectors[order], np.float32), data.take(order)
    groups = np.arange(len(data)) if groups is None else _renumbered(groups[order])
    chosen = trainer.parse(settings or {})
    if trainer.choose is not None:
        chosen = trainer.choose(vectors, data, seed=seed, settings=chosen, groups=groups, progress=progress)
    strategy = trainer.fit(vectors, data, seed=seed, settings=chosen, groups=groups)
    return strategy, chosen.model_dump(mode="json")


def folds(groups: NDArray[np.intp], seed: int, count: int = FOLDS) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to learn from and rows to check on, `count` times, by whole groups; fewer where a fold would be empty."""
    names, index = np.unique(groups, return_inverse=True)
    fold_of = np.random.default_rng(seed + 1).integers(count, size=len(names))[index]
    for fold in range(count):
        learn, check = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        if len(learn) and len(check):
            yield learn, check


def predict(strategy: Strategy, vectors: Matrix, data: Dataset) -> Matrix:
    """Scores for the rows of `data`, by their users where the strategy knows users: float32 (n, m), columns as `data.models`.

    A strategy of two models (`hybrid`) may be trained on data of more; those that it does not know are below all others.
    """
    if data.users is not None and isinstance(strategy, Personal):
        scores = strategy.score_for(vectors, data.users)
    else:
        scores = strategy.score(vectors)
    if strategy.models == data.models:
        return scores
    least = float(scores.min()) - 1.0 if scores.size else 0.0
    result = np.full((len(scores), len(data.models)), least, np.float32)
    result[:, [data.models.index(model) for model in strategy.models]] = scores
    return result
