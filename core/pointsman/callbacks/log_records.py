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
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson
from opentelemetry import trace

from pointsman.callbacks.log_errors import Told, chain, stack_of, told_of
from pointsman.callbacks.log_text import LONG, MAX_TEXT, clean, clean_value, escaped, shortened
from pointsman.callbacks.privacy import Redactor
from pointsman.decisions.ticket import Ticket, current_ticket

__all__ = [
    "OURS",
    "Entry",
    "constant_text",
    "entry_of",
    "fields_of",
    "identity_of",
    "json_line",
    "text_line",
]

OURS = "pointsman"
WITHHELD = "…"
_MAIN = threading.main_thread
_TRACE = frozenset({"trace_id", "span_id"})
_HEADING = re.compile(r"[\n(<'\"]")
"""What asyncio's messages begin with is constant; behind one of these come exceptions, callbacks and their arguments."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(slots=True)
class Entry:
    """One record, before redaction.

    Attributes:
        message: whole, or None: only the constant part of `source` is told.
        source: file and line that made the record.
        errors: outermost first.
        weight: about how many characters it holds.
    """

    created: float
    level: int
    logger: str
    message: str | None
    source: tuple[str, int]
    identity: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    errors: list[Told] = field(default_factory=list)

    weight: int = field(init=False)

    def __post_init__(self) -> None:
        """Long texts are cut: it may wait, and thousands with it. Runs for each record, so in one pass."""
        if self.message is not None:
            self.message = shortened(self.message)
        total = 512 + len(self.message or "")
        for name, value in self.fields.items():
            if type(value) is str:
                if len(value) > LONG:
                    self.fields[name] = shortened(value)
                total += min(len(value), LONG)
        for told in self.errors:
            total += 1_024 + len(told.message or "")
        self.weight = total


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
    late = record.name == "asyncio" or _of_the_server(record)  # tells of requests when these have ended
    withheld = (serving or late) and not tell_all
    message: str | None = None
    if record.name == "asyncio" and not tell_all:
        message = _HEADING.split(_message(record), 1)[0].strip() or WITHHELD
    elif ours or not (withheld or (record.levelno < logging.WARNING and not tell_all)):
        message = _message(record)
    return Entry(
        created=record.created,
        level=record.levelno,
        logger=record.name,
        message=message,
        source=(record.pathname, record.lineno),
        identity=identity_of(ticket),
        fields=dict(getattr(record, "fields", None) or {}),
        errors=[told_of(item, withheld) for item in chain(error)],
    )


def _of_the_server(record: logging.LogRecord) -> bool:
    """Whether uvicorn says it of requests, as it may of all but its start and its end."""
    return record.name.split(".")[0] == "uvicorn" and not record.pathname.endswith(("lifespan/on.py", "uvicorn/server.py"))


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


def fields_of(entry: Entry, redactor: Redactor) -> dict[str, Any]:
    """The line's fields in their order (`names.LOG_FIELDS`), redacted."""
    if entry.weight > MAX_TEXT:  # a text may be cut, which must come after redaction
        return _fields(entry, redactor)
    told = _fields(entry, _UNTOUCHED)
    try:
        line = orjson.dumps(told, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        good = len(line) <= MAX_TEXT and redactor.nothing_in(line)
    except TypeError:  # half a character, which the redactor mends
        good = False
    return told if good else _fields(entry, redactor)


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
        "message": clean(_COLOURS.sub("", message) if "\x1b" in message else message, redactor),
    }
    # Ids of a trace are made or checked here; a rule for long numbers would find some of them, and they would join nothing.
    told.update((name, value if name in _TRACE else redactor.text(value)) for name, value in entry.identity.items())
    told.update(clean_value(entry.fields, redactor))
    if entry.errors:
        outer = entry.errors[0]
        told["error_type"] = outer.type
        if outer.message is not None:
            told["error_message"] = clean(outer.message, redactor)
        told["stack"] = clean(stack_of(entry.errors), redactor)
    if entry.message is None or entry.errors:
        told["source"] = f"{entry.source[0].rpartition('site-packages/')[2]}:{entry.source[1]}"
    return told


def json_line(told: Mapping[str, Any]) -> bytes:
    """One JSON object and a line feed."""
    return orjson.dumps(told, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)


def text_line(told: Mapping[str, Any]) -> bytes:
    """For people: time, level, who, what, then whatever else is known; a stack trace below. No control characters."""
    head = ("timestamp", "level", "logger", "message", "stack", "error_type", "error_message")
    rest = "".join(f" {name}={_short(value)}" for name, value in told.items() if name not in head)
    line = escaped(f"{told['timestamp'][11:23]} {told['level']:<7} {told['logger']} {told['message']}{rest}")
    stack = (f"    {escaped(row)}" for row in str(told.get("stack", "")).splitlines())
    return "\n".join((line, *stack, "")).encode(errors="replace")


def _short(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else orjson.dumps(value, default=str).decode()
