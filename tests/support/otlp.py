"""A receiver of OTLP over HTTP (protobuf), as a collector listens on `/v1/traces`: it keeps what arrives."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Receiver", "receiver"]


class Receiver:
    """What arrived, and where to send it (`endpoint`: the base, as `OTEL_EXPORTER_OTLP_ENDPOINT` wants it)."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def take(self, body: bytes) -> None:
        """Keep the spans of one export."""
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self._spans += [s for resource in request.resource_spans for scope in resource.scope_spans for s in scope.spans]

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """All of them, or those of one trace (32 hex digits)."""
        with self._lock:
            return [span for span in self._spans if trace_id is None or span.trace_id.hex() == trace_id]


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """One that listens on a free port until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/v1/traces":
                self.send_error(404)
                return
            kept.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Tests' output is not its access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
