"""Spans of what was decided and tried, made from the leaf records, in the trace that LiteLLM's server span began.

LiteLLM owns the provider, the server span and the spans of its own phases; ours stand between them and go where they go. Where
nobody asked for traces, or the request's trace is not recorded, a record costs one look at a context variable.

Each span is made when it is over (`recorded_span`). `pointsman.attempt` gets its ids while the provider is asked, so that what
is sent there can name it as the parent: `begin` opens it, the attempt's record ends it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from pointsman.decisions.ticket import Ticket, current_ticket
from pointsman.decisions.types import Attempt, Decision, Outcome

if TYPE_CHECKING:
    from pointsman.callbacks.recorded_span import Recorder

__all__ = ["MAX_ITEMS", "SCOPE", "RequestSpans", "given"]

logger = logging.getLogger("pointsman.spans")

SCOPE = "pointsman"
"""Name of the instrumentation scope of every span of ours."""
MAX_ITEMS = 64
"""Candidates that one span tells of; the best ones."""
MAX_OPEN = 16
"""Attempts of one request that may be open at a time."""
MAX_NAME = 256
"""Characters of a name that a client may have chosen (a group with a wildcard)."""
BREAKER = "pointsman.breaker"
"""Name of the event on a span in which a breaker went to another state."""
_Event: TypeAlias = tuple[str, int, dict[str, AttributeValue]]
_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _Open:
    """An attempt under way; `started` in nanoseconds since the epoch."""

    recorder: Recorder
    context: SpanContext
    parent: SpanContext
    decision_id: str
    request_id: str | None
    model: str | None
    started: int

    def end(
        self, values: Mapping[str, AttributeValue | None], end: int, *, failed: bool, events: Sequence[_Event] = ()
    ) -> None:
        """It is over; `end` as `started`."""
        model = self.model[:MAX_NAME] if self.model else None
        about: dict[str, AttributeValue | None] = {
            "pointsman.decision.id": self.decision_id,
            "pointsman.request.id": self.request_id,
            "gen_ai.request.model": model,
        }
        times = (self.started, max(self.started, end))
        values = given(about | dict(values))
        self.recorder.record("pointsman.attempt", self.context, self.parent, values, times, failed=failed, events=events)

    def abandon(self) -> None:
        """Nobody will tell how it ended."""
        self.end({"pointsman.attempt.outcome": "abandoned"}, time.time_ns(), failed=True)


class RequestSpans:
    """One a worker; `record` is a sink of leaf records.

    Args:
        propagate: whether providers are told of the trace (`telemetry.traces.propagate`).
        tracer: for tests; else the one of the global provider, which LiteLLM publishes.
    """

    def __init__(self, *, propagate: bool = True, tracer: Tracer | None = None) -> None:
        self._propagate = propagate
        self._tracer = tracer
        self._made: Recorder | None = None
        self._foreign = False

    def record(self, record: Decision | Attempt | Outcome) -> None:
        """See the class. Neither blocks nor raises."""
        if isinstance(record, Decision):
            current = trace.get_current_span()
            if (recorder := self._recorder(current)) is not None:
                self._route(recorder, record, current.get_span_context())
            return
        ticket = current_ticket()
        if ticket is None or not ticket.spans:
            return
        if isinstance(record, Attempt):
            self._end(ticket.spans.pop(record.decision_id, None), record)
        else:
            self._close(ticket, record)

    def begin(self, ticket: Ticket, decision_id: str | None, model: str | None) -> dict[str, str]:
        """A provider is asked now: the headers that tell it of the trace, empty where there is none.

        Args:
            ticket: the request's.
            decision_id: the decision that the attempt follows, or None for a call that is no attempt of the client's.
            model: model group.
        """
        current = trace.get_current_span()
        parent = context = current.get_span_context()
        if not parent.is_valid:
            return {}
        if decision_id is not None and (recorder := self._recorder(current)) is not None:
            known = ticket.spans.get(decision_id)  # LiteLLM may come twice: /v1/messages by way of /v1/responses
            if isinstance(known, _Open):
                context = known.context
            elif len(ticket.spans) < MAX_OPEN:
                context = recorder.below(parent)
                request_id = ticket.request_id or (ticket.decision.request_id if ticket.decision is not None else None)
                ticket.spans[decision_id] = _Open(recorder, context, parent, decision_id, request_id, model, time.time_ns())
        if not self._propagate:
            return {}
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, context=trace.set_span_in_context(NonRecordingSpan(context)))
        return headers

    @staticmethod
    def traceparent() -> str | None:
        """What names the span in which this is called as a parent (W3C Trace Context); None: there is none."""
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers)
        return headers.get("traceparent")

    def queued(self, ticket: Ticket, group: str, priority: str, start: int, error: str | None = None) -> None:
        """A request has waited for its turn.

        Args:
            ticket: the request's.
            group: model group that is asked for.
            priority: its class, e.g. `high`.
            start: when the wait began, in nanoseconds since the epoch.
            error: code of the refusal, if it is one.
        """
        current = trace.get_current_span()
        if (recorder := self._recorder(current)) is None:
            return
        parent = current.get_span_context()
        values: dict[str, AttributeValue | None] = {
            "pointsman.request.id": ticket.request_id,
            "gen_ai.request.model": group[:MAX_NAME],
            "pointsman.queue.priority": priority,
            "error.type": error,
        }
        times = (start, max(start, time.time_ns()))
        recorder.record("pointsman.queue", recorder.below(parent), parent, given(values), times, failed=error is not None)

    def _recorder(self, current: Span) -> Recorder | None:
        """What makes spans under this one, if it is recorded; the SDK is imported when the first is."""
        if not current.is_recording():
            return None
        if self._made is None and not self._foreign:
            from opentelemetry.sdk.trace import Tracer as SdkTracer

            from pointsman.callbacks.recorded_span import Recorder

            tracer = self._tracer or trace.get_tracer_provider().get_tracer(SCOPE)
            if isinstance(tracer, SdkTracer):
                self._made = Recorder(tracer, SCOPE)
            else:
                self._foreign = True
                logger.error("no spans of routing: %s is no tracer of OpenTelemetry's SDK", type(tracer).__qualname__)
        return self._made

    def _route(self, recorder: Recorder, decision: Decision, parent: SpanContext) -> None:
        end = time.time_ns()
        start = end - decision.microseconds * 1000
        ranked = sorted(decision.scores.items(), key=lambda item: -item[1])[:MAX_ITEMS]
        dropped = decision.dropped[:MAX_ITEMS]
        group, strategic = decision.group[:MAX_NAME], decision.strategy is not None
        ticket = current_ticket()
        values: dict[str, AttributeValue | None] = {
            "pointsman.decision.id": decision.decision_id,
            "pointsman.request.id": decision.request_id,
            "pointsman.strategy.name": decision.strategy,
            "pointsman.strategy.version": decision.version,
            "pointsman.strategy.variant": decision.variant if strategic else None,
            "pointsman.route.group": group,
            "pointsman.route.chosen_by": decision.chosen_by,
            "pointsman.route.candidates": tuple(name for name, _ in ranked) or None,
            "pointsman.route.scores": tuple(float(score) for _, score in ranked) or None,
            "pointsman.route.scale": decision.scale,
            "pointsman.route.dropped": tuple(item.deployment_id for item in dropped) or None,
            "pointsman.route.dropped_reasons": tuple(item.reason for item in dropped) or None,
            "pointsman.route.pick": decision.order[0] if decision.order else None,
            "pointsman.route.model": decision.model,
            "pointsman.route.policy": decision.policy if strategic else None,
            "pointsman.route.propensity": decision.propensity,
            "pointsman.route.fallback": decision.fallback,
            "pointsman.route.microseconds": decision.microseconds,
            "pointsman.route.fell_back": ticket.fell_back if ticket is not None else None,
            "gen_ai.request.model": group,
        }
        context = recorder.below(parent)
        if (encoded := decision.encoded) is not None:
            about: dict[str, AttributeValue | None] = {
                "pointsman.decision.id": decision.decision_id,
                "pointsman.request.id": decision.request_id,
                "pointsman.encoder.kind": encoded.encoder,
                "pointsman.encoder.dimensions": encoded.dimensions,
            }
            times = (start + encoded.begin * 1000, start + encoded.end * 1000)
            recorder.record("pointsman.encode", recorder.below(context), context, given(about), times)
        recorder.record("pointsman.route", context, parent, given(values), (start, end), events=_breaker_events(ticket))

    def _end(self, span: object, attempt: Attempt) -> None:
        if not isinstance(span, _Open):
            return
        values: dict[str, AttributeValue | None] = {
            "pointsman.attempt.number": attempt.number,
            "pointsman.attempt.outcome": attempt.outcome,
            "pointsman.attempt.flaw": attempt.flaw,
            "pointsman.deployment.id": attempt.deployment_id,
            "pointsman.deployment.model": attempt.model,
            "error.type": attempt.error,
            "http.response.status_code": attempt.status,
        }
        failed, events = attempt.outcome == "error", _breaker_events(current_ticket())
        span.end(values, int(attempt.created_at * 1e9), failed=failed, events=events)

    def _close(self, ticket: Ticket, outcome: Outcome) -> None:
        """The request is over. An open attempt that nobody told of was answered from the cache, or given up."""
        for decision_id, span in list(ticket.spans.items()):
            if outcome.status == "success" and decision_id != outcome.decision_id:
                continue  # another call of the same HTTP request
            del ticket.spans[decision_id]
            if outcome.status != "success":
                span.abandon()


def _breaker_events(ticket: Ticket | None) -> Sequence[_Event]:
    """What became of breakers in this request and was not told yet."""
    if ticket is None or not ticket.breaker_changes:
        return ()
    changes, ticket.breaker_changes = ticket.breaker_changes, []
    names = ("pointsman.upstream", "pointsman.breaker.before", "pointsman.breaker.state", "pointsman.breaker.cause")
    return tuple((BREAKER, moment, given(dict(zip(names, values, strict=True)))) for moment, *values in changes)


def given(values: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    """Without those that are not known."""
    return {name: value for name, value in values.items() if value is not None}
