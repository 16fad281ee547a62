"""Rate, errors and duration of requests, and the time to the first token, as the client sees them: a pure ASGI middleware.

It stands inside of `Tickets`, whose ticket tells it the model group and why a request failed.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pointsman.callbacks.metrics import Metrics, Request
from pointsman.decisions.ticket import current_ticket

__all__ = ["CLIENT_GONE", "Measured"]

CLIENT_GONE = 499
"""Status of a request whose client left before an answer began (nginx's word for it)."""


class Measured:
    """ASGI middleware; see the module. `metrics` is the worker's."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope["path"])
        started = time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
                headers = message.get("headers", ())
                request.streamed = any(
                    name == b"content-type" and value[:17] == b"text/event-stream" for name, value in headers
                )
            elif message["type"] == "http.response.body":
                if request.streamed and request.first is None and message.get("body"):
                    request.first = time.perf_counter() - started
                request.complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            request.status = request.status or CLIENT_GONE
            raise
        except BaseException:
            request.status = request.status or 500
            raise
        finally:
            request.seconds = time.perf_counter() - started
            self._metrics.request(request, current_ticket())
