"""Shutting down without surprising a client: not ready first, then no new connections, then a limit for those in flight.

`InFlight` is the middleware that knows every request in flight, answers readiness with 503 while draining, and can cut what
outlives the grace period with a proper last event. `DrainingServer` is uvicorn's server with that order of steps.
Both belong to one event loop; of what they hold only the listening socket is shared between workers.

So that a client before us (nginx, an SDK) finds no connection broken under a request: while not ready each answer asks it to
close its connection, which costs nobody a request; then whoever has connected is still served, and later ones are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import orjson
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pointsman.errors import ProcessError, RoutingError

__all__ = ["DrainingServer", "InFlight"]

logger = logging.getLogger("pointsman.drain")

READINESS_PATHS = frozenset({"/health/readiness", "/health/readiness/"})


LINGER = 0.3
"""Seconds for requests on their way over connections that are there when no new ones are accepted."""


class _Request:
    """One request in flight and what of its answer is already out."""

    def __init__(self, send: Send, task: asyncio.Task[Any] | None, draining: Callable[[], bool]) -> None:
        self._send = send
        self._draining = draining
        self._task = task
        self._started = False
        self._stream = False
        self._finished = False
        self.cut_done = False

    async def send(self, message: Message) -> None:
        if self.cut_done:
            return  # what the application still says after the cut is nobody's business
        if message["type"] == "http.response.start":
            self._started = True
            headers = dict(message.get("headers", ()))
            if self._draining():
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            self._stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._finished = True
        await self._send(message)

    async def cut(self) -> None:
        """End the answer: an error event in a stream, a 503 where nothing was said yet, else a closed connection."""
        if self.cut_done or self._finished:
            return
        self.cut_done = True
        error = RoutingError(
            "the gateway is shutting down and the grace period is over", code="E4701", mend="send the request again"
        )
        body = orjson.dumps({"type": "error", **error.as_json()})
        try:
            if not self._started:
                headers = [(b"content-type", b"application/json"), (b"connection", b"close"), (b"retry-after", b"1")]
                await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
                await self._send({"type": "http.response.body", "body": body})
            elif self._stream:
                # `error` inside `data` is what the OpenAI SDK raises on; `event: error` is Anthropic's form.
                event = b"event: error\ndata: " + body + b"\n\n"
                await self._send({"type": "http.response.body", "body": event, "more_body": False})
        finally:
            if self._task is not None:
                self._task.cancel("cut at the end of the grace period")


class InFlight:
    """ASGI middleware: counts requests in flight and cuts them on demand."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._requests: set[_Request] = set()
        self.draining = False
        self.warming = False

    def warm(self) -> None:
        """It may be ready: what it was to wait for has come, or is not waited for any longer."""
        self.warming = False

    @property
    def count(self) -> int:
        """Requests in flight now."""
        return len(self._requests)

    async def cut(self) -> int:
        """Cut everything in flight; returns how many requests that were."""
        requests = list(self._requests)
        await asyncio.gather(*(request.cut() for request in requests), return_exceptions=True)
        return len(requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (self.draining or self.warming) and scope["path"] in READINESS_PATHS:
            await _not_ready(send, "is shutting down" if self.draining else "warms up its local backends")
            return
        task = asyncio.current_task()
        request = _Request(send, task, lambda: self.draining)
        self._requests.add(request)
        try:
            await self._app(scope, receive, request.send)
        except asyncio.CancelledError:
            if not request.cut_done:
                raise
            if task is not None:
                task.uncancel()  # the cancellation was ours and has done its work
        finally:
            self._requests.discard(request)


async def _not_ready(send: Send, why: str) -> None:
    error = ProcessError(f"the gateway {why}", code="E4605", mend="use another instance")
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(error.as_json())})


class DrainingServer(uvicorn.Server):
    """uvicorn's server, whose signals start a drain instead of an exit.

    Args:
        config: uvicorn's configuration; its graceful time-out must be longer than `grace`.
        in_flight: the outermost middleware.
        not_ready: seconds in which readiness says 503 while connections are still accepted.
        grace: seconds in which requests in flight may finish.
        on_started: called once when connections are accepted.
        on_drain: called once when the drain begins, with the seconds until what is then in flight is cut.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        in_flight: InFlight,
        *,
        not_ready: float,
        grace: float,
        on_started: Callable[[], None],
        on_drain: Callable[[float], None] = lambda _: None,
    ) -> None:
        super().__init__(config)
        self._in_flight = in_flight
        self._not_ready = not_ready
        self._grace = grace
        self._on_started = on_started
        self._on_drain = on_drain
        self._drain: asyncio.Task[None] | None = None
        self._everybody = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[Any] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what has connected, refuse what comes later, and give requests on their way time to arrive."""
        await self.stop_accepting(everybody=self._everybody)
        await asyncio.sleep(LINGER)
        await super().shutdown(sockets)

    async def stop_accepting(self, *, everybody: bool = True) -> None:
        """The first step of a shutdown. Of a worker that ends alone others serve the socket, and it is left to them."""
        accepted: list[socket.socket] = []
        shared = [sock for server in self.servers for sock in server.sockets] if everybody else []
        copies = [socket.socket(fileno=os.dup(sock.fileno())) for sock in shared]
        for server in self.servers:
            server.close()
        for sock in copies:
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # none is left: EAGAIN; another worker was first: EINVAL
                while True:
                    accepted.append(sock.accept()[0])
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # for all who share it; else connections would wait that nobody accepts
            sock.close()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # it has gone already
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start to drain. Not the base class's: that one raises the signal again at the end and exits with 128 + n.

        A signal may be meant for this worker alone; that all end is the supervisor's word.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.drain, False)
        else:
            self.should_exit = True

    def drain(self, everybody: bool = True) -> None:
        """Begin the drain; a second call changes nothing, but that it is `everybody` who ends."""
        self._everybody = self._everybody or everybody
        if self._drain is None and self._loop is not None:
            self._drain = self._loop.create_task(self._run_drain())
            self._on_drain(self._not_ready + self._grace)

    async def _run_drain(self) -> None:
        self._in_flight.draining = True
        await asyncio.sleep(self._not_ready)
        self.should_exit = True
        await asyncio.sleep(self._grace)
        cut = await self._in_flight.cut()
        if cut:
            logger.warning("cut %d request(s) at the end of the grace period of %g s", cut, self._grace)
