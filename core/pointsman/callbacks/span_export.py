"""What stands between spans and the collector: words that may quote a prompt and secrets are taken out, and a trace may be
dropped.

LiteLLM makes its exporters by kind, and lets others make them (`register_exporter_factory`); ours makes the same ones, with
this in front. It runs in the thread that exports.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status
from opentelemetry.util.types import AttributeValue

from pointsman.callbacks.privacy import Redactor
from pointsman.callbacks.process_spans import GRPC_KINDS, HTTP_KINDS, traces_endpoint
from pointsman.callbacks.span_sampling import TailSampler
from pointsman.telemetry_settings import TraceSettings

__all__ = ["Scrubber", "ShapedExporter", "close_spans", "install"]

_URLS = frozenset({"http.url", "http.target", "url.full"})
_URL_REST = re.compile(r"(?<=://)[^/?#]*@|[?#].*", re.DOTALL)
"""Of a URL: user and password, the query, the fragment."""
_QUERY = "url.query"
_KEY_HASH = "litellm.api_key.hash"
_HASH = re.compile(r"[0-9a-f]{64}")
_SAID = frozenset(
    {
        *("error", "error.message", "error.stack_trace", "exception.message", "exception.stacktrace"),
        "litellm.provider.error.stack_trace",
    }
)
"""What a provider or library said; it may quote the prompt."""
_CONTENT = (
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.tool.definitions",
    "gen_ai.prompt",
    "gen_ai.completion",
    "gen_ai.request.stop_sequences",
    "llm.chat.stop_sequences",
    "llm.input_messages",
    "llm.output_messages",
    "llm.prompts",
    "llm.completions",
    "litellm.guardrail.response",
    "langfuse.observation.input",
    "langfuse.observation.output",
    "weave.output",
    "input.value",
    "output.value",
)
"""Names, or beginnings of names, of attributes that hold what was asked and answered."""
_TOOL = re.compile(r"(?:gen_ai\.tool|llm\.request\.functions|llm\.tools)\.\d+\.(?!(?:tool\.)?name$)")
"""What a declared tool is for; its name may leave, as that of one that is called does."""
_MAX_NAMES = 4096


class Scrubber:
    """Takes out of spans what may not leave. Most spans hold nothing of the kind, and that is seen at once.

    Args:
        content: prompts and answers may leave (`privacy.capture_prompts`), redacted.
        messages: what providers said may leave, redacted.
        redactor: of every text that leaves.
    """

    def __init__(self, *, content: bool, messages: bool, redactor: Redactor) -> None:
        self._content, self._messages, self._redactor = content, messages, redactor
        self._plain = {_KEY_HASH}  # names seen whose values are like any other's; a key's hash is looked at nonetheless

    def __call__(self, span: ReadableSpan) -> ReadableSpan:
        """The span, or a copy without what may not leave."""
        given, name, events, status = _plain_dict(span.attributes), span.name, span.events, span.status
        hashed = given.get(_KEY_HASH)
        named = given.keys() <= self._plain and (hashed is None or _HASH.fullmatch(str(hashed)) is not None)
        texts = [name]
        for value in given.values():
            if type(value) is str:
                if value is not hashed:
                    texts.append(value)
            elif type(value) is tuple:
                texts += [item for item in value if type(item) is str]
        dirty = self._dirty("\n".join(texts))
        if named and not dirty and not events and not status.description:
            return span
        attributes = self._shaped(given, dirty)
        if status.description:
            status = Status(status.status_code, self._redactor.text(status.description) if self._messages else None)
        elif attributes == given and not dirty and not events:
            return span
        return ReadableSpan(
            name=self._redactor.text(name) if dirty else name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=attributes,
            events=[self._event(event) for event in events],
            links=span.links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _dirty(self, texts: str) -> bool:
        """Whether something in them may have to be replaced; half a character would cost the whole batch of spans."""
        if not texts.isascii():
            try:
                texts.encode()
            except UnicodeEncodeError:
                return True
        return not self._redactor.nothing_in(texts)

    def _event(self, event: Event) -> Event:
        return Event(self._redactor.text(event.name), self._shaped(dict(event.attributes or {}), dirty=True), event.timestamp)

    def _shaped(self, given: Mapping[str, AttributeValue], dirty: bool) -> dict[str, AttributeValue]:
        shaped = {name: self._named(name, value) for name, value in given.items()}
        return {name: self._text(value) if dirty else value for name, value in shaped.items() if value is not None}

    def _named(self, name: str, value: AttributeValue) -> AttributeValue | None:
        """What may leave of a value that stands under this name."""
        if name == _KEY_HASH:  # LiteLLM hashes what begins with `sk-` alone; another wrong key stands there as it came
            return value if _HASH.fullmatch(str(value)) else None
        if name in self._plain:
            return value
        if name in _URLS:
            return _URL_REST.sub("", str(value))
        if name == _QUERY:
            return None
        if name in _SAID:
            return value if self._messages or not isinstance(value, str) else None
        if name.startswith(_CONTENT) or _TOOL.match(name):
            return value if self._content else None
        if len(self._plain) < _MAX_NAMES:
            self._plain.add(name)
        return value

    def _text(self, value: AttributeValue) -> AttributeValue:
        if isinstance(value, str):
            return self._redactor.text(value)
        if isinstance(value, Sequence):
            return tuple(self._redactor.text(item) if isinstance(item, str) else item for item in value)
        return value


def _plain_dict(attributes: Mapping[str, AttributeValue] | None) -> dict[str, AttributeValue]:
    """A copy; `dict(...)` would ask the SDK's mapping for each name, under its lock."""
    copy = getattr(attributes, "copy", None)
    return cast("dict[str, AttributeValue]", copy()) if copy is not None else dict(attributes or {})


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


def install(settings: TraceSettings, *, content: bool, messages: bool, redactor: Redactor) -> bool:
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
        return ShapedExporter(inner, Scrubber(content=content, messages=messages, redactor=redactor), sampler)

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
