"""What workers and instances tell each other of their breakers, and which of two facts holds.

Facts have an order, and the higher holds, so it does not matter in which sequence, how often and over whom they come;
the supervisor's shelf (`process.facts`) needs no more than it. Each worker decides for itself what it makes of one
(`Breaker.adopt`). Clocks of two machines are not comparable, and wall clocks jump; on the wire stand seconds from now. Who
keeps facts for others keeps them as `Fact`, by its own clock, and sends them on by `to_wire`: then the ways' delay is all that
is added to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

__all__ = ["Cause", "Fact", "FactState"]

Cause: TypeAlias = Literal["failures", "failure_rate", "rate_limit", "probe", "manual", "stalled"]
"""Failures in a row, their share, answers 429, a probe that failed, an administrator, attempts that wait and wait."""

FactState: TypeAlias = Literal["closed", "open", "held_closed", "held_open"]
RANK: Mapping[str, int] = {state: rank for rank, state in enumerate(get_args(FactState))}
MAX_COUNT = 2**53
MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class Fact:
    """One upstream, as somebody knows it.

    Attributes:
        upstream: `upstream.upstream_of`.
        state: closed, open, or held so by an administrator.
        since, until: monotonic seconds of this process; infinity: until released.
        generation, orders, rests: see `Breaker` and its states.
        cause: why it is open.
        reason: the administrator's.
        seconds: for how long the administrator said; 0 for other facts.
        actor: who the administrator is.
    """

    upstream: str
    state: FactState
    since: float
    until: float
    generation: int
    orders: int = 0
    rests: int = 0
    cause: Cause | None = None
    reason: str = ""
    seconds: float = 0.0
    actor: str = ""

    @property
    def order(self) -> tuple[int, int, int, float, str]:
        """The higher is the newer; of two that are equally new, the more careful one. Nothing that the way would change."""
        return self.orders, self.generation, RANK[self.state], self.seconds, self.reason

    @property
    def key(self) -> str:
        """The upstream."""
        return self.upstream

    @property
    def lasting(self) -> bool:
        """An administrator's word outlives what the attempts said."""
        return self.state in ("held_open", "held_closed")

    def over(self, known: Fact) -> Fact | None:
        """Itself, where it is newer. Of the same fact, heard twice, the first holds: the second was longer on its way."""
        return self if self.order > known.order else None

    def ended(self, now: float) -> bool:
        """Never: one that forgot how far its upstream's generation had come would take an old fact for a new one."""
        return False

    def to_wire(self, now: float) -> dict[str, Any]:
        """As JSON; `age` and `left` are seconds from now, None: for ever."""
        age = now - self.since
        return {
            "upstream": self.upstream,
            "state": self.state,
            "age": round(age, 3) if age < math.inf else None,
            "left": round(self.until - now, 3) if -math.inf < self.until < math.inf else None,
            "generation": self.generation,
            "orders": self.orders,
            "rests": self.rests,
            "cause": self.cause,
            "reason": self.reason,
            "seconds": self.seconds if self.seconds < math.inf else None,
            "actor": self.actor,
        }

    @staticmethod
    def from_wire(said: Mapping[str, Any], now: float) -> Fact:
        """What `to_wire` made, elsewhere and maybe by another version.

        Raises:
            ValueError: it is no fact.
        """
        state: Any = said.get("state")
        cause: Any = said.get("cause")
        counts = [said.get(key, 0) for key in ("generation", "orders", "rests")]
        times = [said.get("age"), said.get("left"), said.get("seconds", 0)]
        texts = [said.get("upstream"), said.get("reason") or "", said.get("actor") or ""]
        if (
            state not in RANK
            or (cause is not None and cause not in get_args(Cause))
            or not all(type(count) is int and 0 <= count <= MAX_COUNT for count in counts)
            or not all(time is None or (type(time) in (int, float) and math.isfinite(time)) for time in times)
            or not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts)
            or not texts[0]
        ):
            raise ValueError("not a breaker's fact")
        age, left, length = times
        since = -math.inf if age is None else now - max(0.0, float(age))
        until = now + float(left) if left is not None else math.inf if state != "closed" else since
        seconds = math.inf if length is None else float(length)
        generation, orders, rests = counts
        upstream, reason, actor = map(str, texts)
        return Fact(upstream, state, since, until, generation, orders, rests, cause, reason, seconds, actor)
