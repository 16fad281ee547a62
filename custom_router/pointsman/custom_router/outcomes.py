"""How it went: what LiteLLM's hooks tell of attempts and requests becomes `Attempt` and `Outcome` records, given to the sinks.

The hook (`hook.py`) is LiteLLM's entry point and hands on what it is told; here it is judged and recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pointsman.custom_router.cascades.replay import PROVIDER
from pointsman.custom_router.cascades.service import State
from pointsman.custom_router.cost import always_strong
from pointsman.custom_router.failover.stop import StopError
from pointsman.custom_router.failover.trail import Trail, note, trail_of
from pointsman.custom_router.flaws import MALFORMED, flaw_of, malformed
from pointsman.custom_router.hedging.calls import Answer
from pointsman.custom_router.kwargs import DECISION_KEY, metadata_of, number_of
from pointsman.custom_router.verdicts import retry_after_of
from pointsman.decisions import Attempt, Decision, Outcome
from pointsman.decisions.ticket import Ticket, current_ticket

__all__ = ["Outcomes"]

SPENT = "BudgetExceededError"
"""LiteLLM's error of a request whose budget is spent."""


def _cascade_cost(ticket: Ticket | None) -> float:
    return ticket.cascade.cost if ticket is not None and isinstance(ticket.cascade, State) else 0.0


def _status(exception: Exception) -> int | None:
    status = getattr(exception, "status_code", None)
    return status if isinstance(status, int) else None


def _milliseconds(begin: datetime, end: datetime) -> float:
    return (end.timestamp() - begin.timestamp()) * 1000


def _between(begin: datetime, moment: datetime, end: datetime) -> bool:
    return begin.timestamp() <= moment.timestamp() <= end.timestamp()


def _first_token(kwargs: Mapping[str, Any], began: datetime, ended: datetime) -> float | None:
    """Milliseconds to the first chunk of a streamed answer; LiteLLM tells of others that they began when they ended."""
    first = kwargs.get("completion_start_time") if kwargs.get("stream") else None
    return _milliseconds(began, first) if isinstance(first, datetime) and _between(began, first, ended) else None


def _explain(ticket: Ticket, exception: Exception) -> None:
    """Say in a failed request's error what was tried and what ended it, as LiteLLM says there what it fell back to."""
    trail, message = ticket.trail, getattr(exception, "message", None)
    if not isinstance(trail, Trail) or not isinstance(message, str):
        return
    stopped = isinstance(exception, StopError)
    words = " ".join(filter(None, (trail.told(), exception.why if isinstance(exception, StopError) else "")))
    if words and (stopped or len(trail.tried) > 1 or trail.broken):
        exception.message = f"{message}\n\n{words}"  # type: ignore[attr-defined] # it has one
    if isinstance(exception, StopError):
        exception.settle()


def _given_again(ticket: Ticket | None, deployment_id: object) -> Answer | None:
    """Whose answer it is that was given by the replaying provider, of a hedged request."""
    answer = getattr(ticket.hedge, "answer", None) if ticket is not None else None
    return answer if isinstance(answer, Answer) and str(deployment_id).startswith(PROVIDER) else None


class Outcomes:
    """Records what happened.

    Args:
        sinks: where records go; each call neither blocks nor raises.
        answered: told of each answer (ticket, deployment id, prompt tokens, completion tokens), to learn from.
        streams: told of each stream that broke: its model, and whether there had been content.
    """

    def __init__(
        self,
        sinks: Sequence[Callable[[Decision | Attempt | Outcome], None]] = (),
        answered: Callable[[Ticket | None, str, int, int], None] | None = None,
        streams: Callable[[str, bool], None] | None = None,
    ) -> None:
        self.sinks = tuple(sinks)
        self._answered, self._streams = answered, streams

    def record(self, record: Decision | Attempt | Outcome) -> None:
        """Give a record to all sinks."""
        for put in self.sinks:
            put(record)

    def attempt_failed(self, request_data: Mapping[str, Any], exception: Exception) -> None:
        """One attempt failed: remember the deployment, so that this request does not try it again."""
        ticket = current_ticket()
        metadata = metadata_of(request_data)
        info = request_data.get("model_info") or metadata.get("model_info") or {}
        deployment_id = str(info.get("id") or "") if isinstance(info, Mapping) else ""
        if ticket is None or ticket.decision is None or not deployment_id:
            return
        # The metadata's, not the ticket's: one HTTP request may make several calls of the router.
        self._failed(ticket, metadata.get(DECISION_KEY) or ticket.decision.decision_id, deployment_id, exception)

    def stream_failed(self, ticket: Ticket, exception: Exception, *, broken: bool) -> None:
        """A stream failed, of which LiteLLM tells no hook of attempts; `broken`: after its first content."""
        asking = trail_of(ticket).asking
        if asking is None:
            return
        if self._streams is not None:
            self._streams(ticket.models.get(asking.deployment_id) or "", broken)
        self._failed(ticket, asking.decision_id, asking.deployment_id, exception, broken=broken)

    def call_failed(self, ticket: Ticket, decision_id: str, deployment_id: str, error: Exception, *, hedge: bool) -> None:
        """A call that was made within the routing of a request failed; `hedge`: another one was made beside it."""
        self._failed(ticket, decision_id, deployment_id, error, hedge=hedge)

    def cut(self, ticket: Ticket, exception: Exception) -> None:
        """The try that is under way was ended because its request's time is over; it says nothing of the upstream."""
        trail = trail_of(ticket)
        if trail.asking is not None:
            trail.shortened = True
            self._failed(ticket, trail.asking.decision_id, trail.asking.deployment_id, TimeoutError(str(exception)))

    def given_up(self, ticket: Ticket, exception: Exception) -> None:
        """The try that is under way was ended because its upstream hangs."""
        asking = trail_of(ticket).asking
        if asking is not None:
            self._failed(ticket, asking.decision_id, asking.deployment_id, exception)

    def _failed(
        self,
        ticket: Ticket,
        decision_id: str,
        deployment_id: str,
        exception: Exception,
        *,
        broken: bool = False,
        hedge: bool = False,
    ) -> None:
        trail = trail_of(ticket)
        if (decision_id, deployment_id) in trail.ended:
            return  # LiteLLM tells of a call within a call twice
        trail.ended.add((decision_id, deployment_id))
        retry_after = retry_after_of(exception)
        note(ticket, deployment_id, exception, time.monotonic(), retry_after)
        ticket.failed.add(deployment_id)
        ticket.attempt_error = type(exception).__name__
        ticket.attempt += 1
        self.record(
            Attempt(
                decision_id=decision_id,
                number=ticket.attempt,
                deployment_id=deployment_id,
                model=ticket.models.get(deployment_id),
                outcome="error",
                error=type(exception).__name__,
                status=_status(exception),
                retry_after=retry_after,
                callers_timeout=ticket.callers_timeout or trail.shortened,
                callers_connection=ticket.callers_connection,
                broken=broken,
                hedge=hedge,
                flaw=MALFORMED if malformed(exception) else None,
            )
        )

    def request_failed(self, exception: Exception) -> None:
        """The request ended badly, after all attempts; of one that is begun anew nothing has ended."""
        ticket = current_ticket()
        if ticket is None or ticket.repeat:
            return
        cause = exception.cause if isinstance(exception, StopError) else None
        ticket.error = type(cause or exception).__name__
        _explain(ticket, exception)
        if type(exception).__name__ == SPENT:
            ticket.budget = str(getattr(exception, "entity_type", None) or "other").lower()
        if ticket.decision is None or ticket.closed:
            return
        ticket.closed = True
        self.record(
            Outcome(
                decision_id=ticket.decision.decision_id,
                status="failure",
                deployment_id=ticket.picked,
                cost=_cascade_cost(ticket),
                latency_ms=(time.monotonic() - ticket.started) * 1000,
            )
        )

    def answered(self, kwargs: Mapping[str, Any], response: object, start_time: datetime, end_time: datetime) -> None:
        """The request ended well (streamed ones after the last chunk)."""
        params = kwargs.get("litellm_params") or {}
        decision_id = metadata_of(params).get(DECISION_KEY)
        if not isinstance(decision_id, str):
            return
        payload: Mapping[str, Any] = kwargs.get("standard_logging_object") or {}
        latency_ms = _milliseconds(start_time, end_time)
        deployment_id = payload.get("model_id") or (params.get("model_info") or {}).get("id")
        ticket = current_ticket()
        trail = trail_of(ticket) if ticket is not None else None
        broken = trail is not None and trail.broken
        paid, strong = float(payload.get("response_cost") or 0.0), None
        tokens = number_of(payload.get("prompt_tokens")), number_of(payload.get("completion_tokens"))
        given = _given_again(ticket, deployment_id)
        if given is not None:
            deployment_id, paid, tokens = given.deployment_id, given.cost, given.tokens
        # A cache hit has a decision and an outcome, but nobody was tried.
        if deployment_id and not (kwargs.get("cache_hit") or payload.get("cache_hit") or broken):
            if self._answered is not None:
                self._answered(ticket, deployment_id, *tokens)
            number = ticket.attempt + 1 if ticket is not None else 1
            model = ticket.models.get(deployment_id) if ticket is not None else payload.get("litellm_model_name")
            # LiteLLM's start is the request's; attempts that failed before this one are not its own time.
            began = kwargs.get("api_call_start_time")
            began = began if isinstance(began, datetime) and _between(start_time, began, end_time) else start_time
            self.record(
                Attempt(
                    decision_id,
                    number,
                    deployment_id,
                    model,
                    "ok",
                    latency_ms=_milliseconds(began, end_time) if given is None else given.milliseconds,
                    created_at=end_time.timestamp(),
                    first_token_ms=_first_token(kwargs, began, end_time),
                    prompt_tokens=tokens[0] or None,
                    completion_tokens=tokens[1] or None,
                    flaw=flaw_of(response, kwargs.get("optional_params") or {}),
                    hedge=given is not None and given.hedged,
                )
            )
            if ticket is not None:
                strong = always_strong(ticket.prices, deployment_id, *tokens, paid)
        if ticket is not None:
            ticket.closed = True
        self.record(
            Outcome(
                decision_id=decision_id,
                status="failure" if broken else "success",
                deployment_id=deployment_id,
                prompt_tokens=tokens[0],
                completion_tokens=tokens[1],
                cost=paid + _cascade_cost(ticket),
                latency_ms=latency_ms,
                strong_cost=strong,
            )
        )
