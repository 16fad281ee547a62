"""Spans that are over when they are made: what the SDK does for open ones is for nothing then.

The SDK's span is guarded by a lock, cleans and copies each attribute, and asks the sampler; three of those a request were the
dearest part of our telemetry (seven times what is left of it). Here a span is made once, of values of the right types, and
handed to the processors of LiteLLM's provider (batching, destinations of teams, baggage) as the SDK would. Whether it is
recorded is the parent's matter, as with any sampler that decides by the trace.

Import it where spans are made: it brings the SDK.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from opentelemetry.sdk.trace import Event, ReadableSpan, Span, Tracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode
from opentelemetry.util.types import AttributeValue

__all__ = ["Recorder"]

_ERROR, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)


class _Recorded(ReadableSpan):
    """What processors see; at its start they may add to it, as LiteLLM's does with baggage."""

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        cast("dict[str, AttributeValue]", self._attributes)[key] = value


class Recorder:
    """Makes spans of one instrumentation scope.

    Args:
        tracer: whose processors, ids and resource they get.
        scope: name of the scope.
    """

    def __init__(self, tracer: Tracer, scope: str) -> None:
        self._processor, self._ids, self._resource = tracer.span_processor, tracer.id_generator, tracer.resource
        self._scope = InstrumentationScope(scope)

    def below(self, parent: SpanContext) -> SpanContext:
        """Ids of a new span under `parent`."""
        return SpanContext(parent.trace_id, self._ids.generate_span_id(), False, parent.trace_flags, parent.trace_state)

    def record(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext,
        attributes: dict[str, AttributeValue],
        times: tuple[int, int],
        *,
        failed: bool = False,
        events: Sequence[tuple[str, int, dict[str, AttributeValue]]] = (),
    ) -> None:
        """Hand over one span.

        Args:
            name: of the span.
            context: of `below`.
            parent: its parent's.
            attributes: texts, numbers, and tuples of them; belong to the span from here on.
            times: beginning and end, nanoseconds since the epoch.
            failed: its status is ERROR.
            events: name, time (nanoseconds since the epoch), attributes.
        """
        span = _Recorded(
            name=name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            events=tuple(Event(event, about, timestamp=moment) for event, moment, about in events),
            status=_ERROR if failed else _UNSET,
            start_time=times[0],
            end_time=times[1],
            instrumentation_scope=self._scope,
        )
        self._processor.on_start(cast("Span", span))
        self._processor.on_end(span)
