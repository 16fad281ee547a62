"""Spans of what was decided and tried, made from the leaf records, in the trace that LiteLLM's server span began.

LiteLLM owns the provider, the server span and the spans of its own phases; ours stand between them and go where they go. Where
nobody asked for traces, or the request's trace is not recorded, a record costs one look at a context variable.

`pointsman.route` (and `pointsman.encode` in it) is made when it is over. `pointsman.attempt` is open while the provider is
asked, so that what is sent there can name it as the parent: `begin` opens it, the attempt's record ends it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from pointsman.decisions.ticket import Ticket, current_ticket
from pointsman.decisions.types import Attempt, Decision, Outcome

__all__ = ["MAX_ITEMS", "SCOPE", "RequestSpans", "given"]

SCOPE = "pointsman"
"""Name of the instrumentation scope of every span of ours."""
MAX_ITEMS = 64
"""Candidates that one span tells of; the best ones."""
MAX_OPEN = 16
"""Attempts of one request that may be open at a time."""
_PROPAGATOR = TraceContextTextMapPropagator()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


class RequestSpans:
    """One a worker; `record` is a sink of leaf records.

    Args:
        propagate: whether providers are told of the trace (`telemetry.traces.propagate`).
        tracer: for tests; else the one of the global provider, which LiteLLM publishes.
    """

    def __init__(self, *, propagate: bool = True, tracer: Tracer | None = None) -> None:
        self._propagate = propagate
        self._tracer = tracer or trace.get_tracer(SCOPE)

    def record(self, record: Decision | Attempt | Outcome) -> None:
        """See the class. Neither blocks nor raises."""
        if isinstance(record, Decision):
            if trace.get_current_span().is_recording():
                self._route(record)
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
        if not current.get_span_context().is_valid:
            return {}
        span: Span = current
        if current.is_recording() and decision_id is not None:
            known = ticket.spans.get(decision_id)  # LiteLLM may come twice: /v1/messages by way of /v1/responses
            if isinstance(known, Span):
                span = known
            elif len(ticket.spans) < MAX_OPEN:
                span = self._tracer.start_span("pointsman.attempt", kind=SpanKind.INTERNAL)
                span.set_attribute("pointsman.decision.id", decision_id)
                if model:
                    span.set_attribute("gen_ai.request.model", model)
                ticket.spans[decision_id] = span
        if not self._propagate:
            return {}
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, context=trace.set_span_in_context(span))
        return headers

    def _route(self, decision: Decision) -> None:
        end = time.time_ns()
        start = end - decision.microseconds * 1000
        ranked = sorted(decision.scores.items(), key=lambda item: -item[1])[:MAX_ITEMS]
        dropped = decision.dropped[:MAX_ITEMS]
        values: dict[str, AttributeValue | None] = {
            "pointsman.decision.id": decision.decision_id,
            "pointsman.request.id": decision.request_id,
            "pointsman.strategy.name": decision.strategy,
            "pointsman.strategy.version": decision.version,
            "pointsman.strategy.variant": decision.variant if decision.strategy is not None else None,
            "pointsman.route.group": decision.group,
            "pointsman.route.chosen_by": decision.chosen_by,
            "pointsman.route.candidates": [name for name, _ in ranked] or None,
            "pointsman.route.scores": [float(score) for _, score in ranked] or None,
            "pointsman.route.scale": decision.scale,
            "pointsman.route.dropped": [item.deployment_id for item in dropped] or None,
            "pointsman.route.dropped_reasons": [item.reason for item in dropped] or None,
            "pointsman.route.pick": decision.order[0] if decision.order else None,
            "pointsman.route.model": decision.model,
            "pointsman.route.policy": decision.policy if decision.strategy is not None else None,
            "pointsman.route.propensity": decision.propensity,
            "pointsman.route.fallback": decision.fallback,
            "pointsman.route.microseconds": decision.microseconds,
            "gen_ai.request.model": decision.group,
        }
        span = self._tracer.start_span("pointsman.route", attributes=given(values), start_time=start)
        if (encoded := decision.encoded) is not None:
            about: dict[str, AttributeValue | None] = {
                "pointsman.strategy.name": decision.strategy,
                "pointsman.strategy.version": decision.version,
                "pointsman.encoder.kind": encoded.encoder,
                "pointsman.encoder.dimensions": encoded.dimensions,
            }
            inner = self._tracer.start_span(
                "pointsman.encode",
                context=trace.set_span_in_context(span),
                attributes=given(about),
                start_time=start + encoded.begin * 1000,
            )
            inner.end(start + encoded.end * 1000)
        span.end(end)

    def _end(self, span: object, attempt: Attempt) -> None:
        if not isinstance(span, Span):
            return
        values: dict[str, AttributeValue | None] = {
            "pointsman.attempt.number": attempt.number,
            "pointsman.attempt.outcome": attempt.outcome,
            "pointsman.deployment.id": attempt.deployment_id,
            "pointsman.deployment.model": attempt.model,
            "error.type": attempt.error,
            "http.response.status_code": attempt.status,
        }
        span.set_attributes(given(values))
        if attempt.outcome != "ok":
            span.set_status(Status(StatusCode.ERROR))
        span.end(_ns(attempt.created_at))

    def _close(self, ticket: Ticket, outcome: Outcome) -> None:
        """The request is over. An open attempt that nobody told of was answered from the cache, or given up."""
        for decision_id, span in list(ticket.spans.items()):
            if outcome.status == "success" and decision_id != outcome.decision_id:
                continue  # another call of the same HTTP request
            del ticket.spans[decision_id]
            if outcome.status != "success" and isinstance(span, Span):
                span.set_attribute("pointsman.attempt.outcome", "abandoned")
                span.set_status(Status(StatusCode.ERROR))
                span.end()


def given(values: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    """Without those that are not known."""
    return {name: value for name, value in values.items() if value is not None}
