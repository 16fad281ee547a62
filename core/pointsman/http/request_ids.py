"""The request's id: the client's `x-request-id` where it is usable, else one made here; the same one everywhere.

The outermost middleware settles it before anything else happens, so that every answer has it, a refusal at shutdown too.
Below, the request's headers carry it once: as `x-request-id`, which LiteLLM passes on where it is told to, and as
`x-litellm-call-id` unless the client gave one, by which LiteLLM takes an id for the call that it did not make. So it stands in
LiteLLM's spend rows (`litellm_call_id`) and its callbacks. LiteLLM keys some of those rows by the call's id and drops a second
row of the same key, and a client (or a proxy that tries again) may send one id twice: so a client's gets eight random digits
behind a dot there.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CALL_ID", "HEADER", "MAX_LENGTH", "MEANING", "RequestIds", "request_id_of", "usable"]

HEADER = "x-request-id"
CALL_ID = "x-litellm-call-id"
MAX_LENGTH = 128
MEANING = (
    "The request's id: the client's (1 to 128 printable ASCII characters), else one made here. On every answer, and in log "
    "lines, decision records and calls to providers that LiteLLM gives headers to; it begins `litellm_call_id` in LiteLLM's "
    "spend rows."
)
_NAME, _CALL_ID = HEADER.encode("ascii"), CALL_ID.encode("ascii")
_USABLE = re.compile(rf"[!-~](?:[ -~]{{0,{MAX_LENGTH - 2}}}[!-~])?".encode("ascii"))


def usable(value: bytes) -> bool:
    """Whether a client's id is taken: 1 to 128 printable ASCII characters, no space at its ends."""
    return _USABLE.fullmatch(value) is not None


def _first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key.lower() == name), None)


def request_id_of(scope: Scope) -> str | None:
    """The id that `RequestIds` settled, for what stands below it."""
    value = _first(scope["headers"], _NAME)
    return value.decode("ascii", "replace") if value is not None else None


class RequestIds:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = list(scope["headers"])
        call_id = _first(headers, _CALL_ID)
        given = (value for value in (_first(headers, _NAME), call_id) if value is not None and usable(value))
        taken = next(given, None)
        identity = taken or str(uuid.uuid4()).encode("ascii")
        below = [(key, value) for key, value in headers if key.lower() != _NAME]
        below.append((_NAME, identity))
        if call_id is None:
            below.append((_CALL_ID, identity if taken is None else b"%s.%s" % (identity, secrets.token_hex(4).encode("ascii"))))

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                # A provider's own id, which LiteLLM passes through on some endpoints, is not this request's.
                kept = [(key, value) for key, value in message.get("headers", ()) if key.lower() != _NAME]
                message = {**message, "headers": [*kept, (_NAME, identity)]}
            await send(message)

        await self._app({**scope, "headers": below}, receive, send_with_id)
