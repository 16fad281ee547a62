"""Ends LiteLLM's work on a request whatever it waits for: at the deadline, and when its upstream hangs.

LiteLLM runs checks of a request beside the call of its model, and ends that call when a check fails. The watch is such a check:
it waits for the call's end, and fails when the deadline has passed before, or when whoever is asked is known to hang
(`stalls`). So the request ends as any that failed does, with LiteLLM's own hooks and in the endpoint's form, and what it had
taken is given back. Of one whose upstream hangs, `http.anew` drops that answer and begins it anew. Streams have their guard
(`streams`) as soon as LiteLLM has one to read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from pointsman.custom_router.failover.stop import StopError
from pointsman.custom_router.failover.trail import Trail
from pointsman.decisions.ticket import Ticket

__all__ = ["GRACE", "StalledError", "left", "runs", "watch"]

GRACE = 0.25
"""Seconds after the deadline that are left to the time-out of the try, which ends then too and says more."""
ROUTED_WITHIN = 30.0
"""Seconds in which LiteLLM's router is at work, or the call is none that is watched."""


class StalledError(TimeoutError):
    """Nothing came from an upstream for so long that its breaker was opened as stalled."""


def runs(ticket: Ticket | None) -> None:
    """LiteLLM's router is at work for this request, in the task that calls this; the first one that says so is it."""
    trail = ticket.trail if ticket is not None else None
    if isinstance(trail, Trail) and trail.router is None:
        trail.router = asyncio.current_task()
        trail.routed.set()


async def left(ticket: Ticket) -> bool:
    """Whether the client has left, as far as the server knows now; the request's body has been read."""
    if ticket.gone is None:
        return False
    try:
        async with asyncio.timeout(0):
            await ticket.gone()
    except TimeoutError:
        return False
    return True


async def watch(
    trail: Trail, clock: Callable[[], float], late: Callable[[], StopError], lost: Callable[[], Awaitable[StopError | None]]
) -> None:
    """Return when the router's work is done.

    Args:
        trail: the request's; it has a deadline, or can be begun anew.
        clock: monotonic seconds.
        late: what to raise when the deadline has passed.
        lost: what to raise when whoever is asked hangs; None: go on waiting.

    Raises:
        StopError: it has to end.
    """

    def remains(most: float) -> float | None:
        seconds = min(most, trail.deadline + GRACE - clock())
        return None if seconds == math.inf else max(0.0, seconds)

    hopeless = asyncio.get_running_loop().create_future()
    trail.hopeless = hopeless
    try:
        async with asyncio.timeout(remains(ROUTED_WITHIN)):
            await trail.routed.wait()
    except TimeoutError:
        return
    router = trail.router
    if router is None:
        return
    await asyncio.wait({router, hopeless}, timeout=remains(math.inf), return_when=asyncio.FIRST_COMPLETED)
    if hopeless.done() and not router.done():
        if (error := await lost()) is not None:
            raise error
        await asyncio.wait({router}, timeout=remains(math.inf))
    if not router.done():
        raise late()
