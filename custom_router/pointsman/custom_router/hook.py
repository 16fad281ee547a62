"""The meeting point with LiteLLM's router: `CustomLogger.async_filter_deployments` and the hooks that tell how it went.

LiteLLM names the instance `router_hook` in `litellm_settings.callbacks` and calls it on every attempt, after its own cooldown,
health and team filters. With `deployments`, `embed` and two of `cascades`, the only module of this room that knows LiteLLM.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import litellm
from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger
from litellm.litellm_core_utils.prompt_templates.factory import resolve_structured_messages
from litellm.proxy._types import LitellmUserRoles

from pointsman.callbacks.spans import RequestSpans
from pointsman.custom_router.affinity import Affinity
from pointsman.custom_router.asked import request_of
from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.cascades.calls import inner_target, narrow
from pointsman.custom_router.cascades.service import CascadeRefusedError, Cascades, State
from pointsman.custom_router.decide import Decider
from pointsman.custom_router.deployments import continued_from, eligible, map_prices, streaming
from pointsman.custom_router.elsewhere import RestingError, has_elsewhere
from pointsman.custom_router.embed import ASKING
from pointsman.custom_router.failover.again import Again, Choices
from pointsman.custom_router.failover.stop import StopError
from pointsman.custom_router.failover.streams import StreamGuard
from pointsman.custom_router.failover.trail import Asking, trail_of
from pointsman.custom_router.failover.watch import runs
from pointsman.custom_router.filters import NOT_TO_BE_TRIED
from pointsman.custom_router.gate import Gate
from pointsman.custom_router.hedging.calls import with_usage
from pointsman.custom_router.hedging.service import HedgeFailedError, Hedging, Try
from pointsman.custom_router.kwargs import (
    DECISION_KEY,
    EMBEDDING_CALLS,
    TELLS_USAGE,
    TEXT_CALLS,
    callers_connection,
    endpoint_of,
    metadata_of,
    number_of,
)
from pointsman.custom_router.opinion import RESTING
from pointsman.custom_router.outcomes import Outcomes
from pointsman.custom_router.override import Wish, read_wish
from pointsman.custom_router.request import candidate_of
from pointsman.custom_router.scores import Scores
from pointsman.custom_router.session_keys import session_secret
from pointsman.custom_router.stalls import Stalls
from pointsman.custom_router.text import gemini_turns
from pointsman.custom_router.verdicts import sink, tell
from pointsman.decisions.ticket import Ticket, current_ticket
from pointsman.errors import PointsmanError
from pointsman.settings import environment

if TYPE_CHECKING:
    from pointsman.runtime import Runtime

__all__ = ["RouterHook", "router_hook"]

logger = logging.getLogger("pointsman.hook")


def _may_go_on(ticket: Ticket) -> None:
    """Raises `CascadeRefusedError` in every group, once the request's cascade has spent its budget or the client has left."""
    if isinstance(ticket.cascade, State):
        ticket.cascade.check()


class RouterHook(CustomLogger):  # type: ignore[misc] # LiteLLM is not typed
    """Routes by learned strategies. Without `bind` it leaves every choice to LiteLLM."""

    def __init__(self) -> None:
        super().__init__()
        self._decider: Decider | None = None
        self.affinity: Affinity | None = None
        self.breakers: Breakers | None = None
        self._cascades: Cascades | None = None
        self._gate: Gate | None = None
        self._scores: Scores | None = None
        self._again: Again | None = None
        self._hedging: Hedging | None = None
        self.stalls: Stalls | None = None
        self.guard = StreamGuard()
        self.outcomes = Outcomes()
        self._spans: RequestSpans | None = None
        self._forward_request_id = False
        self._secret = b""

    def bind(self, runtime: Runtime, secret: bytes | None = None) -> None:
        """Give it the worker's strategies and store; once, before the worker serves.

        Args:
            runtime: the worker's.
            secret: key of the sessions' digests, the same in all workers; None: what the environment gives.
        """
        self.breakers = Breakers(runtime.settings.resilience.breaker, time.monotonic, random.random, tell)
        self._secret = secret or session_secret(environment())
        self.affinity = Affinity(runtime.settings.resilience.sticky, self._secret)
        self._decider = Decider(
            runtime.settings.routing,
            runtime.strategies,
            runtime.aliases,
            capture_prompts=runtime.settings.privacy.capture_prompts,
            configured=runtime.settings.strategies,
            affinity=self.affinity,
            breakers=self.breakers,
            health=runtime.scores,
        )
        self._scores = runtime.scores
        self.stalls = Stalls(runtime.settings.resilience.breaker, self.breakers, runtime.scores, time.monotonic)
        self._cascades = Cascades(runtime.settings, runtime.strategies, runtime.aliases)
        queue = runtime.settings.resilience.queue
        self._gate = Gate(runtime.turns, queue, runtime.spans) if queue.enabled else None
        metrics, failover = getattr(runtime, "metrics", None), runtime.settings.resilience.failover
        self.outcomes = Outcomes(
            (sink(self.breakers), self.stalls.record, *runtime.sinks),
            self._decider.answered,
            metrics.stream_broke if metrics is not None else None,
        )
        self._again = Again(
            failover,
            time.monotonic,
            random.random,
            self.breakers.closed if runtime.settings.resilience.breaker.enabled else None,
            metrics.stopped if metrics is not None else lambda *_: None,
        )
        if runtime.settings.resilience.hedging.enabled:
            told = metrics.hedged if metrics is not None else lambda *_: None
            self._hedging = Hedging(runtime.settings.resilience, runtime.scores, self.breakers.closed, self.outcomes, told)
        if (facts := getattr(runtime, "facts", None)) is not None:
            facts.before.append(self.stalls.look)
        self.guard.bind(failover, self.outcomes.stream_failed)
        self._spans = runtime.spans
        self._forward_request_id = runtime.settings.telemetry.forward_request_id

    def come_last(self) -> None:
        """Stand at the end of LiteLLM's callbacks, and the guard of streams at their beginning: what it begins anew, the
        guardrails between see as well.

        The router appends some of its own (budgets, affinity) when it is made anew; what they would drop must be gone before
        one is picked. LiteLLM may be iterating over the list, so it is replaced and not changed.
        """
        ours = (self, self.guard)
        if litellm.callbacks and (litellm.callbacks[-1] is not self or litellm.callbacks[0] is not self.guard):
            litellm.callbacks = [self.guard, *(one for one in litellm.callbacks if one not in ours), self]

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str) -> None:
        """Once a request, after LiteLLM's own checks: what is asked for, whether this key may ask for it, and its turn.

        Raises:
            HTTPException: 403 or 400, for a header of ours that the key may not use or that means nothing; 429 or 503, where
                the queue has no turn for it.
        """
        for name in ("metadata", "litellm_metadata"):
            if isinstance(data.get(name), dict):
                data[name].pop(DECISION_KEY, None)  # a client's, which would put its outcome on another's record
        ticket = current_ticket()
        if self._decider is None or ticket is None:
            return
        endpoint = endpoint_of(str(call_type))
        if endpoint is None:
            return
        ticket.endpoint, ticket.caller = endpoint, user_api_key_dict
        ticket.key_alias = getattr(user_api_key_dict, "key_alias", None)
        ticket.team = getattr(user_api_key_dict, "team_alias", None) or getattr(user_api_key_dict, "team_id", None)
        ticket.given = data.get("input") if endpoint == "embedding" else None
        ticket.fallbacks = False if data.get("disable_fallbacks") is True else data.get("fallbacks")
        ticket.callers_connection = callers_connection(data)
        ticket.callers_timeout = any(data.get(name) is not None for name in ("timeout", "stream_timeout", "request_timeout"))
        if self._again is not None:
            self._again.begin(ticket, data, str(call_type))
        role = getattr(user_api_key_dict, "user_role", None)
        admin = getattr(role, "value", role) == LitellmUserRoles.PROXY_ADMIN.value
        key, team = getattr(user_api_key_dict, "metadata", None), getattr(user_api_key_dict, "team_metadata", None)
        try:
            ticket.wish = read_wish(ticket.asked, key, team, admin=admin, known=self._decider.knows)
            if self._gate is not None:
                await self._gate.wait(ticket, str(call_type), data.get("model"), user_api_key_dict, admin=admin)
            if self._hedging is not None:
                self._hedging.begin(ticket, user_api_key_dict, admin=admin)
        except PointsmanError as error:
            raise HTTPException(error.status, error.as_json()["error"]) from error

    async def async_moderation_hook(self, data: dict[str, Any], user_api_key_dict: Any, call_type: str) -> None:
        """Beside the call of the model: ends it when the request's deadline has passed, or its upstream hangs."""
        if (ticket := current_ticket()) is None or self._again is None:
            return
        try:
            await self._again.watch(ticket, str(call_type), self.outcomes.cut, self.outcomes.given_up)
        finally:
            if ticket.repeat and self._spans is not None:
                ticket.traceparent = self._spans.traceparent()

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[dict[str, Any]],
        messages: list[dict[str, Any]] | None,
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,
    ) -> list[dict[str, Any]]:
        """The one deployment to try now, or everything it was given when there is no choice to make."""
        ticket = current_ticket()
        if (target := inner_target()) is not None:
            return narrow(healthy_deployments, target)
        if self._decider is None or ticket is None or not healthy_deployments:
            return healthy_deployments
        self.come_last()
        runs(ticket)
        try:
            return await self._filter(self._decider, ticket, model, healthy_deployments, messages, request_kwargs or {})
        except (CascadeRefusedError, HedgeFailedError) as refused:
            raise refused.error from None
        except (RestingError, StopError, litellm.BadRequestError):
            raise
        except Exception:  # law 3: an exception here would be a 500 to the client
            logger.exception("routing failed; LiteLLM's own choice holds")
            return healthy_deployments

    async def _filter(
        self,
        decider: Decider,
        ticket: Ticket,
        group: str,
        deployments: list[dict[str, Any]],
        messages: list[dict[str, Any]] | None,
        kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        _may_go_on(ticket)
        metadata = metadata_of(kwargs)
        ASKING.set(metadata)
        deployments = streaming(deployments, kwargs, group)
        left = await eligible(group, deployments, messages, kwargs)
        retries = (number_of(metadata.get("attempted_retries")), number_of(kwargs.get("fallback_depth")))
        further, asked = retries > ticket.retries, trail_of(ticket).asking
        if self._again is not None:
            self._again.check(ticket, further=further)
        picked = asked.deployment_id if asked is not None else ticket.picked
        if picked is not None and further:
            ticket.failed.add(picked)  # for the failures that LiteLLM reports to no hook
        candidates = tuple(candidate_of(deployment, map_prices, self._secret) for deployment in left)
        if self._scores is not None:
            self._scores.meet(candidates)
        ticket.models.update((candidate.deployment_id, candidate.model) for candidate in candidates)
        ticket.prices = {one.deployment_id: one.prices for one in candidates if one.prices is not None}
        ticket.group = ticket.group or group
        # For other endpoints LiteLLM makes up a message.
        turns: Sequence[Mapping[str, Any]] = ()
        if ticket.endpoint in (None, "text"):
            turns = resolve_structured_messages(messages, kwargs) or gemini_turns(kwargs.get("contents"))
        request = request_of(
            group,
            candidates,
            turns,
            kwargs,
            ticket,
            wish=ticket.wish if isinstance(ticket.wish, Wish) else self._without_headers(metadata),
            retries=retries,
            continues=continued_from(kwargs),
            elsewhere=partial(has_elsewhere, group, deployments, kwargs, ticket),
        )
        ticket.groups.add(group)
        verdict = await self._cascades.route(request, left, kwargs, metadata, ticket) if self._cascades is not None else None
        decision = verdict.decision if verdict is not None else await decider.decide(request, ticket)
        if retries[1] > ticket.retries[1]:
            ticket.fell_back = ticket.attempt_error or "unavailable"
        ticket.decision, ticket.retries = decision, retries
        ticket.picked = decision.order[0] if decision.order else None
        metadata[DECISION_KEY] = decision.decision_id
        self.outcomes.record(decision)
        if verdict is not None:
            _may_go_on(ticket)
            return verdict.deployments
        if decision.fallback == RESTING and self.breakers is not None:
            raise RestingError(group, self.breakers.seconds_left(candidates), ticket.attempt_error)
        dropped = {item.deployment_id for item in decision.dropped if item.reason in NOT_TO_BE_TRIED}
        keep = {ticket.picked} if ticket.picked else {c.deployment_id for c in candidates} - dropped
        if self._again is not None:
            try:
                await self._again.before(ticket, Choices(group, keep, request.elsewhere), further=further)
            except StopError:
                if self.breakers is not None:
                    self.breakers.release(decision.decision_id)
                raise
        known = {candidate.deployment_id: item for item, candidate in zip(left, candidates, strict=True)}
        chosen = [item for name, item in known.items() if name in keep] or deployments
        if self._hedging is None or request.endpoint != "text":
            return chosen
        ids = [name for name in known if name in keep]
        return await self._hedging.serve(Try(ticket, decision, group, ids, known, messages or (), kwargs, metadata)) or chosen

    def _without_headers(self, metadata: Mapping[str, Any]) -> Wish:
        """What key and team ask for, where LiteLLM did not call `async_pre_call_hook`; access fails closed (law 3)."""
        assert self._decider is not None  # noqa: S101 - narrows the type; the caller has looked
        key, team = metadata.get("user_api_key_metadata"), metadata.get("user_api_key_team_metadata")
        return read_wish({}, key, team, admin=False, known=self._decider.knows)

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """A provider is asked now: what a cascade wants asked, the trace, and the usage of a streamed text completion.

        LiteLLM asks for that with chats alone; without it, it counts no cost, and money fails closed (law 3).
        """
        ticket, metadata, kind = current_ticket(), metadata_of(kwargs), getattr(call_type, "value", None)
        changes: dict[str, Any] = {}
        asked = str((kwargs.get("model_info") or {}).get("id") or "")
        runs(ticket)
        if ticket is not None and asked and self._again is not None:
            changes |= self._again.bound(ticket, kwargs)
            trail_of(ticket).asking = Asking(str(metadata.get(DECISION_KEY)), asked, time.monotonic())
        if asked and self.breakers is not None:  # where LiteLLM chose, nobody has said yet whom
            self.breakers.settle(str(metadata.get(DECISION_KEY)), asked)
        if ticket is not None and self.stalls is not None and (kind in TEXT_CALLS or kind in EMBEDDING_CALLS):
            self.stalls.began(ticket, metadata.get(DECISION_KEY), asked, streamed=bool(kwargs.get("stream")))
        messages = None
        if ticket is not None and isinstance(ticket.cascade, State):
            messages = ticket.cascade.messages(metadata.get(DECISION_KEY))
        provider = str(kwargs.get("custom_llm_provider") or str(kwargs.get("model")).partition("/")[0])
        if messages is not None:
            changes["messages"] = messages
        elif kind == "atext_completion" and kwargs.get("stream") and provider in TELLS_USAGE:
            changes["stream_options"] = {**(kwargs.get("stream_options") or {}), "include_usage": True}
        if self._spans is not None and ticket is not None:
            headers: dict[str, str] = {}
            if kind in TEXT_CALLS or kind in EMBEDDING_CALLS:
                headers = self._spans.begin(ticket, metadata.get(DECISION_KEY), metadata.get("model_group"))
            if self._forward_request_id and ticket.request_id is not None:
                headers["x-request-id"] = ticket.request_id
            if headers:
                changes["headers"] = {**(kwargs.get("headers") or {}), **headers}
        return {**kwargs, **changes} if changes else None

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """One attempt failed: remember the deployment, so that this request does not try it again."""
        self.outcomes.attempt_failed(request_data, exception)

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> HTTPException | None:
        """The request ended badly, after all attempts; LiteLLM's log event would come for attempts that were retried, too."""
        self.outcomes.request_failed(original_exception)
        if not isinstance(original_exception, RestingError):
            return None
        ticket = current_ticket()
        return original_exception.answer(trail_of(ticket).told() if ticket is not None else "")

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """An answer is given, not streamed: of a hedged request with the tokens that LiteLLM is not to count twice."""
        ticket = current_ticket()
        return with_usage(ticket.hedge, response) if ticket is not None and ticket.hedge is not None else response

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: datetime, end_time: datetime
    ) -> None:
        """The request ended well (streamed ones after the last chunk)."""
        self.outcomes.answered(kwargs, response_obj, start_time, end_time)


router_hook = RouterHook()
"""The instance that the effective configuration names."""
