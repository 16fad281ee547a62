"""Exceptions in log records: whose fault one is, what may be told of it, and whether its request has told it.

What is kept of a stack trace where the error is logged are code objects and line numbers: no frame lives on with its
variables, and source files are looked at by the thread that writes.
"""

from __future__ import annotations

import json
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import Any

from pointsman.callbacks.log_text import shortened
from pointsman.errors import PointsmanError

__all__ = [
    "CALLER_S",
    "Told",
    "callers_mistake",
    "chain",
    "kind_of",
    "mark",
    "marked",
    "providers_fault",
    "refuses",
    "stack_of",
    "told_of",
]

MAX_CHAIN, MAX_FRAMES = 6, 40
CALLER_S = frozenset({400, 413, 422})
"""Answers of a provider that are the caller's own doing; its 401, 403, 404, 429 are the operator's to look at."""
_MARK = "_pointsman_told"


@dataclass(slots=True)
class Told:
    """An exception as it is told: class, words where they may be told, places of its stack trace, the innermost last."""

    type: str
    message: str | None
    facts: dict[str, Any]
    places: Sequence[tuple[CodeType, int | None]]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what led to it, outermost first, as a traceback would show them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(seen) < MAX_CHAIN:
        seen.add(id(error))
        yield error
        error = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__


def marked(error: BaseException, request: str | None = None) -> bool:
    """Whether a line has told it, or what it was made of: a line of this request, or of any where none is named."""
    marks = (getattr(item, _MARK, None) for item in chain(error))
    return any(value == request if request is not None else value is not None for value in marks)


def mark(error: BaseException, request: str) -> None:
    """From now on a line of this request has told it."""
    for item in chain(error):
        try:
            setattr(item, _MARK, request)
        except AttributeError:  # a class with slots; at worst it is told twice
            continue


def _status(error: BaseException) -> int | None:
    for name in ("status_code", "code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value.isdigit() and len(value) == 3:
            return int(value)
    return None


def callers_mistake(error: BaseException) -> bool:
    """Whether it is answered with 4xx because of what the caller sent, and neither the gateway nor a provider is at fault."""
    status = _status(error)
    if status is None or not 400 <= status < 500:
        return False
    return not providers_fault(error) or status in CALLER_S


def providers_fault(error: BaseException) -> bool:
    """Whether it came of a call to a provider."""
    return any(getattr(item, "llm_provider", None) for item in chain(error))


def refuses(error: BaseException, status: int) -> bool:
    """Whether the caller is at fault for an error that was answered with this 4xx.

    LiteLLM answers any failure of its authentication with 401, and some others with 400. So the error says it itself: it, or
    what led to it, has a status 4xx; or it is an `Exception` and of no other class, which is how LiteLLM and custom
    authentication refuse a key in words; or the body is no JSON. What breaks (a lookup, a connection) has a class of its own.
    """
    errors = list(chain(error))
    return (
        any(400 <= (_status(item) or 0) < 500 for item in errors)
        or all(type(item) is Exception for item in errors)
        or (status == 400 and any(isinstance(item, json.JSONDecodeError | UnicodeError) for item in errors))
    )


def kind_of(error: BaseException) -> str:
    """LiteLLM's own word for it (`auth_error`, `budget_exceeded`, ...), else its class."""
    kind = getattr(error, "type", None)
    kind = getattr(kind, "value", kind)
    return kind if isinstance(kind, str) and kind.replace("_", "").isalnum() and len(kind) <= 64 else type(error).__name__


def told_of(error: BaseException, withheld: bool) -> Told:
    """Read an exception where it was caught; `withheld`: its words may quote a prompt."""
    facts: dict[str, Any] = {}
    if (status := _status(error)) is not None:
        facts["status"] = status
    provider = getattr(error, "llm_provider", None)
    if isinstance(provider, str) and provider.isidentifier():
        facts["provider"] = provider[:64]
    withheld = withheld and not isinstance(error, PointsmanError)
    return Told(type(error).__qualname__, None if withheld else _text_of(error), facts, _places(error.__traceback__))


def _text_of(error: BaseException) -> str:
    try:
        return shortened(str(error))
    except Exception:  # noqa: BLE001 - an exception's own __str__ may be broken; logging must not be
        return "(cannot be told)"


def _places(found: TracebackType | None) -> Sequence[tuple[CodeType, int | None]]:
    return deque(((frame.f_code, line) for frame, line in traceback.walk_tb(found)), MAX_FRAMES)


def stack_of(errors: Sequence[Told]) -> str:
    """As Python prints it, the first cause first. Reads source files."""
    parts = []
    for told in reversed(errors):
        facts = "".join(f" {name}={value}" for name, value in told.facts.items())
        words = f": {told.message}" if told.message is not None else f"{facts} (its words may quote the request: not told)"
        frames = traceback.StackSummary.from_list(
            [traceback.FrameSummary(code.co_filename, line, code.co_name) for code, line in told.places]
        )
        parts.append("Traceback (most recent call last):\n" + "".join(frames.format()) + told.type + words)
    return "\n\n".join(parts)
