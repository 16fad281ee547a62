"""What workers and instances tell each other of sessions, and how the supervisor keeps it (`process.facts.Shelf`).

On the wire stand seconds ago, by no clock: where a session is, since how long, and how long ago it was used. Who keeps that
for others keeps it by its own monotonic clock. No text of a client is in it, only the session's keyed digest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from pointsman.custom_router.pins import Pin, winner
from pointsman.custom_router.session_keys import KEY_BYTES

__all__ = ["PinFact", "contradicted", "reader"]

MAX_ID = 512
"""Characters of a deployment's id in what others tell."""
FRESH = 1.0
"""Seconds by which a session must have been used later than was known for that to be news."""


@dataclass(frozen=True, slots=True)
class PinFact:
    """One session's pin; which of two holds is `pins.winner`'s matter.

    Attributes:
        session: its key.
        pin: where it is.
        moved: monotonic second at which it came there.
        used: monotonic second of its last request.
        ttl: seconds without a request that end it.
    """

    session: bytes
    pin: Pin
    moved: float
    used: float
    ttl: float

    @property
    def key(self) -> str:
        """The session's."""
        return self.session.hex()

    @property
    def lasting(self) -> bool:
        """No."""
        return False

    def over(self, known: PinFact) -> PinFact | None:
        """The winner of the two, used when the later of them was; None where both are as known."""
        if self.used - known.used > known.ttl:
            return self  # what was known had ended before this one began
        if known.used - self.used > self.ttl:
            return None
        best, used = winner(self.pin, known.pin), max(self.used, known.used)
        if best == known.pin:
            return replace(known, used=used) if used - known.used > FRESH else None
        return replace(self, used=used)

    def ended(self, now: float) -> bool:
        """Nobody has used it for long."""
        return now - self.used > self.ttl

    def to_wire(self, now: float) -> dict[str, Any]:
        """As JSON."""
        pin = self.pin
        return {
            "session": self.key,
            "deployment": pin.deployment_id,
            "since": pin.since,
            "moves": pin.moves,
            "left": pin.left,
            "age": round(max(0.0, now - self.moved), 3),
            "idle": round(max(0.0, now - self.used), 3),
        }

    @staticmethod
    def from_wire(said: Mapping[str, Any], at: float, ttl: float) -> PinFact:
        """What `to_wire` made, elsewhere and maybe by another version.

        Args:
            said: the fact.
            at: monotonic second at which it was true.
            ttl: as the attribute.

        Raises:
            ValueError: it is no pin.
        """
        names = ("session", "deployment", "since", "moves", "left", "age", "idle")
        session, deployment, since, moves, left, age, idle = (said.get(name) for name in names)
        if not isinstance(session, str) or not _is_id(deployment) or not (left is None or _is_id(left)):
            raise ValueError("not a session's pin")
        if type(moves) is not int or not 0 <= moves < 2**31:
            raise ValueError("not a session's moves")
        if not _is_number(since) or not _is_number(age) or not _is_number(idle) or age < 0 or idle < 0:
            raise ValueError("not a session's times")
        raw = bytes.fromhex(session)
        if len(raw) != KEY_BYTES:
            raise ValueError("not a session's key")
        return PinFact(raw, Pin(deployment, float(since), moves, left), at - float(age), at - float(idle), ttl)


def reader(ttl: float) -> Callable[[Mapping[str, Any], float], PinFact]:
    """`PinFact.from_wire` for sessions that end after so many seconds."""

    def read(said: Mapping[str, Any], at: float) -> PinFact:
        return PinFact.from_wire(said, at, ttl)

    return read


def contradicted(told: PinFact, holds: PinFact) -> bool:
    """Whether who told the one has to hear of the other: it forgot the session over a bound, and began it anew elsewhere."""
    return told.pin != holds.pin


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and -1e12 <= value <= 1e12 and math.isfinite(value)  # type: ignore[operator,arg-type]
