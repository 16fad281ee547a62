"""What workers and instances tell each other of their scores: each its own sums, which whoever wants to know adds up.

A worker tells of an upstream all that it has seen itself, as of a moment, under a name of its own life (`origin`) and a rising
number. Of two facts of the same origin the later holds, so it does not matter in which order and how often they come; sums of a
worker that is gone fade away by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from pointsman.custom_router.estimates import Decayed

__all__ = ["ScoreFact"]

MAX_TEXT = 1024
MAX_SUMS = 1_000
MAX_NAME = 16
MAX_VALUE = 1e12
MAX_SEQUENCE = 2**53
FADED = 1e-3
"""Sums that are all smaller mean nothing any more."""
LIVES = 60.0
"""Half-lives after which any sum has faded."""


@dataclass(frozen=True, slots=True)
class ScoreFact:
    """What one worker saw of one upstream.

    Attributes:
        upstream: `upstream.upstream_of`.
        origin: the worker's life.
        sequence: the higher is the later.
        at: monotonic second, of this process, at which the sums are as they stand here.
        last: monotonic second of the last attempt, or None.
        traffic, feedback: sums (`scores`).
        half_lives: of the two, in seconds.
    """

    upstream: str
    origin: str
    sequence: int
    at: float
    last: float | None
    traffic: Mapping[str, float]
    feedback: Mapping[str, float]
    half_lives: tuple[float, float]

    @property
    def key(self) -> str:
        """Whose, of what."""
        return f"{self.origin} {self.upstream}"

    @property
    def lasting(self) -> bool:
        """Scores come again by themselves."""
        return False

    def over(self, known: ScoreFact) -> ScoreFact | None:
        """Itself, where it is later."""
        return self if self.sequence > known.sequence else None

    def ended(self, now: float) -> bool:
        """Whether all of it has faded."""
        parts = zip((self.traffic, self.feedback), self.half_lives, strict=True)
        return all(
            max(map(abs, sums.values()), default=0.0) * 2.0 ** -min(LIVES, max(0.0, now - self.at) / half_life) < FADED
            for sums, half_life in parts
        )

    def to_wire(self, now: float) -> dict[str, Any]:
        """As JSON; ages are seconds."""
        return {
            "upstream": self.upstream,
            "origin": self.origin,
            "sequence": self.sequence,
            "age": round(max(0.0, now - self.at), 3),
            "idle": None if self.last is None else round(max(0.0, now - self.last), 3),
            "traffic": _rounded(self.traffic),
            "feedback": _rounded(self.feedback),
            "half_lives": list(self.half_lives),
        }

    @staticmethod
    def from_wire(said: Mapping[str, Any], at: float) -> ScoreFact:
        """What `to_wire` made, true at the monotonic second `at`.

        Raises:
            ValueError: it is no fact.
        """
        upstream, origin, sequence = said.get("upstream"), said.get("origin"), said.get("sequence")
        age, idle, lives = said.get("age"), said.get("idle"), said.get("half_lives")
        if (
            not (isinstance(upstream, str) and 0 < len(upstream) <= MAX_TEXT)
            or not (isinstance(origin, str) and 0 < len(origin) <= MAX_TEXT and " " not in origin)
            or not (type(sequence) is int and 0 <= sequence <= MAX_SEQUENCE)
            or not _is_number(age)
            or not (idle is None or _is_number(idle))
            or not (isinstance(lives, list) and len(lives) == 2 and all(_is_number(one) and one > 0 for one in lives))
        ):
            raise ValueError("not a fact of scores")
        last = None if idle is None else at - max(0.0, float(idle))
        sums = (_sums(said.get("traffic")), _sums(said.get("feedback")))
        return ScoreFact(upstream, origin, sequence, at - max(0.0, float(age)), last, *sums, (lives[0], lives[1]))

    def parts(self) -> tuple[Decayed, Decayed]:
        """Its sums, by this process's clock."""
        return Decayed(self.half_lives[0], self.at, self.traffic), Decayed(self.half_lives[1], self.at, self.feedback)


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and isinstance(value, int | float) and abs(value) <= MAX_VALUE  # NaN is not


def _sums(said: object) -> dict[str, float]:
    if not isinstance(said, Mapping) or len(said) > MAX_SUMS:
        raise ValueError("not sums of scores")
    if not all(isinstance(name, str) and len(name) <= MAX_NAME and _is_number(value) for name, value in said.items()):
        raise ValueError("not sums of scores")
    return {name: float(value) for name, value in said.items()}


def _rounded(sums: Mapping[str, float]) -> dict[str, float]:
    return {name: kept for name, value in sums.items() if (kept := round(value, 4))}
