"""Before each further try: may there be one, and after which pause. LiteLLM asks for the tries; here they are bounded.

What is free of the group's retry budget: a deployment that this request has not tried and whose breaker is closed, for breakers
bound how often a dead one is asked. What draws on it: the same deployment again, and one whose breaker is not closed, which is
asked where all of the group fail (where breakers are off: all but the first further try). Only those wait, too: going
to another deployment that serves needs no pause.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from pointsman.custom_router.failover.backoff import full_jitter
from pointsman.custom_router.failover.budget import Budgets, RetryBudget
from pointsman.custom_router.failover.stop import Limit, StopError
from pointsman.custom_router.failover.trail import Trail, deadline_of, trail_of
from pointsman.custom_router.failover.watch import StalledError, left, watch
from pointsman.custom_router.kwargs import EMBEDDING_CALLS, TEXT_CALLS
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import FailoverSettings

__all__ = ["Again", "Choices"]

NAMES = {"timeout", "request_timeout", "stream_timeout"}
WATCHED = TEXT_CALLS | EMBEDDING_CALLS
MAX_REPEATS = 2
"""How often a request whose upstream hangs is begun anew."""
LEAST_TIMEOUT = 0.05
"""Seconds of a try's time-out at least, however near the deadline is."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Whom the next try may ask.

    Attributes:
        group: model group of the try.
        ids: deployments that it may go to, one or several.
        elsewhere: tells whether LiteLLM goes on to others when this group fails.
    """

    group: str
    ids: Collection[str]
    elsewhere: Callable[[], Awaitable[bool]] | None = None


class Again:
    """See the module.

    Args:
        rules: the settings.
        clock: monotonic seconds.
        chance: a number in [0, 1) each time.
        closed: whether the breaker of a deployment is closed; None where there are no breakers.
        told: is given the group and what ended a request of it.
        sleep: waits.
    """

    def __init__(
        self,
        rules: FailoverSettings,
        clock: Callable[[], float],
        chance: Callable[[], float],
        closed: Callable[[str], bool] | None = None,
        told: Callable[[str, Limit], None] = lambda *_: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rules = rules
        self._clock, self._chance, self._closed, self._told, self._sleep = clock, chance, closed, told, sleep
        shares = rules.budget_share, rules.budget_floor, rules.budget_window
        self._budgets = Budgets(lambda: RetryBudget(*shares), clock)

    def begin(self, ticket: Ticket, data: dict[str, Any], call: str) -> None:
        """A request begins, or begins anew: until when it must be answered."""
        if self.rules.enabled:
            trail = trail_of(ticket)
            if trail.repeats < ticket.repeats:
                trail.begin_anew()
                # LiteLLM counts its tries from the beginning, and goes once more through the groups.
                ticket.retries, ticket.picked, ticket.cascade, ticket.hedge = (0, 0), None, None, None
                ticket.groups.clear()
            trail.call = call
            trail.deadline = deadline_of(ticket.asked, data, self.rules.deadline, ticket.started)

    def check(self, ticket: Ticket, *, further: bool) -> None:
        """Raises `StopError` where the request is over, or where LiteLLM looks for another to go on with a stream.

        A first try while a stream is read is a call of LiteLLM's own in its middle (tools): then the
        stream is not guarded any more.
        """
        trail = ticket.trail
        if not isinstance(trail, Trail) or not self.rules.enabled:
            return
        if trail.limit is not None:
            raise StopError(trail.limit, trail.cause)
        if trail.streaming and further:
            raise StopError("stream", trail.cause)
        trail.streaming = False

    async def before(self, ticket: Ticket, choices: Choices, *, further: bool) -> None:
        """Before a try.

        Args:
            ticket: the request's.
            choices: whom it may ask.
            further: LiteLLM counts it as a retry or a fallback.

        Raises:
            StopError: there is no further try in this group, or none at all.
        """
        if not self.rules.enabled:
            return
        trail, first = trail_of(ticket), ticket.group or choices.group
        further, trail.again = further or trail.again, False
        if first not in trail.groups:
            trail.groups.add(first)
            self._budgets.request(first)
        if self._clock() >= trail.deadline:
            raise self._stop(trail, first, "deadline")
        if not further or not trail.tried:
            return
        fresh = [one for one in choices.ids if one not in ticket.failed]
        if not fresh and choices.elsewhere is not None and await choices.elsewhere():
            raise StopError("exhausted", trail.cause)  # LiteLLM goes on with the next group
        if self._free(trail, fresh):
            return
        wait = self._pause(trail, fresh or choices.ids)
        if wait is None:
            raise self._stop(trail, first, "retry_after")
        if self._clock() + wait >= trail.deadline:
            raise self._stop(trail, first, "deadline")
        if not self._budgets.take(first):
            raise self._stop(trail, first, "budget")
        trail.pauses += 1
        if wait > 0:
            await self._sleep(wait)

    def bound(self, ticket: Ticket, kwargs: dict[str, Any]) -> dict[str, float]:
        """Time-outs of the try that begins, where the deadline is sooner than they are."""
        trail = ticket.trail
        if not isinstance(trail, Trail) or trail.deadline == math.inf or trail.streaming:
            return {}
        left = max(LEAST_TIMEOUT, trail.deadline - self._clock())
        given = {name: kwargs.get(name) for name in NAMES}
        cut = {name: left for name, value in given.items() if isinstance(value, int | float) and value > left}
        if given["timeout"] is None:
            cut["timeout"] = left
        trail.shortened = "timeout" in cut or "stream_timeout" in cut
        return cut

    async def watch(
        self, ticket: Ticket, call: str, cut: Callable[[Ticket, Exception], None], lost: Callable[[Ticket, Exception], None]
    ) -> None:
        """Beside LiteLLM's call of a model, until that ends.

        Args:
            ticket: the request's.
            call: LiteLLM's name of the call; others than for words and embeddings may not tell of their beginning.
            cut: is told of the try that is under way when the deadline has passed.
            lost: is told of the try that is under way when the request is begun anew because its upstream hangs.

        Raises:
            StopError: the deadline has passed, or the request is begun anew.
        """
        trail = ticket.trail
        if not isinstance(trail, Trail) or call not in WATCHED:
            return
        repeatable = self.rules.stalled and ticket.repeatable and ticket.repeats < MAX_REPEATS
        if trail.deadline == math.inf and not repeatable:
            return

        def late() -> StopError:
            stop = self._stop(trail, ticket.group or "", "deadline")
            cut(ticket, stop)
            return stop

        async def given_up() -> StopError | None:
            if not repeatable or ticket.cascade is not None:  # what a cascade has asked so far is paid for
                return None
            stalled = StalledError("nothing came from it, and its breaker is open")
            lost(ticket, stalled)
            ticket.repeat = not await left(ticket)  # else it ends here, and gives back what it has taken
            return StopError("stalled", stalled)

        await watch(trail, self._clock, late, given_up)

    def _free(self, trail: Trail, fresh: Collection[str]) -> bool:
        if not fresh:
            return False
        return len(trail.tried) == 1 if self._closed is None else any(self._closed(one) for one in fresh)

    def _pause(self, trail: Trail, ids: Collection[str]) -> float | None:
        """Seconds to wait before one of these is asked; None: longer than is waited. LiteLLM's own pause counts."""
        now, last = self._clock(), trail.tried[-1].at
        until = last + full_jitter(trail.pauses, self.rules.backoff, self.rules.max_backoff, self._chance())
        wanted = {
            one: max((tried.not_before for tried in trail.tried if tried.deployment_id == one), default=0.0) for one in ids
        }
        soonest = min(wanted.values(), default=0.0)
        if soonest - now > self.rules.max_retry_after:
            return None
        return max(0.0, until - now, soonest - now)

    def _stop(self, trail: Trail, group: str, limit: Limit) -> StopError:
        trail.limit = limit
        self._told(group, limit)
        return StopError(limit, trail.cause)
