"""What the hook calls: runs the cascade of a request once, and says for each attempt where LiteLLM is to send it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pointsman.cascade_settings import CASCADE_KINDS
from pointsman.custom_router.cascades import replay
from pointsman.custom_router.cascades.automix import Automix
from pointsman.custom_router.cascades.calls import HANDED_ON, Caller, gone, sinks_of, spent
from pointsman.custom_router.cascades.limits import Limits
from pointsman.custom_router.cascades.models import best_of, levels_of, named
from pointsman.custom_router.cascades.money import purses_of
from pointsman.custom_router.cascades.multiround import Choose, MultiRound
from pointsman.custom_router.cascades.rules import FORWARDED, unfit
from pointsman.custom_router.cascades.types import Ending, Level, Messages, Said, StopError
from pointsman.custom_router.override import choose
from pointsman.custom_router.request import RoutingRequest
from pointsman.decisions import Decision, new_decision_id
from pointsman.decisions.ticket import Ticket
from pointsman.settings import PointsmanSettings, StrategySettings
from pointsman.strategies.base import AsyncScorer, Query, UnavailableError
from pointsman.strategies.registry import StrategyRegistry
from pointsman.strategies.threads import in_thread

__all__ = ["CascadeRefusedError", "Cascades", "State", "Verdict"]

logger = logging.getLogger("pointsman.cascades")

POLICY = "cascade"


@dataclass(slots=True)
class State:
    """A request's cascade, in its ticket. One request has one: a group that it falls back to gets none of its own.

    Attributes:
        group: where it ran.
        ending: how it ended.
        limits: what it spent.
        levels: the group's models, weakest first.
        spare: an answer that was doubted; better than none when whoever should answer instead fails.
        said: the answer to give again, of the attempt that is under way.
        told: whether its steps stand in a decision already, or are not to: while it runs.
        refused: makes the error that the request ends with; it must not go on in a group that it falls back to.
        decisions: ids of those that are the cascade's own.
    """

    group: str
    ending: Ending
    limits: Limits
    levels: tuple[Level, ...] = ()
    spare: Said | None = None
    said: Said | None = None
    told: bool = True
    refused: Callable[[], Exception] | None = None
    decisions: set[str] = field(default_factory=set)

    def check(self) -> None:
        """See to it that a request that was refused stays so.

        Raises:
            CascadeRefusedError: it was.
        """
        if self.refused is not None:
            raise CascadeRefusedError(self.refused())

    def messages(self, decision_id: object) -> Messages | None:
        """What whoever answers is asked in place of the client's messages, where the call follows a decision of the cascade."""
        return self.ending.messages if decision_id in self.decisions else None

    @property
    def cost(self) -> float:
        """US dollars of its calls."""
        return self.limits.cost

    @property
    def summary(self) -> str | None:
        """For the header; None where no call was made."""
        return self.limits.summary() if self.limits.begun else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """For one attempt: what LiteLLM gets to choose from, and the decision."""

    deployments: list[dict[str, Any]]
    decision: Decision


class CascadeRefusedError(Exception):
    """Ends the request with `error`: its budget is spent, or nobody waits for it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Cascades:
    """Of one worker.

    Args:
        settings: the instance's.
        strategies: bundles in service, for `knn-multiround`.
        aliases: strategy -> (bundle's candidate name -> deployment's model).
    """

    def __init__(
        self, settings: PointsmanSettings, strategies: StrategyRegistry, aliases: Mapping[str, Mapping[str, str]]
    ) -> None:
        self._settings, self._strategies, self._aliases = settings, strategies, aliases

    async def route(
        self,
        request: RoutingRequest,
        deployments: list[dict[str, Any]],
        kwargs: Mapping[str, Any],
        metadata: Mapping[str, Any],
        ticket: Ticket,
    ) -> Verdict | None:
        """The verdict for one attempt, or None where no cascade is configured for it; the first attempt runs the cascade.

        Whether the request may go on is for `State.check` to say, once the decision is recorded.

        Args:
            request: what is known of it.
            deployments: LiteLLM's, one for each of `request.candidates`.
            kwargs: LiteLLM's, of the call that answers.
            metadata: LiteLLM's, of the request.
            ticket: the request's; keeps the state.
        """
        choice = choose(request.wish, request.group, self._settings.routing, self._knows)
        name = choice.name
        found = self._settings.strategies.get(name) if name is not None else None
        if name is None or found is None or found.kind not in CASCADE_KINDS or request.endpoint != "text":
            return None
        ids = {one.deployment_id for one in request.candidates}
        if ticket.cascade is None and (len(ids) < 2 or request.continues in ids):
            return None
        started = time.perf_counter_ns()
        state = ticket.cascade if isinstance(ticket.cascade, State) else None
        if state is None:
            state = State(request.group, Ending(), Limits(found.cascade))
            ticket.cascade = state
            try:
                await self._run(name, state, request, kwargs, metadata, ticket)
            except _GoneError:
                state.refused = gone
            state.told = False
        chosen, order, model, fallback = _choose(state, request, deployments, ticket, _last_try(metadata))
        if state.refused is None and not chosen:
            state.refused = spent
        bundle = self._strategies.get(name)
        detail = {"kind": found.kind, **state.ending.detail}
        if not state.told:
            detail |= {"steps": [step.as_json() for step in state.limits.steps], "cost": state.cost}
            state.told = True
        decision_id = new_decision_id()
        if state.group == request.group:
            state.decisions.add(decision_id)
        decision = Decision(
            decision_id=decision_id,
            request_id=request.request_id,
            group=request.group,
            strategy=name,
            version=bundle.version if bundle is not None else None,
            order=order,
            model=model,
            policy=POLICY,
            microseconds=(time.perf_counter_ns() - started) // 1000,
            fallback=fallback,
            trace_id=request.trace_id,
            key_hash=request.key_hash,
            team_id=request.team_id,
            user_id=request.user_id,
            prompt=request.text if self._settings.privacy.capture_prompts else None,
            detail=detail,
            chosen_by=choice.by,
        )
        return Verdict(chosen, decision)

    def _knows(self, name: str) -> bool:
        return name in self._settings.strategies or self._strategies.get(name) is not None

    async def _run(
        self,
        name: str,
        state: State,
        request: RoutingRequest,
        kwargs: Mapping[str, Any],
        metadata: Mapping[str, Any],
        ticket: Ticket,
    ) -> None:
        """Set the state's end.

        Raises:
            _GoneError: the client has left; every call is cancelled.
        """
        strategy = self._settings.strategies[name]
        state.levels = levels = levels_of(request.candidates, strategy.cascade.models)
        messages = [dict(message) for message in request.messages]
        sent = kwargs.get("proxy_server_request")
        body = sent.get("body") if isinstance(sent, Mapping) else None
        route = metadata.get("user_api_key_request_route")
        reason = unfit(route, body if isinstance(body, Mapping) else {}, messages)
        if len(levels) < 2:
            reason = "only_candidate" if levels else "no_candidate"
        if reason is not None:
            state.ending = Ending(level=levels[-1] if levels else None, fallback=reason)
            return
        caller = Caller(
            group=request.group,
            metadata=metadata,
            params={key: kwargs[key] for key in FORWARDED if kwargs.get(key) is not None},
            extra={key: kwargs[key] for key in HANDED_ON if kwargs.get(key) is not None} | sinks_of(ticket.caller),
            limits=state.limits,
            purses=purses_of(metadata),
            prices={one.deployment_id: one.prices for one in request.candidates if one.prices is not None},
        )
        run = self._cascade(name, strategy, caller, state, request)
        if run is None:
            state.ending = Ending(level=levels[-1], fallback="no_bundle")
            return
        try:
            async with asyncio.timeout(state.limits.seconds_left):
                state.ending = await _while_there(_finish(run, messages, caller), ticket)
        except TimeoutError:
            state.ending = run.stopped("deadline")
        except (StopError, UnavailableError) as stop:
            state.ending = run.stopped(stop.reason)
        except _GoneError:
            raise
        except Exception:  # law 3: a broken cascade must not fail the request
            logger.exception("the cascade %s failed", name)
            state.ending = Ending(level=levels[-1], fallback="error")
        state.spare = run.spare

    def _cascade(
        self, name: str, strategy: StrategySettings, caller: Caller, state: State, request: RoutingRequest
    ) -> Automix | MultiRound | None:
        settings, levels = strategy.cascade, state.levels
        if strategy.kind == "automix":
            return Automix(caller, levels, settings, state.limits, named(levels, settings.verifier))
        chooser: Choose | None = None
        if strategy.kind == "knn-multiround":
            found = self._strategies.get(name)
            if found is None:
                return None
            bundle, aliases = found, {**self._aliases.get(name, {}), **self._settings.routing.candidates}

            async def chooser(task: str) -> Level | None:
                query = Query(task, request.asker, request.group)
                if isinstance(bundle, AsyncScorer):  # its encoder is a model of the gateway
                    scores = await bundle.score_async(query)
                else:
                    scores = await in_thread(lambda: bundle.score(query.text, query.user))
                return named(levels, best_of(request.candidates, scores, aliases))

        planner, composer = named(levels, settings.planner), named(levels, settings.composer)
        return MultiRound(caller, levels, settings, state.limits, chooser, planner, composer)


class _GoneError(Exception):
    """The client has left."""


async def _finish(run: Automix | MultiRound, messages: Messages, caller: Caller) -> Ending:
    """The cascade's end; where it is a further call, the budget must still allow that one."""
    ending = await run.run(messages)
    if ending.said is None:
        await caller.check_money()
    return ending


async def _while_there(work: Any, ticket: Ticket) -> Ending:
    """The work's result; cancelled, with every call that it makes, when the client leaves."""
    if ticket.gone is None:
        result: Ending = await work
        return result
    task: asyncio.Task[Ending] = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(ticket.gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _GoneError
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def _choose(
    state: State, request: RoutingRequest, deployments: Sequence[dict[str, Any]], ticket: Ticket, last_try: bool
) -> tuple[list[dict[str, Any]], tuple[str, ...], str | None, str | None]:
    """What LiteLLM gets, the order, the model that answers, and the reason where it is not the regular end."""
    ending, failed = state.ending, ticket.failed | request.excluded
    by_id = {one.deployment_id: item for one, item in zip(request.candidates, deployments, strict=True)}
    models = {one.deployment_id: one.model for one in request.candidates}
    state.said = None
    if state.group == request.group and ending.said is None and ending.level is None and ending.fallback == "budget":
        return [], (), None, ending.fallback
    again = replay.deployment_id(request.group)
    if state.group == request.group and again not in failed:
        said, reason = ending.said, ending.fallback
        if said is None and ending.level is not None and state.spare is not None:
            stronger = set(ending.level.deployments) & by_id.keys()
            if stronger <= failed or (last_try and stronger & failed):
                said, reason = state.spare, "escalation"
        if said is not None:
            state.said = said
            ticket.models[again] = said.level.model
            like = by_id.get(said.deployment_id) or deployments[0]
            return [replay.deployment(request.group, like)], (again,), said.level.model, reason
    wanted = list(ending.level.deployments) if ending.level is not None and state.group == request.group else []
    ranked = _shuffled([name for name in wanted if name in by_id and name not in failed])
    if wanted or state.group == request.group:
        for level in reversed(state.levels):
            ranked += _shuffled(
                [name for name in level.deployments if name in by_id and name not in failed and name not in ranked]
            )
    if not ranked:  # LiteLLM's own choice among what did not fail, or among all
        left = [item for name, item in by_id.items() if name not in failed] or list(deployments)
        return left, (), None, ending.fallback or "no_candidate"
    return [by_id[ranked[0]]], tuple(ranked), models[ranked[0]], ending.fallback


def _last_try(metadata: Mapping[str, Any]) -> bool:
    """Whether LiteLLM makes no further attempt in this group, should this one fail."""
    tried, most = metadata.get("attempted_retries"), metadata.get("max_retries")
    return not (isinstance(tried, int) and isinstance(most, int)) or tried >= most


def _shuffled(ids: list[str]) -> list[str]:
    """Deployments of one model share its load."""
    random.shuffle(ids)
    return ids
