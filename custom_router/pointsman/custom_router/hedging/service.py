"""What the hook calls: which requests are hedged, whom they ask, how many there may be, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from pointsman.custom_router.cascades import replay
from pointsman.custom_router.cascades.calls import gone
from pointsman.custom_router.failover.budget import Budgets, RetryBudget
from pointsman.custom_router.failover.trail import Trail, trail_of
from pointsman.custom_router.hedging.calls import Answer, Question, asked, cost_of, fits
from pointsman.custom_router.hedging.race import Call, Race, race
from pointsman.custom_router.priority import read_priority
from pointsman.custom_router.queue import Priority
from pointsman.custom_router.scores import Score
from pointsman.decisions import Attempt, Decision
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import ResilienceSettings

__all__ = ["Hedge", "HedgeFailedError", "Hedging", "Try"]

SAMPLES = 20
"""Answers of an upstream that must be known before its `p95` is one."""


@dataclass(slots=True)
class Hedge:
    """A request's, in its ticket: its class, the answer that won, and whether its client has left meanwhile."""

    priority: Priority
    answer: Answer | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Try:
    """A request's first try as the hook knows it: whom it may ask (`ids`, where `decision` has no order), of `deployments`."""

    ticket: Ticket
    decision: Decision
    group: str
    ids: Sequence[str]
    deployments: Mapping[str, dict[str, Any]]
    messages: Sequence[Mapping[str, Any]]
    kwargs: Mapping[str, Any]
    metadata: Mapping[str, Any]


class HedgeFailedError(Exception):
    """All that were asked have failed; `error` is the last one's, and how the try ends."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Known(Protocol):
    """What is known of upstreams (`custom_router.scores.Scores`)."""

    def upstream(self, deployment_id: str) -> str | None: ...
    def score(self, upstream: str) -> Score: ...


class Records(Protocol):
    """Where attempts are told (`custom_router.outcomes.Outcomes`)."""

    def record(self, record: Attempt) -> None: ...
    def call_failed(self, ticket: Ticket, decision_id: str, deployment_id: str, error: Exception, *, hedge: bool) -> None: ...


class Hedging:
    """Of one worker; one event loop owns it.

    Args:
        settings: of all of `pointsman.resilience`.
        scores: what is known of upstreams.
        closed: whether a deployment's breaker is closed.
        records: where attempts are told.
        told: is given the group and the outcome of each hedge.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: ResilienceSettings,
        scores: Known,
        closed: Callable[[str], bool],
        records: Records,
        told: Callable[[str, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules, self._default = settings.hedging, Priority[settings.queue.default.upper()]
        self._classes = {Priority[name.upper()] for name in settings.hedging.classes}
        self._scores, self._closed, self._records, self._told, self._clock = scores, closed, records, told, clock
        shares = settings.hedging.share, settings.hedging.floor, settings.hedging.window
        self._budgets = Budgets(lambda: RetryBudget(*shares), clock)

    def begin(self, ticket: Ticket, caller: Any, *, admin: bool) -> None:
        """A request begins: its class. Raises as `read_priority` does, for a header that may not be."""
        key, team = getattr(caller, "metadata", None), getattr(caller, "team_metadata", None)
        ticket.hedge = Hedge(read_priority(ticket.asked, key, team, admin=admin, default=self._default))

    async def serve(self, asking: Try) -> list[dict[str, Any]] | None:
        """The deployment that gives the answer that won, or None where the request is not hedged.

        Raises:
            HedgeFailedError: all that were asked have failed.
            litellm.BadRequestError: the client has left, and nobody reads it.
        """
        ticket, hedge, rules = asking.ticket, asking.ticket.hedge, self._rules
        if not isinstance(hedge, Hedge):  # a call within another request
            return None
        if hedge.left:
            raise gone()
        if ticket.retries != (0, 0) or (rules.groups is not None and asking.group not in rules.groups):
            return None
        self._budgets.request(asking.group)
        if hedge.priority not in self._classes or not fits(asking.kwargs, asking.metadata):
            return None
        ids = [one for one in asking.decision.order or asking.ids if one in asking.deployments]
        first = tuple(ids[:1] if asking.decision.order else (one for one in ids if self._closed(one)))
        others = [one for one in ids if self._closed(one) and one not in ticket.failed]
        delay = self._delay(first)
        if delay is None or not set(first) <= set(others) or len(others) < 2:
            return None
        question = Question(asking.group, asking.messages, asking.kwargs, asking.metadata, ticket)
        begun: list[Ticket] = []

        def call(targets: tuple[str, ...]) -> Call[Any]:
            begun.append(Ticket(trail=Trail(deadline=trail_of(ticket).deadline)))
            return Call(partial(question.ask, targets, begun[-1]))

        def second() -> Call[Any] | None:
            slow = asked(begun[0])
            left = [one for one in others if one != slow and self._closed(one)]
            if slow is None or not left:
                return None
            if not self._budgets.take(asking.group):
                self._told(asking.group, "refused")
                return None
            return call(tuple(left[:1] if asking.decision.order else left))

        ended = await race(call(first), second, delay, ticket.gone, clock=self._clock)
        # A time-out that the deadline has cut says nothing of who was asked.
        trail_of(ticket).shortened = any(trail_of(one).shortened for one in begun)
        return self._end(asking, hedge, ended, [asked(one) or ids[0] for one in begun])

    def _end(self, asking: Try, hedge: Hedge, ended: Race[Any], who: Sequence[str]) -> list[dict[str, Any]]:
        """Tell how it went, and give what LiteLLM is to be answered; raises as `serve`."""
        ticket, decision, both = asking.ticket, asking.decision, len(ended.calls) > 1
        result = "left" if ended.left else "failed" if ended.won is None else "won" if ended.won.second else "lost"
        if both:
            self._told(asking.group, result)
        last: Exception | None = None
        for call, deployment_id in sorted(zip(ended.calls, who, strict=True), key=lambda pair: pair[0].ended):
            if call.error is not None:
                last = call.error
                self._records.call_failed(ticket, decision.decision_id, deployment_id, last, hedge=both)
            elif call is not ended.won and not ended.left:
                ticket.attempt += 1
                about = (decision.decision_id, ticket.attempt, deployment_id, ticket.models.get(deployment_id))
                self._records.record(Attempt(*about, outcome="cancelled", error="Cancelled", hedge=both))
        if ended.left:
            hedge.left = True
            raise gone()
        if ended.won is None:
            assert last is not None  # noqa: S101 - narrows the type; nobody answered and nobody left
            params = asking.deployments.get(who[0], {}).get("litellm_params") or {}  # our calls' own zero is not meant
            last.num_retries = params.get("num_retries")  # type: ignore[attr-defined] # LiteLLM reads it
            raise HedgeFailedError(last)
        winner = who[ended.calls.index(ended.won)]
        milliseconds = (ended.won.ended - ended.won.began) * 1000
        hedge.answer = Answer(ended.won.answer, winner, milliseconds, cost_of(ended.won.answer), both)
        if decision.order and decision.order[0] != winner:  # the headers tell who answered
            order = (winner, *(one for one in decision.order if one != winner))
            ticket.decision = replace(decision, order=order, model=ticket.models.get(winner))
        ticket.models[replay.deployment_id(asking.group)] = ticket.models.get(winner, "")
        return [replay.deployment(asking.group, asking.deployments[winner])]

    def _delay(self, ids: Sequence[str]) -> float | None:
        """Seconds after which another one is asked; None: too little is known. Of several that may be asked the longest."""
        if self._rules.delay != "p95":
            return self._rules.delay
        names = {name for one in ids if (name := self._scores.upstream(one)) is not None}
        late = [score.latency[1] for name in names if (score := self._scores.score(name)).latency is not None]
        known = [one.value / 1000 for one in late if one.weight >= SAMPLES]
        return max(self._rules.least_delay, *known) if known else None
