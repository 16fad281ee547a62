"""The innermost middleware: begins a request anew whose upstream hangs, though its client has seen nothing of an answer.

LiteLLM tries again where a call fails, and a call that hangs does not. `custom_router.failover` ends it by a check that fails,
so that LiteLLM gives back what the request had taken (its place among parallel requests, reserved tokens and budget), and says
so on the ticket. That answer is dropped here, and the same request goes through LiteLLM once more: checked, counted and limited
as any other, in the context that it began in. To the client, to metrics, logs and the queue it is one request.

Kept for it is the body, up to 8 MiB, until the answer begins: the very bytes that Starlette keeps as well.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from contextvars import Context, copy_context

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pointsman.decisions.ticket import Ticket, current_ticket
from pointsman.http.request_ids import CALL_ID

__all__ = ["MAX_KEPT", "Anew"]

logger = logging.getLogger("pointsman.failover")

MAX_KEPT = 8 * 1024 * 1024
"""Bytes of a body; a request with a longer one is not begun anew."""
_CALL_ID, _PARENT = CALL_ID.encode("ascii"), b"traceparent"


class _Body:
    """What was received of a request, to be received again."""

    def __init__(self, receive: Receive, ticket: Ticket) -> None:
        self._receive, self._ticket = receive, ticket
        self._kept: list[Message] | None = []
        self._size = 0

    async def receive(self) -> Message:
        """The next message, which is kept."""
        message = await self._receive()
        if self._kept is not None and message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._kept.append(message)
            if self._size > MAX_KEPT:
                self.forget()
            else:
                self._ticket.repeatable = not message.get("more_body", False)
        return message

    def again(self) -> Receive:
        """What gives the messages that were kept, and then those that come."""
        waiting = deque(self._kept or ())

        async def receive() -> Message:
            return waiting.popleft() if waiting else await self._receive()

        return receive

    def forget(self) -> None:
        """Keep nothing: an answer has begun."""
        self._kept, self._ticket.repeatable = None, False


class Anew:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ticket = current_ticket()
        if ticket is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body, pristine, context = _Body(receive, ticket), _copy(scope), copy_context()

        async def answer(message: Message) -> None:
            if not ticket.repeat:
                body.forget()
                await send(message)

        try:
            await self._run(scope, body.receive, answer, ticket)
            while ticket.repeat:
                ticket.repeat = False
                ticket.repeats += 1
                logger.info("its upstream hangs: the request is begun anew")
                await self._in(context.copy(), _again(pristine, ticket), body.again(), answer, ticket)
        finally:
            body.forget()

    async def _run(self, scope: Scope, receive: Receive, send: Send, ticket: Ticket) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:  # whatever it is: it belongs to the answer that is dropped
            if not ticket.repeat:
                raise

    async def _in(self, context: Context, scope: Scope, receive: Receive, send: Send, ticket: Ticket) -> None:
        """What LiteLLM has noted of the first time in context variables is not there the second time."""
        await asyncio.create_task(self._run(scope, receive, send, ticket), context=context)


def _copy(scope: Scope) -> Scope:
    """LiteLLM and Starlette write into a request's scope and its state."""
    return {**scope, "state": dict(scope["state"])} if "state" in scope else dict(scope)


def _again(scope: Scope, ticket: Ticket) -> Scope:
    """As it was, but for the call's id, of which LiteLLM keeps one row, and what ties it to its trace."""
    dropped = {_CALL_ID} if ticket.traceparent is None else {_CALL_ID, _PARENT}
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in dropped]
    call = next((value for name, value in scope["headers"] if name.lower() == _CALL_ID), b"")
    headers.append((_CALL_ID, b"%s.%s" % (call, secrets.token_hex(4).encode("ascii"))))
    if ticket.traceparent is not None:
        headers.append((_PARENT, ticket.traceparent.encode("ascii")))
    return {**_copy(scope), "headers": headers}
