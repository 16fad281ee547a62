"""`ensemble`: a weighted mean of several strategies.

Each member sees the whole vector, or a slice of it where the encoder joins several (`concat`). `direct` averages the scores as
they are, which only members whose scores are expected qualities allow. `standard` first takes from each member's scores the
mean over the models and divides by the standard deviation, prompt by prompt, so that votes, ratings and qualities can be
averaged; of the result only the order means something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_params, finite
from pointsman.strategies.base import Arrays, Matrix, Params, Personal, Scale, Strategy

__all__ = ["Combine", "EnsembleStrategy", "Member"]

Combine = Literal["direct", "standard"]
MAX_MEMBERS = 16


class MemberParams(ParamsModel):
    """One member. `start` and `stop`: its slice of the vector."""

    kind: Annotated[str, Field(max_length=32)]
    params: dict[str, Any]
    start: Annotated[int, Field(ge=0, le=65_536)]
    stop: Annotated[int, Field(ge=1, le=65_536)]
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class EnsembleParams(ParamsModel):
    members: Annotated[list[MemberParams], Field(min_length=1, max_length=MAX_MEMBERS)]
    combine: Combine


@dataclass(frozen=True, slots=True)
class Member:
    """A strategy, the slice of the vector that it sees, and its weight in [0, 1]."""

    strategy: Strategy
    start: int
    stop: int
    weight: float


class EnsembleStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates; each member has the same.
        members: at least one; their weights sum to more than 0.
        combine: see the module.
    """

    kind: ClassVar[str] = "ensemble"

    def __init__(self, models: tuple[str, ...], members: Sequence[Member], combine: Combine) -> None:
        self._models, self._members, self._combine = models, tuple(members), combine
        # Numbers that no member and no slice can tell are not computed.
        total = sum(member.weight for member in members)
        self._active = tuple((member, np.float32(member.weight / total)) for member in members if member.weight > 0)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return max(member.stop for member in self._members)

    @property
    def scale(self) -> Scale:
        """By `combine`."""
        return "quality" if self._combine == "direct" else "rank"

    @property
    def members(self) -> tuple[Member, ...]:
        """What it is made of."""
        return self._members

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        return self.score_for(vectors, None)

    def score_for(self, vectors: Matrix, users: Sequence[str | None] | None) -> Matrix:
        """See `Personal.score_for`; members that know users are told them."""
        total: Matrix = np.zeros((len(vectors), len(self._models)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for member, weight in self._active:
                total += weight * self._told(_member_scores(member, vectors, users))
        return np.clip(total, 0.0, 1.0) if self._combine == "direct" else finite(total)

    def _told(self, scores: Matrix) -> Matrix:
        if self._combine == "direct":
            return scores
        centred = scores - scores.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True))
        result: Matrix = centred / np.where(deviation > 0, deviation, 1)
        return result

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {
            "members": [
                {
                    "kind": member.strategy.kind,
                    "params": member.strategy.params(),
                    "start": member.start,
                    "stop": member.stop,
                    "weight": member.weight,
                }
                for member in self._members
            ],
            "combine": self._combine,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`: those of member i are called `i.<name>`."""
        return {
            f"{number}.{name}": array
            for number, member in enumerate(self._members)
            for name, array in member.strategy.arrays().items()
        }

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        from pointsman.strategies.kinds import STRATEGIES  # which imports this module

        checked = check_params(EnsembleParams, params, "strategy")
        parts: list[dict[str, NDArray[Any]]] = [{} for _ in checked.members]
        known = {str(number): number for number in range(len(parts))}
        for name, array in arrays.items():
            number, _, rest = name.partition(".")
            if number not in known or not rest:
                raise BundleError(f"array {name!r} belongs to no member", code="E4307", where=f"strategy {name}")
            parts[known[number]][rest] = array
        members = []
        for place, (member, own) in enumerate(zip(checked.members, parts, strict=True)):
            where = f"manifest.json strategy members.{place}"
            kind = STRATEGIES.get(member.kind)
            if kind is None or member.kind == cls.kind:
                raise BundleError(f"{member.kind!r} cannot be a member", code="E4306", where=where)
            strategy = kind.from_parts(models, member.params, own)
            width = member.stop - member.start
            if width < 1 or strategy.dimensions not in (0, width):
                raise BundleError(
                    f"the member wants {strategy.dimensions} dimensions, its slice has {width}", code="E4307", where=where
                )
            if checked.combine == "direct" and strategy.scale != "quality":
                raise BundleError(
                    f"the scores of {member.kind!r} only rank; `direct` cannot average them", code="E4306", where=where
                )
            members.append(Member(strategy, member.start, member.stop, member.weight))
        if not sum(member.weight for member in members) > 0:
            raise BundleError("all weights are zero", code="E4306", where="manifest.json strategy members")
        return cls(models, members, checked.combine)


def _member_scores(member: Member, vectors: Matrix, users: Sequence[str | None] | None) -> Matrix:
    part = vectors if member.stop - member.start == vectors.shape[1] else vectors[:, member.start : member.stop]
    if users is not None and isinstance(member.strategy, Personal):
        return member.strategy.score_for(part, users)
    return member.strategy.score(part)
