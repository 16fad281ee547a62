"""A receiver that speaks Langfuse's wire protocol, and can be down, slow or lying.

`POST /api/public/otel/v1/traces` takes OTLP over HTTP (protobuf, gzip or not), `POST /api/public/ingestion` a batch of JSON
events (answered 207, each event told), `GET /api/public/projects` names the project of the keys. Basic authentication by a
project's public and secret key; anybody else gets 401, and what they sent is not kept. The protocol: langfuse.com/docs/api.
`POST /hook` takes what LiteLLM's callback `generic_api` sends, from anybody, and `POST /api/v1/runs/batch` what
`langsmith` sends.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.ports import free_port

__all__ = ["Fault", "Langfuse", "Project", "langfuse"]

Fault = Literal["", "refuse", "hang", "error", "garbage", "drop"]
"""`refuse`: nobody listens. `hang`: takes the request and never answers. `error`: 500. `garbage`: bytes that are no HTTP.
`drop`: says that it has taken everything, and keeps nothing."""

TRACES, INGESTION, PROJECTS = "/api/public/otel/v1/traces", "/api/public/ingestion", "/api/public/projects"
HOOK, LANGSMITH = "/hook", "/api/v1/runs/batch"


class Project:
    """What arrived for one project of a server.

    Args:
        host: base URL of the server.
        name: the project's; its keys are made of it.
    """

    def __init__(self, host: str, name: str) -> None:
        self.host, self.name = host, name
        self.public_key, self.secret_key = f"pk-lf-{name}", f"sk-lf-{name}-secret"
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._events: list[dict[str, Any]] = []

    @property
    def variables(self) -> dict[str, str]:
        """What a team's or key's `callback_vars` say to reach it."""
        return {
            "langfuse_public_key": self.public_key,
            "langfuse_secret_key": self.secret_key,
            "langfuse_host": self.host,
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same for the whole gateway."""
        return {"LANGFUSE_PUBLIC_KEY": self.public_key, "LANGFUSE_SECRET_KEY": self.secret_key, "LANGFUSE_HOST": self.host}

    def spans(self) -> list[Span]:
        """What arrived by OTLP, in that order."""
        with self._lock:
            return list(self._spans)

    def events(self) -> list[dict[str, Any]]:
        """What arrived by the ingestion API."""
        with self._lock:
            return list(self._events)

    def text(self) -> str:
        """Everything that was kept, as text to search in."""
        return "\n".join([*(str(span) for span in self.spans()), *(json.dumps(event) for event in self.events())])

    def clear(self) -> None:
        """Forget what was kept."""
        with self._lock:
            self._spans, self._events = [], []

    def take(self, path: str, body: bytes, *, keep: bool) -> tuple[int, str, bytes]:
        """Status, type and body of the answer to what an owner of the keys sent."""
        with self._lock:
            if path == TRACES:
                request = ExportTraceServiceRequest.FromString(body)
                if keep:
                    self._spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
                return 200, "application/x-protobuf", ExportTraceServiceResponse().SerializeToString()
            events = json.loads(body)["batch"]
            if keep:
                self._events += events
            told = {"successes": [{"id": event["id"], "status": 201} for event in events], "errors": []}
            return 207, "application/json", json.dumps(told).encode()


class Langfuse:
    """One server.

    Args:
        names: its projects.
    """

    def __init__(self, *names: str) -> None:
        self._let_go = threading.Event()
        self._fault: Fault = ""
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.refused: list[str] = []
        """Public keys of those who were turned away; empty where there was none."""
        self.hooked: list[dict[str, Any]] = []
        """What arrived at `/hook` and `/api/v1/runs/batch`."""
        self.requests = 0
        """How many requests ever arrived, whatever became of them."""
        self.port = free_port()
        self.projects = {name: Project(self.host, name) for name in names}
        self._listen()

    @property
    def hook(self) -> str:
        """Where `generic_api` is to send to (`GENERIC_LOGGER_ENDPOINT`)."""
        return self.host + HOOK

    @property
    def host(self) -> str:
        """Base URL, as `LANGFUSE_HOST` and `langfuse_host` want it."""
        return f"http://127.0.0.1:{self.port}"

    def __getitem__(self, name: str) -> Project:
        return self.projects[name]

    def fault(self, fault: Fault) -> None:
        """Misbehave from now on, or (with an empty word) behave again; requests that hang are cut."""
        self._fault = fault
        self._let_go.set()
        self._let_go = threading.Event()
        if fault == "refuse":
            self.close()
        elif self._server is None:
            self._listen()

    def close(self) -> None:
        """Stop listening."""
        self._let_go.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
        self._server = self._thread = None

    def _listen(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no output of a test."""


def _handler(owner: Langfuse) -> type[BaseHTTPRequestHandler]:
    keys = {f"{project.public_key}:{project.secret_key}": project for project in owner.projects.values()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            project = self._admitted()
            if project is not None:
                found = [{"id": project.name, "name": project.name}] if self.path == PROJECTS else []
                self._answer(200, "application/json", json.dumps({"data": found}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path in (HOOK, LANGSMITH) and owner._fault in ("", "drop"):
                given = json.loads(body) if not owner._fault else []
                owner.hooked += given["post"] if isinstance(given, dict) else given
                self._answer(200, "application/json", b"{}")
                return
            project = self._admitted()
            if project is None:
                return
            if self.path not in (TRACES, INGESTION):
                self._answer(404, "application/json", b"{}")
                return
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            self._answer(*project.take(self.path, body, keep=owner._fault != "drop"))

        def _admitted(self) -> Project | None:
            """The project whose keys were given; None: it has been answered, or will never be."""
            owner.requests += 1
            fault, let_go = owner._fault, owner._let_go
            if fault == "refuse":
                pass  # on a connection from before
            elif fault == "hang":
                let_go.wait(600)
            elif fault == "garbage":
                self.wfile.write(b"\x00\xff this is no HTTP \r\n\r\n" * 20)
            elif fault == "error":
                self._answer(500, "text/html", b"<h1>Internal Server Error</h1>")
                return None
            else:
                given = ""
                with contextlib.suppress(ValueError):
                    given = base64.b64decode(self.headers.get("authorization", "").partition(" ")[2]).decode(errors="replace")
                if given in keys:
                    return keys[given]
                owner.refused.append(given.partition(":")[0])
                self._answer(401, "application/json", b'{"message": "Invalid credentials"}')
                return None
            self.close_connection = True
            return None

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Tests' output is not its access log."""

    return Handler


@contextlib.contextmanager
def langfuse(*projects: str) -> Iterator[Langfuse]:
    """One that listens until the end of the block."""
    server = Langfuse(*projects)
    try:
        yield server
    finally:
        server.close()
