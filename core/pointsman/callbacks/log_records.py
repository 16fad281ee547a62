"""From a `logging` record to what is told of it: an `Entry`, taken where the record is made, and its line, made elsewhere.

What depends on the request (ids, the exception at hand) is read at once, in the request's own context; everything that costs
something (redaction, source lines of a stack trace, JSON) is left to the thread that writes.

**What is told.** Our own messages are ours, and hold no prompt. Other libraries' messages and the words of exceptions may quote
one. So within a request (a ticket is at hand, or another thread works for one) only what is surely harmless is told of them:
the constant part of the message, read from the source line that made the record; the classes, status and stack of exceptions.
"""

from __future__ import annotations

import ast
import linecache
import logging
import re
import textwrap
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any

import orjson
from opentelemetry import trace

from pointsman.callbacks.privacy import Redactor
from pointsman.decisions.ticket import Ticket, current_ticket
from pointsman.errors import PointsmanError

__all__ = [
    "CALLER_S",
    "Entry",
    "Told",
    "callers_mistake",
    "chain",
    "entry_of",
    "fields_of",
    "json_line",
    "providers_fault",
    "text_line",
]

OURS = "pointsman"
WITHHELD = "…"
MAX_CHAIN, MAX_FRAMES = 6, 40
MAX_TEXT = 16_384
"""Characters of one text in a line."""
CALLER_S = frozenset({400, 413, 422})
"""Answers of a provider that are the caller's own doing; its 401, 403, 404, 429 are the operator's to look at."""
_MAIN = threading.main_thread
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(slots=True)
class Told:
    """An exception as it is told: class, message where it may be told, the frames (source lines are read later)."""

    type: str
    message: str | None
    facts: dict[str, Any]
    frames: traceback.StackSummary


@dataclass(slots=True)
class Entry:
    """One record, before redaction.

    Attributes:
        message: whole, or None: only the constant part of `source` is told.
        source: file and line that made the record.
        errors: outermost first.
    """

    created: float
    level: int
    logger: str
    message: str | None
    source: tuple[str, int]
    identity: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    errors: list[Told] = field(default_factory=list)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what led to it, outermost first, as a traceback would show them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(seen) < MAX_CHAIN:
        seen.add(id(error))
        yield error
        error = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__


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


def _told(error: BaseException, withheld: bool) -> Told:
    facts: dict[str, Any] = {}
    if (status := _status(error)) is not None:
        facts["status"] = status
    provider = getattr(error, "llm_provider", None)
    if isinstance(provider, str) and provider.isidentifier():
        facts["provider"] = provider[:64]
    if isinstance(error, PointsmanError):
        message: str | None = str(error)
    else:
        message = None if withheld else _text_of(error)
    return Told(type(error).__qualname__, message, facts, _frames(error.__traceback__))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may be broken; logging must not be
        return "(cannot be told)"


def _frames(found: TracebackType | None) -> traceback.StackSummary:
    frames = list(traceback.walk_tb(found))[-MAX_FRAMES:]
    return traceback.StackSummary.extract(iter(frames), lookup_lines=False)


def identity_of(ticket: Ticket | None) -> dict[str, str]:
    """Ids that the record belongs to; the open span's, else those of the client's `traceparent`."""
    found: dict[str, str] = {}
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        found["trace_id"], found["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    elif ticket is not None and ticket.trace is not None:
        found["trace_id"], found["span_id"] = ticket.trace
    if ticket is None:
        return found
    decision = ticket.decision
    pairs = (
        ("request_id", ticket.request_id),
        ("decision_id", decision.decision_id if decision is not None else None),
        ("key_alias", ticket.key_alias),
        ("team", ticket.team),
    )
    found.update((name, value) for name, value in pairs if value)
    return found


def entry_of(record: logging.LogRecord, error: BaseException | None, *, tell_all: bool) -> Entry:
    """Read a record in the context that made it.

    Args:
        record: of any logger.
        error: what it tells of, if anything.
        tell_all: prompts may be told (`privacy.capture_prompts`, `provider_messages`).
    """
    ticket = current_ticket()
    ours = record.name == OURS or record.name.startswith(OURS + ".")
    # Threads that are not ours serve requests, and not every library hands them the context.
    serving = ticket is not None or threading.current_thread() is not _MAIN()
    withheld = serving and not tell_all
    message: str | None = None
    if ours or not (withheld or (record.levelno < logging.WARNING and not tell_all)):
        message = _message(record)
    elif record.name == "asyncio":
        message = _message(record).partition("\n")[0]  # its headings are constants; the rest shows the exception
    return Entry(
        created=record.created,
        level=record.levelno,
        logger=record.name,
        message=message,
        source=(record.pathname, record.lineno),
        identity=identity_of(ticket),
        fields=dict(getattr(record, "fields", None) or {}),
        errors=[_told(item, withheld or record.name == "asyncio") for item in chain(error)],
    )


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that do not fit the message, or a broken __str__
        return str(record.msg)


# ------------------------------------------------------------------------------- on the writing thread


@lru_cache(maxsize=4096)
def constant_text(path: str, line: int) -> str:
    """The constant text of the logging call that begins at a line of a source file; what varies in it is `…`."""
    lines = linecache.getlines(path)[line - 1 : line + 39]
    for count in range(1, len(lines) + 1):
        try:
            tree = ast.parse(textwrap.dedent("".join(lines[:count])))
        except SyntaxError:
            continue
        call = next((node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args), None)
        if call is not None:
            return " ".join(_constant(call.args[0]).split()) or WITHHELD
    return WITHHELD


def _constant(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else WITHHELD
    if isinstance(node, ast.JoinedStr):
        return "".join(_constant(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _constant(node.left) + _constant(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return _constant(node.func.value)
    return WITHHELD


def _stack(errors: list[Told]) -> str:
    """As Python prints it, the first cause first."""
    parts = []
    for told in reversed(errors):
        facts = "".join(f" {name}={value}" for name, value in told.facts.items())
        words = f": {told.message}" if told.message is not None else f"{facts} (its words may quote the request: not told)"
        parts.append("Traceback (most recent call last):\n" + "".join(told.frames.format()) + told.type + words)
    return "\n\n".join(parts)


def fields_of(entry: Entry, redactor: Redactor) -> dict[str, Any]:
    """The line's fields in their order (`names.LOG_FIELDS`), redacted."""
    told = _fields(entry, _UNTOUCHED)
    try:
        clean = redactor.nothing_in(orjson.dumps(told, default=str, option=orjson.OPT_NON_STR_KEYS).decode())
    except TypeError:  # half a character, which the redactor mends
        clean = False
    return told if clean else _fields(entry, redactor)


class _Untouched(Redactor):
    def text(self, value: str) -> str:
        return value

    def value(self, value: Any) -> Any:
        return value


_UNTOUCHED = _Untouched()


def _fields(entry: Entry, redactor: Redactor) -> dict[str, Any]:
    when = datetime.fromtimestamp(entry.created, UTC)
    message = entry.message if entry.message is not None else constant_text(*entry.source)
    told: dict[str, Any] = {
        "timestamp": when.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "level": logging.getLevelName(entry.level),
        "logger": entry.logger,
        "message": _clean(_COLOURS.sub("", message) if "\x1b" in message else message, redactor),
    }
    told.update((name, redactor.text(value)) for name, value in entry.identity.items())
    told.update(redactor.value(entry.fields))
    if entry.errors:
        outer = entry.errors[0]
        told["error_type"] = outer.type
        if outer.message is not None:
            told["error_message"] = _clean(outer.message, redactor)
        told["stack"] = _clean(_stack(entry.errors), redactor)
    if entry.message is None or entry.errors:
        told["source"] = f"{entry.source[0].rpartition('site-packages/')[2]}:{entry.source[1]}"
    return told


def _clean(text: str, redactor: Redactor) -> str:
    """Redacted, then cut: half a secret would not be known for one."""
    if len(text) > 8 * MAX_TEXT:  # what is that long is not searched
        text = text[: MAX_TEXT // 2] + " …"
    text = redactor.text(text)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"


def json_line(told: Mapping[str, Any]) -> bytes:
    """One JSON object and a line feed."""
    return orjson.dumps(told, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def text_line(told: Mapping[str, Any]) -> bytes:
    """For people: time, level, who, what, then whatever else is known; a stack trace below."""
    head = ("timestamp", "level", "logger", "message", "stack", "error_type", "error_message")
    rest = "".join(f" {name}={_short(value)}" for name, value in told.items() if name not in head)
    line = f"{told['timestamp'][11:23]} {told['level']:<7} {told['logger']} {told['message']}{rest}"
    return "\n".join((line, *(f"    {row}" for row in str(told.get("stack", "")).splitlines()), "")).encode(errors="replace")


def _short(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else orjson.dumps(value, default=str).decode()
