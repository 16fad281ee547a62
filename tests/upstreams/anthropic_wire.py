"""Anthropic's Messages endpoint: what a request must look like, and the answer.

Wire format: https://docs.anthropic.com/en/api/messages and /messages-streaming. The names of allowed parameters are read from
the real SDK's own types.
"""

from __future__ import annotations

from typing import Any

from anthropic.types import message_create_params

from upstreams.wire import Answer, Payload, Refused, event, known_only, new_id, pieces, require, tokens

__all__ = ["count_tokens", "error_body", "messages"]

KEYS = {*message_create_params.MessageCreateParamsBase.__annotations__, "stream"}
BLOCKS = {"text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking", "search_result"}
ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip


def error_body(status: int, message: str) -> Payload:
    """Anthropic's error object."""
    return {
        "type": "error",
        "error": {"type": ERROR_TYPES.get(status, "api_error"), "message": message},
        "request_id": new_id("req_"),
    }


def _texts(content: Any, where: str, kinds: set[str]) -> list[str]:
    if isinstance(content, str):
        if not content:
            raise Refused(f"{where}: text content blocks must be non-empty")
        return [content]
    if not isinstance(content, list) or not content:
        raise Refused(f"{where}: Input should be a valid string or a non-empty list of blocks")
    texts: list[str] = []
    for number, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in kinds:
            raise Refused(
                f"{where}.{number}: Input tag '{kind}' found does not match any of the expected tags: {sorted(kinds)}"
            )
        if kind == "text":
            if not isinstance(block.get("text"), str) or not block["text"].strip():
                raise Refused(f"{where}.{number}: text content blocks must contain non-whitespace text")
            texts.append(block["text"])
    return texts


def _prompt(payload: Payload) -> list[str]:
    """Check model, system and messages; return their texts."""
    require(payload, "model", str, needed=True)
    given = payload.get("messages")
    if not isinstance(given, list) or not given:
        raise Refused("messages: at least one message is required")
    texts = _texts(payload["system"], "system", {"text"}) if payload.get("system") else []
    for number, message in enumerate(given):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise Refused(f"messages.{number}.role: Input should be 'user' or 'assistant'")
        texts += _texts(message.get("content"), f"messages.{number}.content", BLOCKS)
    if given[0]["role"] != "user":
        raise Refused('messages: first message must use the "user" role')
    return texts


def messages(payload: Payload, name: str) -> Answer:
    """POST /v1/messages, plain and streamed (message_start ... message_stop)."""
    known_only(payload, KEYS)
    limit = require(payload, "max_tokens", int, low=1, needed=True)
    require(payload, "temperature", (int, float), low=0, high=1)
    require(payload, "stream", bool)
    sent = tokens(*_prompt(payload))
    words = f"served by {name}".split(" ")
    answer, reason = " ".join(words[:limit]), "end_turn" if len(words) <= limit else "max_tokens"
    answer_id = new_id("msg_")
    usage = {
        "input_tokens": sent,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": tokens(answer),
    }
    head: Payload = {"id": answer_id, "type": "message", "role": "assistant", "model": payload["model"], "stop_sequence": None}
    body = {**head, "content": [{"type": "text", "text": answer}], "stop_reason": reason, "usage": usage}
    started = {**head, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    steps: list[tuple[str, Payload]] = [
        ("message_start", {"message": started}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("ping", {}),
        *(("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}}) for piece in pieces(answer)),
        ("content_block_stop", {"index": 0}),
        (
            "message_delta",
            {"delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": tokens(answer)}},
        ),
        ("message_stop", {}),
    ]
    events = tuple(event({"type": kind, **data}, kind) for kind, data in steps)
    return Answer(answer_id, body, events, event(error_body(529, f"{name} is overloaded"), "error"))


def count_tokens(payload: Payload, name: str) -> Answer:
    """POST /v1/messages/count_tokens."""
    return Answer(new_id("cnt_"), {"input_tokens": tokens(*_prompt(payload))})
