"""What stands between spans and the collector: words that may quote a prompt are taken out, and a trace may be dropped.

LiteLLM makes its exporters by kind, and lets others make them (`register_exporter_factory`); ours makes the same ones, with
this in front. It runs in the thread that exports.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status
from opentelemetry.util.types import AttributeValue

from pointsman.callbacks.process_spans import GRPC_KINDS, HTTP_KINDS, traces_endpoint
from pointsman.callbacks.span_sampling import TailSampler
from pointsman.telemetry_settings import TraceSettings

__all__ = ["Scrubber", "ShapedExporter", "close_spans", "install"]

Clean = Callable[[str], str]

_URLS = frozenset({"http.url", "http.target", "url.full"})
_QUERY = "url.query"
_KEY_HASH = "litellm.api_key.hash"
_HASH = re.compile(r"[0-9a-f]{64}")
_SAID = frozenset(
    {"error.message", "exception.message", "exception.stacktrace", "litellm.provider.error.stack_trace", "error.stack_trace"}
)
"""What a provider or library said; it may quote the prompt."""
_CONTENT = (
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.prompt",
    "gen_ai.completion",
    "llm.input_messages",
    "llm.output_messages",
    "llm.prompts",
    "llm.completions",
    "langfuse.observation.input",
    "langfuse.observation.output",
    "weave.output",
    "input.value",
    "output.value",
)
"""Names, or beginnings of names, of attributes that hold what was asked and answered."""


class Scrubber:
    """Takes out of spans what may not leave.

    Args:
        content: prompts and answers may leave (`privacy.capture_prompts`), redacted.
        messages: what providers said may leave, redacted.
        clean: redacts a text.
    """

    def __init__(self, *, content: bool, messages: bool, clean: Clean) -> None:
        self._content, self._messages, self._clean = content, messages, clean

    def __call__(self, span: ReadableSpan) -> ReadableSpan:
        """The span, or a copy without what may not leave."""
        given = span.attributes or {}
        attributes = self._shaped(given)
        events = [self._event(event) for event in span.events]
        status = span.status
        if status.description:
            status = Status(status.status_code, self._clean(status.description) if self._messages else None)
        untouched = attributes is given and all(one is other for one, other in zip(events, span.events, strict=True))
        if untouched and status is span.status:
            return span
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=attributes,
            events=events,
            links=span.links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _event(self, event: Event) -> Event:
        given = event.attributes or {}
        shaped = self._shaped(given)
        return event if shaped is given else Event(event.name, shaped, event.timestamp)

    def _shaped(self, attributes: Mapping[str, AttributeValue]) -> Mapping[str, AttributeValue]:
        changed: dict[str, AttributeValue | None] = {}
        for name, value in attributes.items():
            if name in _URLS:
                if "?" in str(value):  # a key may stand in it
                    changed[name] = str(value).partition("?")[0]
            elif name == _KEY_HASH and _HASH.fullmatch(str(value)) is None:
                changed[name] = None  # LiteLLM hashes what begins with `sk-` alone; another wrong key stands there as it came
            elif name == _QUERY:
                changed[name] = None
            elif name in _SAID:
                changed[name] = self._text(value) if self._messages else None
            elif name.startswith(_CONTENT):
                changed[name] = self._text(value) if self._content else None
        if not changed:
            return attributes
        merged = {**attributes, **changed}
        return {name: value for name, value in merged.items() if value is not None}

    def _text(self, value: AttributeValue) -> AttributeValue:
        if isinstance(value, str):
            return self._clean(value)
        if isinstance(value, Sequence):
            return [self._clean(str(item)) for item in value]
        return value


class ShapedExporter(SpanExporter):
    """An exporter behind a sampler and a scrubber."""

    def __init__(self, inner: SpanExporter, scrub: Scrubber, sampler: TailSampler | None = None) -> None:
        self._inner, self._scrub, self._sampler = inner, scrub, sampler

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        kept = spans if self._sampler is None else self._sampler.take(spans)
        if not kept:
            return SpanExportResult.SUCCESS
        return self._inner.export([self._scrub(span) for span in kept])

    def shutdown(self) -> None:
        """Export what is held and close."""
        if self._sampler is not None and (left := self._sampler.drain()):
            self._inner.export([self._scrub(span) for span in left])
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See `SpanExporter`; requests that have not ended are held on."""
        return self._inner.force_flush(timeout_millis)


def _make(kind: str, wrap: Callable[[SpanExporter], SpanExporter], spec: Any) -> SpanExporter:
    """The exporter that LiteLLM makes of the same description, wrapped."""
    from litellm.integrations.otel.plumbing.providers import parse_headers

    if kind in GRPC_KINDS:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return wrap(GrpcExporter(endpoint=spec.endpoint, headers=parse_headers(spec.headers)))
    from litellm.integrations.otel.plumbing.otlp_tls import resolve_otlp_http_tls
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    tls = resolve_otlp_http_tls("TRACES")
    return wrap(
        HttpExporter(
            endpoint=spec.traces_endpoint or traces_endpoint(spec.endpoint),
            headers=parse_headers(spec.headers),
            certificate_file=tls.certificate_file,
            session=tls.session,
        )
    )


def install(settings: TraceSettings, *, content: bool, messages: bool, clean: Clean) -> bool:
    """Have LiteLLM export through `ShapedExporter`; before it makes its exporters. Whether anybody asked for traces."""
    from litellm.integrations.otel.model.config import is_otel_v2_enabled

    if not is_otel_v2_enabled():
        return False
    from litellm.integrations.otel.plumbing.providers import register_exporter_factory

    def wrap(inner: SpanExporter) -> SpanExporter:
        sampler = None
        if settings.failures:
            limits: dict[str, Any] = {"max_spans": settings.max_spans, "max_age": settings.max_age}
            sampler = TailSampler(settings.ratio, parent=settings.parent, **limits)
        return ShapedExporter(inner, Scrubber(content=content, messages=messages, clean=clean), sampler)

    for kind in (*HTTP_KINDS, *GRPC_KINDS):
        register_exporter_factory(kind, partial(_make, kind, wrap))
    return True


async def close_spans(timeout: float) -> bool:
    """Export what waits and close the exporters, within `timeout` seconds; whether that was enough.

    A worker ends without running what is registered for the end of a process, so LiteLLM's provider would not do it.
    """
    shutdown = getattr(trace.get_tracer_provider(), "shutdown", None)
    if shutdown is None:
        return True
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        try:
            shutdown()
        finally:
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, name="pointsman-spans-close", daemon=True).start()
    try:
        await asyncio.wait_for(done.wait(), timeout)
    except TimeoutError:
        return False
    return True
