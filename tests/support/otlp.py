"""Receivers of OTLP over HTTP (protobuf) and gRPC, as a collector listens: traces, metrics and logs. They keep what arrives.

`with receiver() as collector:` gives one with two ports; `env("otlp_http")` and `env("otlp_grpc")` are what a gateway is told.
Faults: `collector.refuse(503)`, `collector.refuse_larger(1000)`, `collector.refuse_text("bad")`, `collector.hang()`,
`collector.recover()`; `collector.exports` counts what was tried.
"""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceServicer, add_LogsServiceServicer_to_server
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Item", "Receiver", "attributes", "plain", "receiver"]

SIGNALS: Mapping[str, tuple[Any, Any]] = {
    "/v1/traces": (ExportTraceServiceRequest, ExportTraceServiceResponse),
    "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "/v1/logs": (ExportLogsServiceRequest, ExportLogsServiceResponse),
}
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


def plain(value: AnyValue) -> Any:
    """An attribute's value in Python's types."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def attributes(pairs: Any) -> dict[str, Any]:
    """Attributes (`span.attributes`, `record.attributes`, `resource.attributes`) as a dictionary."""
    found: list[KeyValue] = list(pairs)
    return {pair.key: plain(pair.value) for pair in found}


@dataclass(frozen=True)
class Item:
    """One span, metric or log record, with what stood around it.

    Attributes:
        what: the message itself.
        scope: name of the instrumentation scope (a logger's name, a tracer's).
        resource: the resource's attributes.
        headers: of the export that brought it, lower case.
    """

    what: Any
    scope: str
    resource: dict[str, Any]
    headers: dict[str, str]


class Receiver:
    """What arrived, and where to send it.

    Attributes:
        endpoint: over HTTP, the base, as `OTEL_EXPORTER_OTLP_ENDPOINT` wants it.
        grpc_endpoint: the same over gRPC.
        exports: exports that were tried, those refused counted.
    """

    def __init__(self) -> None:
        self.endpoint = self.grpc_endpoint = ""
        self.exports = 0
        self._lock = threading.Lock()
        self._items: dict[str, list[Item]] = {path: [] for path in SIGNALS}
        self._refuse: int | None = None
        self._largest: int | None = None
        self._text: str | None = None
        self._open = threading.Event()
        self._open.set()

    def env(self, kind: str = "otlp_http") -> dict[str, str]:
        """The environment of a gateway that sends here; `kind`: `otlp_http` or `otlp_grpc`."""
        return {"OTEL_EXPORTER": kind, "OTEL_ENDPOINT": self.endpoint if kind == "otlp_http" else self.grpc_endpoint}

    def refuse(self, status: int = 503) -> None:
        """Answer every export with this status."""
        self._refuse = status

    def refuse_larger(self, size: int) -> None:
        """Answer every export of more bytes than this with 413."""
        self._largest = size

    def refuse_text(self, text: str) -> None:
        """Answer every export that holds this text with 400."""
        self._text = text

    def hang(self) -> None:
        """Answer no export until `recover`."""
        self._open.clear()

    def recover(self) -> None:
        """Be well again; exports that hang are answered, and kept."""
        self._refuse = self._largest = self._text = None
        self._open.set()

    def take(self, path: str, request: Any, headers: Mapping[str, str]) -> int:
        """Keep one export; the HTTP status to answer with."""
        with self._lock:
            self.exports += 1
        self._open.wait()
        if self._refuse is not None:
            return self._refuse
        if self._largest is not None and request.ByteSize() > self._largest:
            return 413
        if self._text is not None and self._text.encode() in request.SerializeToString():
            return 400
        given = {name.lower(): value for name, value in headers.items()}
        found: list[Item] = []
        if path == "/v1/traces":
            groups = [(one, one.scope_spans, "spans") for one in request.resource_spans]
        elif path == "/v1/metrics":
            groups = [(one, one.scope_metrics, "metrics") for one in request.resource_metrics]
        else:
            groups = [(one, one.scope_logs, "log_records") for one in request.resource_logs]
        for one, scopes, field in groups:
            resource = attributes(one.resource.attributes)
            found += [Item(what, scope.scope.name, resource, given) for scope in scopes for what in getattr(scope, field)]
        with self._lock:
            self._items[path] += found
        return 200

    def items(self, path: str) -> list[Item]:
        """Everything of one signal (`/v1/traces`, `/v1/metrics`, `/v1/logs`), in the order of arrival."""
        with self._lock:
            return list(self._items[path])

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """All of them, or those of one trace (32 hex digits)."""
        found = [item.what for item in self.items("/v1/traces")]
        return [span for span in found if trace_id is None or span.trace_id.hex() == trace_id]

    def logs(self, trace_id: str | None = None) -> list[LogRecord]:
        """All log records, or those of one trace."""
        found = [item.what for item in self.items("/v1/logs")]
        return [record for record in found if trace_id is None or record.trace_id.hex() == trace_id]

    def metrics(self, name: str | None = None) -> list[Metric]:
        """All metrics of all exports, oldest first, or those of one name."""
        found = [item.what for item in self.items("/v1/metrics")]
        return [metric for metric in found if name is None or metric.name == name]

    def clear(self) -> None:
        """Forget what arrived."""
        with self._lock:
            for kept in self._items.values():
                kept.clear()


def _http(kept: Receiver) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path not in SIGNALS:
                self.send_error(404)
                return
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            request, answer = SIGNALS[self.path]
            status = kept.take(self.path, request.FromString(body), dict(self.headers.items()))
            said = answer().SerializeToString() if status == 200 else b""
            with contextlib.suppress(OSError):  # who waited too long has left
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Tests' output is not its access log."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def _grpc(kept: Receiver) -> tuple[grpc.Server, int]:
    def export(path: str) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
        def take(_self: Any, request: Any, context: grpc.ServicerContext) -> Any:
            headers = {str(key): str(value) for key, value in context.invocation_metadata()}
            status = kept.take(path, request, headers)
            if status != 200:
                context.abort(CODES.get(status, grpc.StatusCode.UNKNOWN), str(status))
            return SIGNALS[path][1]()

        return take

    def servicer(base: type, path: str) -> Any:
        return type(base.__name__, (base,), {"Export": export(path)})()

    server = grpc.server(ThreadPoolExecutor(8))
    services: tuple[tuple[Any, type, str], ...] = (
        (add_TraceServiceServicer_to_server, TraceServiceServicer, "/v1/traces"),
        (add_MetricsServiceServicer_to_server, MetricsServiceServicer, "/v1/metrics"),
        (add_LogsServiceServicer_to_server, LogsServiceServicer, "/v1/logs"),
    )
    for add, base, path in services:
        add(servicer(base, path), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """One that listens on two free ports until the end of the block."""
    kept = Receiver()
    http = _http(kept)
    rpc, port = _grpc(kept)
    kept.endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    kept.grpc_endpoint = f"http://127.0.0.1:{port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield kept
    finally:
        kept.recover()
        http.shutdown()
        thread.join()
        http.server_close()
        rpc.stop(grace=1).wait()
