"""Upstreams that hang: they take requests and never answer. Noticed while attempts still wait, for these may wait for hours.

A breaker hears of an attempt when it ends. Here it is known which attempts at text and embeddings are under way: begun when the
provider is asked, over when its answer (a stream's first content) goes to the client, when the attempt fails, or with the
request. When `consecutive_failures` of one upstream have waited for too long, and nothing came from it since the oldest of them
began, its breaker is opened as `stalled`; of one that is half open a probe is enough. Whoever has waited for so long is begun
anew elsewhere (`failover`). Before that, when they have waited for longer than is usual, the upstream is suspected: others are
asked first (`filters.suspected`), until anything comes from it.

One event loop owns it; nothing here waits. As many attempts are known as requests are in flight. Each worker knows its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.failover.trail import Trail
from pointsman.custom_router.verdicts import verdict_on
from pointsman.decisions import Attempt, Decision, Outcome
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import BreakerSettings

__all__ = ["Known", "Stalls"]

MAX_ATTEMPTS, MAX_UPSTREAMS = 20_000, 10_000


class Known(Protocol):
    """What is known of upstreams (`scores.Scores`)."""

    def usual(self, upstream: str) -> tuple[float | None, float | None]:
        """Seconds of nearly all plain answers, and to nearly all streams' first content; None: nothing is known."""


@dataclass(slots=True)
class _Waiting:
    """One attempt under way, of `upstream`, since `at` (monotonic seconds).

    `left`: when its request ended without an answer, because the client did not want to wait any longer.
    """

    upstream: str
    at: float
    streamed: bool
    ticket: Ticket
    left: float | None = None


class Stalls:
    """See the module.

    Args:
        rules: the settings.
        breakers: whose breakers are opened.
        known: what is usual; None: nobody knows.
        clock: monotonic seconds.
    """

    def __init__(self, rules: BreakerSettings, breakers: Breakers, known: Known | None, clock: Callable[[], float]) -> None:
        self._rules, self._breakers, self._known, self._clock = rules, breakers, known, clock
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        """(Decision's id, deployment's id) -> attempt, the oldest first."""
        self._answered: dict[str, float] = {}
        """Upstream -> when something came from it, by the monotonic clock."""

    def __len__(self) -> int:
        return len(self._waiting)

    def began(self, ticket: Ticket, decision_id: object, deployment_id: str, *, streamed: bool) -> None:
        """A provider is asked, for an answer that has not begun. A connection of the caller's own says nothing of it."""
        upstream, key = self._breakers.upstream(deployment_id), (str(decision_id), deployment_id)
        if not self._rules.enabled or upstream is None or not isinstance(decision_id, str) or key in self._waiting:
            return
        if ticket.callers_connection or ticket.answered is not None or len(self._waiting) >= MAX_ATTEMPTS:
            return
        self._waiting[key] = _Waiting(upstream, self._clock(), streamed, ticket)
        ticket.under_way.add(key)
        ticket.settled = self._settled

    def record(self, told: Decision | Attempt | Outcome) -> None:
        """Take an attempt that ended; other records are passed over."""
        if isinstance(told, Attempt):
            self._waiting.pop((told.decision_id, told.deployment_id), None)
            upstream = self._breakers.upstream(told.deployment_id)
            if upstream is not None and verdict_on(told) == "good":
                self._came(upstream)

    def look(self) -> None:
        """Open the breakers of those that hang, suspect those that may. Work: attempts that wait beyond `suspect_after`."""
        now, overdue, suspected = self._clock(), dict[str, list[tuple[str, _Waiting]]](), set[str]()
        least_wait = min(self._rules.stall_after, self._rules.suspect_after)
        for key, one in list(self._waiting.items()):
            if now - one.at < least_wait:
                break
            if one.left is not None and now - one.left > self._rules.window:
                del self._waiting[key]
            elif one.at > self._answered.get(one.upstream, -math.inf):
                overdue.setdefault(one.upstream, []).append((key[0], one))
        for upstream, found in overdue.items():
            serves = self._breakers.serves_since(upstream)
            least = 1 if serves is None else self._rules.consecutive_failures
            since = [(token, one) for token, one in found if serves is None or one.at > serves]
            if len(since) < least:
                continue
            patience = self._patience(upstream)
            ends = ((token, one, now if one.left is None else one.left) for token, one in since)
            late = {token: one for token, one, end in ends if end - one.at >= patience[one.streamed]}
            if len(late) >= least:
                self._breakers.stalled(upstream, late.keys())
            if self._breakers.serves_since(upstream) is None:
                for one in late.values():
                    if isinstance(one.ticket.trail, Trail):
                        one.ticket.trail.give_up()
            elif self._overdue(upstream, [one for _, one in since], now) >= least:
                suspected.add(upstream)
        self._breakers.suspected = suspected

    def _overdue(self, upstream: str, waiting: Sequence[_Waiting], now: float) -> int:
        """How many wait for longer than is usual; where nothing is known, nobody does."""
        known = self._known.usual(upstream) if self._known is not None else (None, None)
        limits = [
            max(self._rules.suspect_after, self._rules.stall_factor * (math.inf if one is None else one)) for one in known
        ]
        return sum(one.left is None and now - one.at >= limits[one.streamed] for one in waiting)

    def _patience(self, upstream: str) -> tuple[float, float]:
        """Seconds that a plain answer and a stream's first content may take."""
        after, factor = self._rules.stall_after, self._rules.stall_factor
        plain, first = self._known.usual(upstream) if self._known is not None else (None, None)
        return max(after, factor * (after if plain is None else plain)), max(after, factor * (first or 0.0))

    def _settled(self, ticket: Ticket, status: int) -> None:
        """A request's answer began, or it ended without one. That somebody waited for too long is not forgotten at once."""
        now, keys = self._clock(), [key for key in ticket.under_way if key in self._waiting]
        ticket.under_way.clear()
        for key in keys:
            one = self._waiting[key]
            if status >= 400:  # no word of LiteLLM's will come
                self._breakers.release(key[0])
                if now - one.at >= self._rules.stall_after:
                    one.left = now
                    continue
            elif one.streamed and len(keys) == 1:  # else, as of plain ones, it is said later who answered
                self._came(one.upstream)
            del self._waiting[key]

    def _came(self, upstream: str) -> None:
        self._answered.pop(upstream, None)
        self._answered[upstream] = self._clock()
        if len(self._answered) > MAX_UPSTREAMS:
            del self._answered[next(iter(self._answered))]
