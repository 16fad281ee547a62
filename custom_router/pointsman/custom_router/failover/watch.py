"""The deadline holds whatever LiteLLM waits for: an answer that comes a byte at a time, its own pause before a try.

LiteLLM runs checks of a request beside the call of its model, and ends that call when a check fails. The watch is such a check:
it waits for the call's end, and fails when the deadline has passed before. So the request ends as any that failed does, with
LiteLLM's own hooks and in the endpoint's form, and what it had taken is given back. Streams have their guard (`streams`) as
soon as LiteLLM has one to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pointsman.custom_router.failover.stop import StopError
from pointsman.custom_router.failover.trail import Trail
from pointsman.decisions.ticket import Ticket

__all__ = ["GRACE", "runs", "watch"]

GRACE = 0.25
"""Seconds after the deadline that are left to the time-out of the try, which ends then too and says more."""


def runs(ticket: Ticket | None) -> None:
    """LiteLLM's router is at work for this request, in the task that calls this; the first one that says so is it."""
    trail = ticket.trail if ticket is not None else None
    if isinstance(trail, Trail) and trail.router is None:
        trail.router = asyncio.current_task()
        trail.routed.set()


async def watch(trail: Trail, clock: Callable[[], float], late: Callable[[], StopError]) -> None:
    """Return when the router's work is done.

    Args:
        trail: the request's; it has a deadline.
        clock: monotonic seconds.
        late: what to raise when it has passed.

    Raises:
        StopError: it has passed.
    """
    try:
        async with asyncio.timeout(max(0.0, trail.deadline + GRACE - clock())):
            await trail.routed.wait()
            if trail.router is not None:
                await asyncio.wait({trail.router})
    except TimeoutError:
        if trail.router is not None and not trail.router.done():
            raise late() from None
