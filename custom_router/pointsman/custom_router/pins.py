"""Where a session is, and when it moves: the pin and the pure functions that make the next one of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from pointsman.custom_router.policy import Costs

__all__ = [
    "KEPT",
    "KEY_BYTES",
    "MOVED",
    "NEW",
    "REST",
    "RETURNED",
    "Pin",
    "claimed",
    "fact_of_pin",
    "goes_back",
    "pin_of_fact",
    "winner",
]

KEPT, NEW, MOVED, RETURNED = "kept", "new", "moved", "returned"
KEY_BYTES = 24
"""Of a session's key."""
MAX_ID = 512
"""Characters of a deployment's id in what others tell."""
REST = 30.0
"""Seconds that a session stays where it went before it may go back: what left once may be gone again in a moment."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a session is; immutable, the functions below make the next one.

    Attributes:
        deployment_id: where it is.
        since: Unix time at which it came there, by the clock of who put it there; it travels unchanged.
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


def goes_back(pin: Pin, there: Collection[str], costs: Costs, now: float) -> Pin | None:
    """The pin on the deployment that the session had to leave, where this request is cheaper there; else None.

    Args:
        pin: the present one.
        there: as for `claimed`.
        costs: what the request costs on each, with the prompt cache that leaving the present one loses.
        now: Unix time.
    """
    home, here = pin.left, pin.deployment_id
    if home is None or home not in there or not {home, here} <= costs.expected.keys() or now - pin.since < REST:
        return None
    # Not to be gone back from: prices alone would then move it to and fro.
    return Pin(home, now, pin.moves + 1) if costs.of(home) < costs.of(here) else None


def fact_of_pin(session: bytes, pin: Pin, used: float) -> dict[str, Any]:
    """What others are told, as JSON.

    Args:
        session: its key.
        pin: where it is.
        used: Unix time of its last request.
    """
    said = {"deployment": pin.deployment_id, "since": pin.since, "moves": pin.moves, "left": pin.left, "used": used}
    return {"session": session.hex(), **said}


def pin_of_fact(fact: Mapping[str, Any]) -> tuple[bytes, Pin, float] | None:
    """What `fact_of_pin` made, elsewhere and maybe by another version; None where it means nothing."""
    if not isinstance(fact, Mapping):
        return None
    names = ("session", "deployment", "since", "moves", "left", "used")
    session, deployment, since, moves, left, used = (fact.get(name) for name in names)
    if not isinstance(session, str) or not _is_id(deployment) or not (left is None or _is_id(left)):
        return None
    if not isinstance(moves, int) or isinstance(moves, bool) or not 0 <= moves < 2**31:
        return None
    if not _is_time(since) or not _is_time(used):
        return None
    try:
        raw = bytes.fromhex(session)
    except ValueError:
        return None
    if len(raw) != KEY_BYTES:
        return None
    return raw, Pin(deployment, float(since), moves, left), float(used)


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e12 <= value <= 1e12
