"""Whether whoever asks may spend more. LiteLLM checks budgets once, before the request; a cascade asks again before each call.

The counters are LiteLLM's own (`get_current_spend`: Redis first, then this process, then the database). The call that answers
was reserved by LiteLLM out of the same counters when the request began; what it reserved is not spent yet, so it is taken off.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Purse", "purses_of", "spent_out"]

logger = logging.getLogger("pointsman.cascades")

Read = Callable[..., Awaitable[float]]
"""LiteLLM's `get_current_spend`."""


@dataclass(slots=True)
class Purse:
    """One budget.

    Attributes:
        counter: LiteLLM's name of it.
        budget: US dollars.
        known: spent, as the key's record told when the request began.
        reserved: what LiteLLM set aside for the call that answers.
        before: spent when the cascade began; None until it was read.
    """

    counter: str
    budget: float
    known: float = 0.0
    reserved: float = 0.0
    before: float | None = field(default=None)


def purses_of(metadata: Mapping[str, Any]) -> tuple[Purse, ...]:
    """The budgets of key, team, user and organisation that the request was admitted under."""
    auth = metadata.get("user_api_key_auth")
    reservation = metadata.get("user_api_key_budget_reservation")
    reserved: dict[str, float] = {}
    for entry in (reservation or {}).get("entries") or () if isinstance(reservation, Mapping) else ():
        reserved[str(entry.get("counter_key"))] = float(entry.get("reserved_cost") or 0.0)

    def told(name: str) -> Any:
        return getattr(auth, name, None)

    team, user, org = told("team_id"), told("user_id"), told("org_id")
    given = [
        (f"spend:key:{told('token')}" if told("token") else None, told("max_budget"), told("spend")),
        (f"spend:team:{team}" if team else None, told("team_max_budget"), told("team_spend")),
        # A team's keys are not held to their owner's own budget, unless LiteLLM was told so and reserved from it.
        (
            f"spend:user:{user}" if user and (not team or f"spend:user:{user}" in reserved) else None,
            told("user_max_budget"),
            0.0,
        ),
        (f"spend:org:{org}" if org else None, told("organization_max_budget"), 0.0),
    ]
    return tuple(
        Purse(counter, float(budget), float(known or 0.0), reserved.get(counter, 0.0))
        for counter, budget, known in given
        if counter is not None and isinstance(budget, int | float)
    )


async def spent_out(purses: tuple[Purse, ...], own: float, read: Read) -> bool:
    """Whether one of the budgets is spent. One that cannot be read counts as spent: money fails closed.

    Args:
        purses: of this request; what is read first is kept in them.
        own: US dollars that this cascade has spent, of which LiteLLM may not have counted all yet.
        read: `get_current_spend`.
    """
    for purse in purses:
        try:
            counted = await read(purse.counter, purse.known, max_budget=purse.budget) - purse.reserved
        except Exception:  # whatever LiteLLM's stores raise
            logger.exception("the spend of %s cannot be read; no further call is made", purse.counter.split(":")[1])
            return True
        if purse.before is None:
            purse.before = counted
        if max(counted, purse.before + own) >= purse.budget:
            return True
    return False
