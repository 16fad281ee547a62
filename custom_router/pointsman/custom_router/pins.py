"""Where a session is, and when it moves: the pin and the pure functions that make the next one of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pointsman.custom_router.policy import Costs

__all__ = [
    "KEPT",
    "MOVED",
    "NEW",
    "REST",
    "RETURNED",
    "Pin",
    "claimed",
    "goes_back",
    "winner",
]

KEPT, NEW, MOVED, RETURNED = "kept", "new", "moved", "returned"
REST = 30.0
"""Seconds that a session stays where it went before it may go back: what left once may be gone again in a moment."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a session is; immutable, the functions below make the next one.

    Attributes:
        deployment_id: where it is.
        since: Unix time at which it came there, by the clock of who put it there; it travels unchanged. It only says which
            of two pins is the older, the same for all who ask; no time is reckoned with it, so a clock that is wrong or jumps
            makes nothing worse than another choice between two equals.
        moves: how often it moved.
        left: the deployment that it had to leave last and may go back to, or None.
    """

    deployment_id: str
    since: float
    moves: int = 0
    left: str | None = None

    @property
    def rank(self) -> tuple[int, float, str, str]:
        """A total order; the least wins."""
        return (-self.moves, self.since, self.deployment_id, self.left or "")


def winner(one: Pin, other: Pin) -> Pin:
    """Which of two pins of a session holds. Commutative, associative and idempotent, so the order of news does not matter."""
    return one if one.rank <= other.rank else other


def claimed(pin: Pin | None, chosen: str, there: Collection[str], now: float) -> tuple[Pin, str]:
    """The session's next pin and what happened to it, when a request of it is about to go to `chosen`.

    Args:
        pin: the present one.
        chosen: a deployment's id.
        there: deployments that the session may stay on; a pin on one of them holds, whatever was chosen.
        now: Unix time.
    """
    if pin is None:
        return Pin(chosen, now), NEW
    if pin.deployment_id == chosen or pin.deployment_id in there:
        return pin, KEPT
    return Pin(chosen, now, pin.moves + 1, pin.deployment_id), MOVED


def goes_back(pin: Pin, there: Collection[str], costs: Costs, rested: float, now: float) -> Pin | None:
    """The pin on the deployment that the session had to leave, where this request is cheaper there; else None.

    Args:
        pin: the present one.
        there: as for `claimed`.
        costs: what the request costs on each, with the prompt cache that leaving the present one loses.
        rested: seconds that it has been where it is.
        now: Unix time.
    """
    home, here = pin.left, pin.deployment_id
    if home is None or home not in there or not {home, here} <= costs.expected.keys() or rested < REST:
        return None
    # Not to be gone back from: prices alone would then move it to and fro.
    return Pin(home, now, pin.moves + 1) if costs.of(home) < costs.of(here) else None
