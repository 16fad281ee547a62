"""The middleware below `request_ids`: issues the request's `Ticket` and tells the decision in the answer's headers.

Headers: `x-pointsman-decision-id`, `-strategy`, `-version`, `-model`, `-policy`, `-fallback`. A request that was
refused before routing (401, unknown model) has no decision and so none of them.

An answer that is an error gets its one log line here: of a caller's mistake when it begins, of the gateway's when the request
ends, unless something else was told of it; of an exception that nobody handled with its stack.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from pointsman.callbacks.log_errors import mark, marked
from pointsman.callbacks.red import CLIENT_GONE
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.http.request_ids import request_id_of

__all__ = ["HEADERS", "REQUEST_HEADERS", "Tickets"]

logger = logging.getLogger("pointsman.http")

HEADERS: dict[str, str] = {
    "x-pointsman-decision-id": "Id of the routing decision; the key to decision records and feedback.",
    "x-pointsman-strategy": "Strategy that decided; `litellm` when LiteLLM's own choice held, `sticky` when the session did.",
    "x-pointsman-version": "Version of the strategy's bundle.",
    "x-pointsman-model": "`litellm_params.model` of the deployment that answers (of the pick, where nobody answered).",
    "x-pointsman-policy": "How scores became a choice: `argmax`, `cost`, `target`; after a colon why what is configured could "
    "not be applied (`argmax:rank`, `:no_prices`, `:no_calibration`, `:no_pair`); `+explore` where chance decided; "
    "`sticky`: the session stays where it is.",
    "x-pointsman-fallback": "Why a configured strategy did not decide: `no_bundle`, `no_text`, `not_text` (an endpoint without "
    "text to score), `no_candidate`, `only_candidate`, `deadline`, `error`, `rule_unavailable` (a rule for embeddings names a "
    "deployment that is away), `continued` (`previous_response_id` names a response that this deployment keeps), or a "
    "strategy's own word; `unknown_strategy`: the key or team asks for one that does not exist. "
    "Of a cascade: docs/strategies.md.",
    "x-pointsman-cascade": "What a cascade spent before the call that answers, which is not in the answer's `usage`: "
    "`calls=2, prompt_tokens=130, completion_tokens=41, cost=0.00021` (US dollars).",
}
REQUEST_HEADERS: dict[str, str] = {
    "x-pointsman-strategy": "Strategy for this request, or `litellm` for LiteLLM's own choice.",
    "x-pointsman-session": "Id of the session that this request is of (`pointsman.resilience.sticky`); any key may.",
    "x-pointsman-cost-weight": "Cost weight for this request, 0 to 1000, in place of the policy's weight or target.",
    "x-pointsman-priority": "Class in the queue: `high`, `normal` or `low`; any key may ask for less than it has.",
    "x-pointsman-deadline-ms": "Milliseconds until the answer must have begun: for the wait in the queue (never more than "
    "`pointsman.resilience.queue.max_wait`) and all tries; any key may.",
}
"""What a request may ask for, where its key may."""
LITELLM = "litellm"
_READ = frozenset({*REQUEST_HEADERS, "mcp-session-id"})


def _value(text: str) -> bytes:
    """Header bytes; names from YAML may hold anything, so what is not printable ASCII is replaced."""
    return "".join(char if " " <= char <= "~" else "?" for char in text).encode("ascii")


def _headers(ticket: Ticket, served_by: str | None) -> list[tuple[bytes, bytes]]:
    decision = ticket.decision
    if decision is None:
        return []
    # LiteLLM's own header is the truth about who answered; the pick may have been widened or have failed since.
    model = ticket.models.get(served_by or "", decision.model)
    values = {
        "x-pointsman-decision-id": decision.decision_id,
        "x-pointsman-strategy": decision.strategy or LITELLM,
        "x-pointsman-version": decision.version,
        "x-pointsman-model": model,
        "x-pointsman-policy": decision.policy if decision.strategy is not None else None,
        "x-pointsman-fallback": decision.fallback,
        "x-pointsman-cascade": getattr(ticket.cascade, "summary", None),
    }
    return [(name.encode("ascii"), _value(value)) for name, value in values.items() if value is not None]


def _asked(scope: Scope) -> dict[str, str]:
    """The headers that we read; of one that comes twice the last."""
    found = ((name.decode("latin-1").lower(), value.decode("latin-1").strip()) for name, value in scope["headers"])
    return {name: value for name, value in found if name in _READ}


_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
MAX_PATH = 200
_BEGINS = {
    "http.response.start": 200,
    "websocket.accept": 101,
    "websocket.http.response.start": 403,
    "websocket.close": 403,  # before it was accepted: the server refuses it with this
}
"""Messages that an answer begins with, and its status where they name none."""


def _trace(scope: Scope) -> tuple[str, str] | None:
    """Trace and parent span of the request's `traceparent` (W3C Trace Context)."""
    value = next((value for name, value in scope["headers"] if name.lower() == b"traceparent"), b"")
    found = _TRACEPARENT.fullmatch(value)
    return (found[1].decode("ascii"), found[2].decode("ascii")) if found is not None else None


@dataclass
class _Answer:
    """How a request was answered, for the one line of an answer that is an error."""

    scope: Scope
    ticket: Ticket
    complete: bool = False
    owed: dict[str, Any] | None = None
    """Fields of the line of an error of ours that nothing was told of yet: what went wrong may still come out."""

    def begins(self, status: int) -> None:
        """It has this status; a websocket that was accepted counts as 101."""
        self.ticket.answered = status
        self.ticket.settle(status)
        if status >= 500:
            self.owed = self._fields(status)
        elif status >= 400 and status != CLIENT_GONE:  # a client that leaves has made no mistake
            self._tell(logging.WARNING, self._fields(status))

    def escaped(self, error: Exception) -> None:
        """Nobody handled an error: tell of it, with its stack, while the request is known; the server will name it as well."""
        request = str(self.ticket.request_id)
        if isinstance(error, ClientDisconnect | WebSocketDisconnect):  # the client left: nobody's error, so no line of it
            mark(error, request)
            return
        if self.ticket.answered is None:
            self.begins(500)  # the server's own answer
        if not marked(error, request):
            fields = self.owed or self._fields(self.ticket.answered or 500)
            self._tell(logging.ERROR, {**fields, "error_type": None}, error)
            self.owed = None
            mark(error, request)

    def ends(self) -> None:
        """Tell what is owed, where nothing was told of it."""
        if self.ticket.answered is None:
            self.ticket.settle(500)
        if self.owed is not None and not self.ticket.told:
            self._tell(logging.ERROR, self.owed)

    def _fields(self, status: int) -> dict[str, Any]:
        ticket, scope = self.ticket, self.scope
        return {
            "method": str(scope.get("method", scope["type"])),
            "path": str(scope["path"])[:MAX_PATH],  # not the query: keys and texts stand there
            "status": status,
            "error_type": ticket.refusal,
            "duration_ms": round((time.monotonic() - ticket.started) * 1000, 3),
        }

    def _tell(self, level: int, fields: dict[str, Any], error: Exception | None = None) -> None:
        if not logger.isEnabledFor(level):
            return
        known = {name: value for name, value in fields.items() if value is not None}
        refusal = f" {fields['error_type']}" if fields["error_type"] else ""
        words = ("%s %s: %d%s", fields["method"], fields["path"], fields["status"], refusal)
        logger.log(level, *words, exc_info=error, extra={"fields": known})


async def _gone(receive: Receive) -> None:
    """Return when the client has left. Before the body was read it would take that away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Tickets:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # A websocket's messages are not ours to take.
        gone = partial(_gone, receive) if scope["type"] == "http" else None
        ticket = Ticket(asked=_asked(scope), gone=gone, request_id=request_id_of(scope), trace=_trace(scope))
        token = CURRENT.set(ticket)
        answer = _Answer(scope, ticket)

        async def send_with_headers(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.start":
                headers = list(message.get("headers", ()))
                served_by = next((v.decode("latin-1") for k, v in headers if k == b"x-litellm-model-id"), None)
                # LiteLLM keeps no headers of an error that a hook raised.
                if ticket.retry_after is not None and message["status"] in (429, 503):
                    headers = [pair for pair in headers if pair[0].lower() != b"retry-after"]
                    headers.append((b"retry-after", b"%d" % ticket.retry_after))
                message = {**message, "headers": headers + _headers(ticket, served_by)}
                if ticket.place is not None and message["status"] < 400:
                    ticket.place.answered()
            if ticket.answered is None and kind in _BEGINS:
                answer.begins(message.get("status", _BEGINS[kind]))
            answer.complete = answer.complete or (kind == "http.response.body" and not message.get("more_body"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnected:  # of a websocket; the server expects it, and says nothing
            raise
        except Exception as error:
            answer.escaped(error)
            raise
        finally:
            if ticket.place is not None:
                ticket.place.free()
            if scope["type"] == "http" and not answer.complete:  # the client left, or it broke off: attempts end too
                for span in ticket.spans.values():
                    span.abandon()
                ticket.spans.clear()
            answer.ends()
            CURRENT.reset(token)
