"""What a piece of a streamed answer is: events around the answer, content, its end, or an error. Knows the wire formats.

Chats come as LiteLLM's chunk objects, the Responses API as event objects, Anthropic's messages as bytes, of which a piece may
hold several events or a part of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

__all__ = ["CALLS", "Piece", "Reader"]

Piece: TypeAlias = Literal["around", "content", "end", "error"]
CALLS = {
    "acompletion": "acompletion",
    "completion": "acompletion",
    "aresponses": "aresponses",
    "responses": "aresponses",
    "anthropic_messages": "anthropic_messages",
    "aanthropic_messages": "anthropic_messages",
}
"""LiteLLM's call types whose streams are read here -> the router's name of the call."""

FILLED = ("content", "tool_calls", "function_call", "reasoning_content", "thinking_blocks", "audio", "images", "refusal")
DONE = frozenset({"response.completed", "response.incomplete"})
BAD = frozenset({"response.failed", "error", "response.error"})
_ERROR = re.compile(rb'event:\s*error\b|"type"\s*:\s*"error"')
_CONTENT = re.compile(rb'"type"\s*:\s*"content_block_(?:delta|stop)"')
_END = re.compile(rb'"type"\s*:\s*"message_stop"')
TAIL = 64
"""Bytes of the piece before that are looked at again, for an event that was cut in two."""


class Reader:
    """Reads one stream.

    Args:
        call: the router's name of the call (`CALLS`).
    """

    def __init__(self, call: str) -> None:
        self._call, self._tail = call, b""
        self.whole = call == "acompletion"
        """It has come to its end; a chat's end is the iterator's."""

    def see(self, piece: Any) -> Piece:
        """What this piece is."""
        if isinstance(piece, str):
            piece = piece.encode("utf-8", "replace")
        if isinstance(piece, bytes):
            found = self._bytes(piece)
        elif self._call == "aresponses":
            found = _event(getattr(piece, "type", None))
        else:
            found = _chunk(piece)
        if found == "end":
            self.whole = True
        return found

    def _bytes(self, piece: bytes) -> Piece:
        text, self._tail = self._tail + piece, piece[-TAIL:]
        if _END.search(text):
            return "end"
        if _CONTENT.search(text):
            return "content"
        return "error" if _ERROR.search(text) else "around"


def _event(kind: object) -> Piece:
    name = str(getattr(kind, "value", kind))
    if name in BAD:
        return "error"
    if name in DONE:
        return "end"
    return "content" if ".delta" in name or name.endswith("_call.completed") else "around"


def _chunk(piece: Any) -> Piece:
    for choice in getattr(piece, "choices", None) or ():
        delta = getattr(choice, "delta", None)
        if any(_get(delta, name) for name in FILLED):
            return "content"
        if getattr(choice, "finish_reason", None):
            return "end"
    return "around"


def _get(delta: Any, name: str) -> Any:
    return delta.get(name) if isinstance(delta, Mapping) else getattr(delta, name, None)
