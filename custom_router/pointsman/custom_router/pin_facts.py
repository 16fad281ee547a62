"""A session's pin as the supervisor keeps it for the workers (`process.facts.Shelf`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pointsman.custom_router.pins import Pin, fact_of_pin, pin_of_fact, winner

__all__ = ["PinFact"]


@dataclass(frozen=True, slots=True)
class PinFact:
    """One session's pin; which of two holds is `pins.winner`'s matter.

    Attributes:
        session: its key.
        pin: where it is.
        used: Unix time of its last request.
        heard: monotonic second at which that was told.
    """

    session: bytes
    pin: Pin
    used: float
    heard: float

    TTL: ClassVar = 7_200.0
    """Seconds without news after which it is forgotten here; a session that goes on is told of at each quarter of its life."""

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
        best, used = winner(self.pin, known.pin), max(self.used, known.used)
        return None if best == known.pin and used == known.used else replace(self, pin=best, used=used)

    def ended(self, now: float) -> bool:
        """It was not heard of for long."""
        return now - self.heard > self.TTL

    def to_wire(self, now: float) -> dict[str, Any]:
        """As JSON."""
        return fact_of_pin(self.session, self.pin, self.used)

    @staticmethod
    def from_wire(said: Mapping[str, Any], at: float) -> PinFact:
        """What `to_wire` made.

        Raises:
            ValueError: it is no pin.
        """
        read = pin_of_fact(said)
        if read is None:
            raise ValueError("not a session's pin")
        return PinFact(*read, at)
