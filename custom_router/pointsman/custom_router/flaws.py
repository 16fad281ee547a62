"""What is wrong with an answer that came whole: parity violations, as far as they can be seen at a glance.

An answer is flawed that is none of the kind that was asked for: it is no document of the protocol (`malformed`), nothing is in
it (`empty`), it is no JSON though `response_format` asks for JSON (`not_json`), or it calls no tool though `tool_choice` asks
for one (`no_tool_call`). Not seen: JSON that does not keep its schema (that costs as much as an answer may be long), another
model than the one asked for (providers name aliases and snapshots as they like), and what is wrong with the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

__all__ = ["EMPTY", "MALFORMED", "NOT_JSON", "NO_TOOL_CALL", "flaw_of", "malformed"]

MALFORMED, EMPTY, NOT_JSON, NO_TOOL_CALL = "malformed", "empty", "not_json", "no_tool_call"
MAX_JSON = 64 * 1024
"""Characters of an answer that are parsed at most; of a longer one it is not known whether it is JSON."""
CUT_SHORT = frozenset({"length", "max_tokens", "content_filter"})
"""Why an answer ended that may be empty or half JSON and nobody's fault."""
FILLED = ("content", "tool_calls", "function_call", "reasoning_content", "thinking_blocks", "refusal", "audio", "images")
UNREADABLE = frozenset({"APIResponseValidationError", "JSONDecodeError", "ValidationError"})
"""Errors of LiteLLM, openai, json and pydantic, by which an answer could not be read."""
UNREADABLE_DEPTH = 6


def flaw_of(answer: object, asked: Mapping[str, Any]) -> str | None:
    """What is wrong with an answer, or None; never raises.

    Args:
        answer: LiteLLM's response object, or a mapping of the same shape. Of a shape that is not known nothing is said.
        asked: the call's parameters (`response_format`, `tool_choice`).
    """
    try:
        return _flaw_of(answer, asked)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError):  # a shape that only looks like one that is known
        return None


def malformed(error: BaseException) -> bool:
    """Whether an attempt failed because the answer could not be read, by the error or what it came of."""
    current: BaseException | None = error
    for _ in range(UNREADABLE_DEPTH):
        if current is None:
            return False
        if type(current).__name__ in UNREADABLE:
            return True
        current = current.__cause__ or current.__context__
    return False


def _flaw_of(answer: object, asked: Mapping[str, Any]) -> str | None:
    if (output := _get(answer, "output")) is not None and _get(answer, "object") == "response":
        return EMPTY if _get(answer, "status") == "completed" and not output else None
    if _get(answer, "object") == "list" and (data := _get(answer, "data")) is not None:
        return None if data and all(_get(one, "embedding") for one in data) else EMPTY
    choices = _get(answer, "choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        return None
    whole = [choice for choice in choices if _get(choice, "finish_reason") not in CUT_SHORT]
    if not choices:
        return EMPTY
    if not whole:
        return None
    messages = [_get(choice, "message") for choice in whole]
    if any(message is None for message in messages):  # a text completion
        return None if all(_get(choice, "text") for choice in whole) else EMPTY
    if not all(any(_get(message, part) for part in FILLED) for message in messages):
        return EMPTY
    calls = [bool(_get(message, "tool_calls") or _get(message, "function_call")) for message in messages]
    if _wants_tool(asked.get("tool_choice")) and not all(calls):
        return NO_TOOL_CALL
    if _wants_json(asked.get("response_format")):
        texts = [_get(message, "content") for message, called in zip(messages, calls, strict=True) if not called]
        if not all(_is_json(text) for text in texts if isinstance(text, str)):
            return NOT_JSON
    return None


def _get(thing: object, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _wants_tool(choice: object) -> bool:
    return choice == "required" or (isinstance(choice, Mapping) and choice.get("type") in ("function", "any", "tool"))


def _wants_json(wanted: object) -> bool:
    return isinstance(wanted, Mapping) and wanted.get("type") in ("json_object", "json_schema")


def _is_json(text: str) -> bool:
    if not text or len(text) > MAX_JSON:
        return True
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
