"""Spans of processes in which LiteLLM does not run: reloads in the supervisor, training runs on the command line.

They go where LiteLLM's go, by the same variables (`OTEL_EXPORTER`, `OTEL_ENDPOINT`, `OTEL_HEADERS`, or OpenTelemetry's own
names), in traces of their own. There are few of them, so that all are kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.re import parse_env_headers
from opentelemetry.util.types import AttributeValue

from pointsman.callbacks.spans import SCOPE, given
from pointsman.errors import PointsmanError
from pointsman.strategies.snapshot import Reload

if TYPE_CHECKING:  # the SDK's import takes longer than the start of a gateway without traces should be held up for
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["GRPC_KINDS", "HTTP_KINDS", "ProcessSpans", "traces_endpoint"]

logger = logging.getLogger("pointsman.spans")

HTTP_KINDS = ("otlp_http", "http", "http/protobuf")
GRPC_KINDS = ("otlp_grpc", "grpc")
"""LiteLLM's words for an exporter, as `OTEL_EXPORTER` has them."""
CLOSE_SECONDS = 5.0
_DEFAULT_SERVICE = "pointsman"


def traces_endpoint(endpoint: str | None) -> str | None:
    """Where traces go of a collector's base URL; None: what the exporter itself reads from the environment."""
    if not endpoint:
        return None
    base = endpoint.rstrip("/")
    if base.endswith("/v1/traces") or "/v2/trace/otlp" in base:
        return base
    for other in ("/v1/logs", "/v1/metrics"):
        base = base.removesuffix(other)
    return f"{base}/v1/traces"


class ProcessSpans:
    """See the module; without an exporter it makes nothing.

    Args:
        exporter: where spans go; None: nowhere.
        service: `service.name` of the resource.
        parent: headers of the trace that runs belong to (`traceparent`), as W3C Trace Context has them.
    """

    def __init__(
        self, exporter: SpanExporter | None, service: str = _DEFAULT_SERVICE, parent: Mapping[str, str] | None = None
    ) -> None:
        self._provider: TracerProvider | None = None
        self._parent = TraceContextTextMapPropagator().extract(dict(parent or {}))
        if exporter is not None:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON

            resource = Resource.create({"service.name": service})
            self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))

    @classmethod
    def from_environment(cls, env: Mapping[str, str], configured: Mapping[str, Any] | None = None) -> ProcessSpans:
        """By the variables that LiteLLM reads; of a destination that is no collector (`console`, none) nothing is made.

        Args:
            env: the environment.
            configured: `callback_settings.otel` of the configuration, which comes first.
        """
        own = configured or {}

        def value(field: str, *names: str) -> str | None:
            found = own.get(field) or next((env[name] for name in names if env.get(name)), None)
            return str(found) if found else None

        kind = value("exporter", "OTEL_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL")
        endpoint = value("endpoint", "OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        traces = value("traces_endpoint", "OTEL_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        told = value("headers", "OTEL_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS") or ""
        headers = dict(parse_env_headers(told, liberal=True))
        parent = {name: env[name.upper()] for name in ("traceparent", "tracestate") if env.get(name.upper())}
        exporter: SpanExporter | None = None
        try:
            if kind in GRPC_KINDS:
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

                exporter = GrpcExporter(endpoint=endpoint, headers=headers)
            elif kind in HTTP_KINDS:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

                exporter = HttpExporter(endpoint=traces or traces_endpoint(endpoint), headers=headers)
        except Exception:  # whatever the exporter dislikes of its variables: no span is worth a start
            logger.exception("no spans of reloads and runs: the exporter cannot be made")
        return cls(exporter, value("service_name", "OTEL_SERVICE_NAME") or _DEFAULT_SERVICE, parent)

    @property
    def active(self) -> bool:
        """Whether spans are made."""
        return self._provider is not None

    def reload(self, record: Reload) -> None:
        """A bundle came into service, or was refused. Neither blocks nor raises."""
        if self._provider is None:
            return
        values: dict[str, AttributeValue | None] = {
            "pointsman.strategy.name": record.strategy,
            "pointsman.strategy.version": record.version,
            "pointsman.reload.generation": record.generation,
            "pointsman.reload.previous_version": record.previous_version,
            "error.type": record.error,
        }
        span = self._provider.get_tracer(SCOPE).start_span(
            "pointsman.reload", attributes=given(values), start_time=record.started
        )
        if record.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(record.ended)

    @contextmanager
    def run(self, name: str, **values: AttributeValue | None) -> Iterator[Span]:
        """A span around the block, under the trace of the environment; what the block raises is its error, by class or code.

        Args:
            name: of the span.
            values: attributes, dots as double underscores: `pointsman__train__kind`.
        """
        if self._provider is None:
            yield trace.INVALID_SPAN
            return
        attributes = given({key.replace("__", "."): value for key, value in values.items()})
        span = self._provider.get_tracer(SCOPE).start_span(name, context=self._parent, attributes=attributes)
        try:
            with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                yield span
        except BaseException as error:
            code = error.code if isinstance(error, PointsmanError) else type(error).__name__
            span.set_attribute("error.type", code)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.end()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Send what waits, within `timeout` seconds, and close. Blocking."""
        if self._provider is None:
            return
        thread = threading.Thread(target=self._provider.shutdown, name="pointsman-spans-close", daemon=True)
        thread.start()
        thread.join(timeout)
