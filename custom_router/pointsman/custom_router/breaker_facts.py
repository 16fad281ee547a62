"""What workers and instances tell each other of their breakers, and which of two facts holds.

Facts have an order, and `merge` takes the higher, so it does not matter in which sequence, how often and over whom they come;
supervisor and Redis need no more than it. Each worker decides for itself what it makes of one
(`Breaker.adopt`). Clocks of two machines are not comparable, and wall clocks jump; on the wire stand seconds from now. Who
keeps facts for others keeps them as `Fact`, by its own clock, and sends them on by `to_wire`: then the ways' delay is all that
is added to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

__all__ = ["Board", "Cause", "Fact", "FactState", "merge"]

Cause: TypeAlias = Literal["failures", "failure_rate", "rate_limit", "probe", "manual"]
"""Failures in a row, their share, answers 429, a probe that failed, an administrator."""

FactState: TypeAlias = Literal["closed", "open", "held_closed", "held_open"]
RANK: Mapping[str, int] = {state: rank for rank, state in enumerate(get_args(FactState))}
MAX_COUNT = 2**53
MAX_TEXT = 1024
MAX_FACTS = 10_000


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

    @property
    def order(self) -> tuple[int, int, int, float, str]:
        """The higher is the newer; of two that are equally new, the more careful one. Nothing that the way would change."""
        return self.orders, self.generation, RANK[self.state], self.seconds, self.reason

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
        texts = [said.get("upstream"), said.get("reason") or ""]
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
        return Fact(str(texts[0]), state, since, until, generation, orders, rests, cause, str(texts[1]), seconds)


def merge(one: Fact, other: Fact) -> Fact:
    """The one of the two that holds. Of the same fact, heard twice, the first: the second was longer on its way."""
    return other if other.order > one.order else one


class Board:
    """What is known of all upstreams where facts come together: in the supervisor, or before a store that instances share.

    Who receives `{"type": "facts", "breakers": [...]}` from a worker gives the list to `hear` and sends what comes back to
    every worker, where it goes to `Breakers.adopt`; a worker that is new is sent `everything`. It holds no clock; `now` is
    monotonic seconds of the process that holds it.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Fact] = {}

    def hear(self, said: Iterable[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
        """Take up facts; gives back those of them that are news, as JSON. What is no fact is passed over."""
        news: dict[str, Fact] = {}
        for item in said:
            try:
                fact = Fact.from_wire(item, now)
            except ValueError:
                continue
            known = self._facts.pop(fact.upstream, None)
            self._facts[fact.upstream] = held = fact if known is None else merge(known, fact)
            if known is None or held.order != known.order:
                news[fact.upstream] = held
        while len(self._facts) > MAX_FACTS:  # the one that was not heard of for the longest time
            del self._facts[next(iter(self._facts))]
        return [fact.to_wire(now) for fact in news.values()]

    def everything(self, now: float) -> list[dict[str, Any]]:
        """All facts, as JSON."""
        return [fact.to_wire(now) for fact in self._facts.values()]
