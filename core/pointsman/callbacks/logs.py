"""Log lines of a process: our records, LiteLLM's, the server's and what anybody prints, one line a record.

One `Logs` a process, worker or supervisor. It stands at the root of `logging` and takes away the handlers that write to the
terminal on their own (LiteLLM's, uvicorn's). Rules:

- A caller's mistake (401, 404, 400, ...) is one WARNING of ours without a stack trace, made when the answer starts
  (`http.tickets`); what LiteLLM says of it only tells that line the kind of mistake. Whose mistake it was is often clear only
  from the answer's status, so a library's line of an error waits for that.
- Any other error is one line with its stack trace, however often LiteLLM reports it on its way up.
- A routing decision is one INFO line, made from its `Decision`; a failed attempt one WARNING from its `Attempt`.

Nothing here writes on the caller's thread; see `log_output` and `log_export`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TextIO

from pointsman.callbacks.log_decisions import level_of, line_of
from pointsman.callbacks.log_errors import CALLER_S, callers_mistake, kind_of, mark, marked, providers_fault, refuses
from pointsman.callbacks.log_export import Export
from pointsman.callbacks.log_output import Output
from pointsman.callbacks.log_records import OURS, Entry, entry_of, fields_of, identity_of, json_line, text_line
from pointsman.callbacks.privacy import Redactor
from pointsman.decisions.ticket import MAX_HELD, Ticket, current_ticket
from pointsman.decisions.types import Attempt, Decision, Outcome
from pointsman.settings import PointsmanSettings

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LEVELS", "LIBRARIES", "Logs"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LIBRARIES = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")
_SOURCE = (__file__, 0)

decisions = logging.getLogger("pointsman.decisions")
printed = logging.getLogger("printed")
_EMITTING: ContextVar[bool] = ContextVar("pointsman_log_emitting", default=False)


class _Handler(logging.Handler):
    """Turns records into entries, in the context that made them."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def createLock(self) -> None:  # noqa: N802 - the base class's name
        """None: `emit` shares nothing that wants one, and requests shall not wait for each other."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        if _EMITTING.get() or threading.current_thread() in self._logs.own_threads():
            return
        token = _EMITTING.set(True)
        try:
            self._logs.take_up(record)
        except Exception:  # noqa: BLE001 - a record that cannot be told must not fail what tells it
            self._logs.output.lose()
        finally:
            _EMITTING.reset(token)


class Logs:
    """What a process logs, and where it goes; starts its threads at once, so make it after a fork.

    Args:
        settings: `telemetry.logs` and `privacy` are read.
        process: `supervisor`, `worker-0`, ...; a field of each line.
        text: for people; else JSON.
        secrets: values that may stand in no line (`privacy.known_secrets`).
        levels: our level and the libraries', by name.
        descriptor: where lines go.
        terminal: tell warnings and errors on standard error as well, as text; for a person whose log is a file.
    """

    def __init__(
        self,
        settings: PointsmanSettings,
        process: str,
        *,
        text: bool = False,
        secrets: Iterable[str] = (),
        levels: tuple[str, str] | None = None,
        descriptor: int = 1,
        terminal: bool = False,
    ) -> None:
        told = settings.telemetry.logs
        self.process = process
        self.levels = levels or (told.level, told.library_level)
        self._tell_all = settings.privacy.capture_prompts or told.provider_messages
        self._redactor = Redactor(secrets, settings.privacy.redact)
        self._export: Export | None = None
        self._terminal = terminal
        self._counted: dict[str, int] = {}
        self.output = Output(descriptor, self._fields, text_line if text else json_line, told.queue_size, also=self._also)
        self.handler = _Handler(self)
        if told.otlp is not None:
            resource = {
                "service.name": "pointsman",
                "service.version": version("pointsman"),
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}-{process}",
                "process.pid": os.getpid(),
            }
            self._export = Export(told.otlp, resource, self._say)

    def _fields(self, entry: Entry) -> dict[str, Any]:
        told = fields_of(entry, self._redactor)
        told["process"] = self.process
        return told

    def _also(self, entry: Entry, told: dict[str, Any]) -> None:
        if self._terminal and entry.level >= logging.WARNING:
            with contextlib.suppress(OSError):
                os.write(2, text_line(told))
        if self._export is not None and not entry.logger.startswith("pointsman.logs"):
            self._export.put(told)

    def _say(self, level: int, message: str) -> None:
        """One line of the exporter's own; it goes to standard output alone."""
        record = logging.LogRecord("pointsman.logs", level, __file__, 0, message, (), None)
        self.output.put(entry_of(record, None, tell_all=True))

    def own_threads(self) -> tuple[threading.Thread, ...]:
        """What these say themselves is not logged: it would come back to them."""
        return (self.output.thread,) if self._export is None else (self.output.thread, self._export.thread)

    @property
    def dropped(self) -> dict[str, int]:
        """Records that were lost, by where they were to go."""
        return {"stdout": self.output.dropped} | ({"otlp": self._export.dropped} if self._export is not None else {})

    def lost(self) -> dict[str, int]:
        """Records that were lost since it was last asked, by where they were to go: `stdout`, or empty for the collector."""
        now = self.dropped
        since = {name: count - self._counted.get(name, 0) for name, count in now.items()}
        self._counted = now
        return {"" if name == "otlp" else name: count for name, count in since.items() if count > 0}

    def install(self) -> None:
        """Become the one handler of the process. Again after LiteLLM has read its configuration, which may add its own."""
        root = logging.getLogger()
        for logger in (
            root,
            *(item for item in logging.Logger.manager.loggerDict.values() if isinstance(item, logging.Logger)),
        ):
            for handler in list(logger.handlers):
                if isinstance(handler, logging.StreamHandler | _Handler) and not isinstance(handler, logging.FileHandler):
                    logger.removeHandler(handler)
                    logger.propagate = True
        root.addHandler(self.handler)
        # Not by way of the root: a handler there that prints would be asked to tell what it printed.
        printed.handlers, printed.propagate = [self.handler], False
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
        self.set_levels(*self.levels)

    def redirect(self) -> None:
        """Make records of what is printed; a line that is no record would break who reads JSON."""
        sys.stdout = _Lines(logging.INFO, sys.stdout)
        sys.stderr = _Lines(logging.WARNING, sys.stderr)

    def set_levels(self, ours: str, libraries: str) -> None:
        """Change the least levels, at once.

        Raises:
            KeyError: no such level.
        """
        own, other = LEVELS[ours], LEVELS[libraries]
        self.levels = (ours, libraries)
        logging.getLogger(OURS).setLevel(own)
        printed.setLevel(logging.INFO)
        # Others at DEBUG (HTTP clients, AWS) would bury what was asked for.
        logging.getLogger().setLevel(max(other, logging.INFO))
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(other)
        # Python's warnings are for developers: pydantic's alone are a dozen lines a start.
        logging.getLogger("py.warnings").setLevel(logging.WARNING if other < logging.WARNING else logging.ERROR)

    def take_up(self, record: logging.LogRecord) -> None:
        """One record of any logger; runs where it was made."""
        error = record.exc_info[1] if record.exc_info else None
        ours = record.name.startswith(OURS)
        if error is None and not ours and record.levelno >= logging.ERROR:
            error = sys.exc_info()[1]  # LiteLLM often puts the traceback's text into the message
        ticket = current_ticket()
        if error is not None and ticket is None and not ours and record.name.startswith("uvicorn") and marked(error):
            return  # it escaped a request, which has told it
        if error is not None and ticket is not None:
            request = str(ticket.request_id)
            refused = f"{request} refused"
            if marked(error, request):
                if not ours:
                    return
                error = None
            elif not ours and callers_mistake(error) and (ticket.answered is None or marked(error, refused)):
                mark(error, refused)  # said once more behind the answer, it is no news; another's refusal there is
                ticket.refusal = ticket.refusal or kind_of(error)
                if record.levelno >= logging.WARNING:
                    return
                error = None
            else:
                mark(error, request)
                ticket.told += 1
                if not ours and ticket.answered is None and len(ticket.held) < MAX_HELD:
                    self._hold(ticket, entry_of(record, error, tell_all=self._tell_all), error)
                    return
        self.output.put(entry_of(record, error, tell_all=self._tell_all))

    def record(self, record: Decision | Attempt | Outcome) -> None:
        """The sink of leaf records. They are made into entries without `logging`, which would take several times as long."""
        level = level_of(record)
        if level is None or not decisions.isEnabledFor(level):
            return
        message, fields = line_of(record)
        identity = identity_of(current_ticket())
        self.output.put(Entry(time.time(), level, decisions.name, message, _SOURCE, identity, fields))

    def _hold(self, ticket: Ticket, entry: Entry, error: BaseException) -> None:
        """Keep a line back until the answer's status says whether the caller is at fault."""
        kind, upstream = kind_of(error), providers_fault(error)

        def settle(status: int) -> None:
            if 400 <= status < 500 and refuses(error, status) and (status in CALLER_S or not upstream):
                ticket.refusal = ticket.refusal or kind
            else:
                self.output.put(entry)

        ticket.held.append(settle)

    def close(self, timeout: float = 2.0) -> None:
        """Write and send what waits; what is printed goes where it went before."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, _Lines):
                setattr(sys, name, stream.stream)
        self.output.close(timeout)
        if self._export is not None:
            self._export.close(timeout)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        logging.getLogger("pointsman.process").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))


class _Lines(io.TextIOBase):
    """Standard output or error of libraries: a record of the logger `printed` for each line."""

    def __init__(self, level: int, stream: TextIO) -> None:
        self._level, self.stream, self._rest = level, stream, threading.local()

    def write(self, text: str) -> int:
        rest = getattr(self._rest, "text", "") + text
        *lines, self._rest.text = rest.split("\n")
        for line in lines:
            if line.strip():
                printed.log(self._level, "%s", line.rstrip(), stacklevel=2)
        if len(self._rest.text) > 65_536:  # who never ends a line is told in pieces
            piece, self._rest.text = self._rest.text, ""
            printed.log(self._level, "%s", piece, stacklevel=2)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here but half a line."""

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def buffer(self) -> Any:
        """The bytes' way around, for libraries that insist."""
        return self.stream.buffer
