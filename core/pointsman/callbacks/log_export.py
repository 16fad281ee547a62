"""Log records to a collector by OTLP, over HTTP or gRPC, with OpenTelemetry's own exporters.

Bounded queue, a thread of its own, a time-out an export. A batch that does not get through is tried again in halves, with a
growing pause, while new records wait; when the queue is full the oldest are dropped. So an outage that the queue can hold loses
nothing, and a longer one loses the oldest, counted. A collector that refuses a batch for its size, or for one of its records,
gets the rest of it: a record that is refused again and again, while another gets through, is dropped, and counted.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pointsman.callbacks.log_queue import Waiting
from pointsman.callbacks.log_text import weight
from pointsman.telemetry_settings import OtlpSettings

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter

__all__ = ["Export", "exporter_of"]

MAX_PAUSE = 5.0
MIN_TRIES = 3
"""Of one record before it is seen whether another gets through."""
_OF_THE_RECORD = frozenset({"timestamp", "level", "message", "trace_id", "span_id"})
_CONVENTIONS = {"error_type": "exception.type", "error_message": "exception.message", "stack": "exception.stacktrace"}


def exporter_of(settings: OtlpSettings) -> LogRecordExporter:
    """OpenTelemetry's exporter for the collector.

    Certificates come from the standard variables (`OTEL_EXPORTER_OTLP_CERTIFICATE`, ...), which it reads itself.
    """
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as Grpc

        headers = tuple((name.lower(), value) for name, value in settings.headers.items())
        insecure = settings.endpoint.startswith("http://")
        return Grpc(endpoint=settings.endpoint, insecure=insecure, headers=headers, timeout=settings.timeout)
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as Http

    endpoint = f"{settings.endpoint.rstrip('/')}/v1/logs"
    return Http(endpoint=endpoint, headers=dict(settings.headers), timeout=settings.timeout)


class Export:
    """The thread that sends.

    Args:
        settings: where to, and how much may wait.
        resource: attributes of the process (`service.name`, ...).
        say: told when sending begins to fail and when it works again.
        exporter: in place of the one that the settings name; for tests.
    """

    def __init__(
        self,
        settings: OtlpSettings,
        resource: Mapping[str, Any],
        say: Callable[[int, str], None],
        exporter: LogRecordExporter | None = None,
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self.failing = False
        self._settings = settings
        self._resource, self._scope = Resource(dict(resource)), InstrumentationScope("pointsman")
        self._say = say
        self._exporter = exporter if exporter is not None else exporter_of(settings)
        self._queue = Waiting[dict[str, Any]](settings.queue_size)
        self._pending: deque[list[dict[str, Any]]] = deque()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="pointsman-log-export", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that never arrived."""
        return self._queue.dropped

    @property
    def thread(self) -> threading.Thread:
        """The one that sends; what the exporter says there is not sent again."""
        return self._thread

    def put(self, told: dict[str, Any]) -> None:
        """Hand over one record's fields, redacted; neither blocks nor raises."""
        self._queue.put(told, weight(told))

    def _run(self) -> None:
        tries, pause = 0, self._settings.interval
        while True:
            self._closing.wait(pause)
            closing = self._closing.is_set()
            pause = self._settings.interval
            while self._pending or self._queue:
                if closing and time.monotonic() > self._deadline:
                    break
                if not self._pending:
                    self._pending.append(self._queue.take(self._settings.batch_size))
                if self._send(self._pending[0]):
                    tries = 0
                    self._pending.popleft()
                    self._got_through()
                    continue
                self._did_not()
                tries = tries + 1 if self._split() else 0
                if tries >= MIN_TRIES and self._another_gets_through():
                    tries = 0
                    self._queue.lose(len(self._pending.popleft()))
                    self._say(logging.WARNING, f"{self._settings.endpoint} refuses a log record; it is dropped")
                    self._got_through()
                if closing and not tries:
                    continue
                pause = min(self._settings.interval * 2 ** min(tries, 6), MAX_PAUSE)
                break
            if closing:
                self._queue.lose(sum(len(batch) for batch in self._pending))
                self._pending.clear()
                self._queue.clear()
                return

    def _split(self) -> bool:
        """Halve the first batch; True: it is one record, and cannot be."""
        batch = self._pending.popleft()
        middle = len(batch) // 2
        self._pending.extendleft(part for part in (batch[middle:], batch[:middle]) if part)
        return middle == 0

    def _another_gets_through(self) -> bool:
        """Send the last record that waits here in place of the first, which is alone: if it is taken, the first is at fault."""
        if len(self._pending) == 1:
            self._pending.append(self._queue.take(1))
        last = self._pending[-1]
        if not last:
            self._pending.pop()
            return False
        if not self._send(last[-1:]):
            return False
        last.pop()
        if not last:
            self._pending.pop()
        return True

    def _send(self, batch: Sequence[Mapping[str, Any]]) -> bool:
        from opentelemetry.sdk._logs.export import LogRecordExportResult

        records = []
        for told in batch:
            with contextlib.suppress(Exception):  # one that OTLP cannot say must not take the others with it
                records.append(self._record(told))
        try:
            good = not records or self._exporter.export(records) is LogRecordExportResult.SUCCESS
        except Exception:  # noqa: BLE001 - whatever the collector or the exporter does, requests and lines go on
            return False
        if good:
            self._queue.lose(len(batch) - len(records))
        return good

    def _did_not(self) -> None:
        if not self.failing:
            self.failing = True
            message = f"log records do not reach {self._settings.endpoint}; they wait, the oldest are dropped when full"
            self._say(logging.WARNING, message)

    def _got_through(self) -> None:
        if self.failing and not self._pending:  # what was refused is through, or dropped
            self.failing = False
            endpoint = self._settings.endpoint
            self._say(logging.INFO, f"log records reach {endpoint} again; {self.dropped} were dropped so far")

    def _record(self, told: Mapping[str, Any]) -> ReadableLogRecord:
        from datetime import datetime

        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.sdk._logs import ReadableLogRecord
        from opentelemetry.trace import TraceFlags

        attributes = {
            _CONVENTIONS.get(name, name): _attribute(value)
            for name, value in told.items()
            if name not in _OF_THE_RECORD and value is not None
        }
        nanoseconds = int(datetime.fromisoformat(told["timestamp"]).timestamp() * 1_000_000) * 1_000
        record = LogRecord(
            timestamp=nanoseconds,
            observed_timestamp=time.time_ns(),
            trace_id=int(told.get("trace_id", "0"), 16),
            span_id=int(told.get("span_id", "0"), 16),
            trace_flags=TraceFlags(TraceFlags.SAMPLED if "trace_id" in told else TraceFlags.DEFAULT),
            severity_text=told["level"],
            severity_number=SeverityNumber(_severity(told["level"])),
            body=told["message"],
            attributes=attributes,
        )
        return ReadableLogRecord(record, self._resource, self._scope)

    def close(self, timeout: float = 2.0) -> None:
        """Send what waits, for at most `timeout` seconds."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + 0.5)
        if self._thread.is_alive():
            self._queue.clear()
        threading.Thread(target=self._exporter.shutdown, name="pointsman-log-export-end", daemon=True).start()


def _severity(level: str) -> int:
    """OpenTelemetry's number of a level: the first of the range (TRACE 1, DEBUG 5, INFO 9, WARN 13, ERROR 17, FATAL 21)."""
    number = logging.getLevelName(level)
    if not isinstance(number, int):  # "Level 25"
        found = re.search(r"\d+", level)
        number = int(found[0]) if found is not None else logging.INFO
    return 1 + 4 * max(0, min(number // 10, 5))


def _attribute(value: Any) -> Any:
    """OTLP takes texts, numbers, lists and mappings of them."""
    return value if isinstance(value, str | int | float | bool | list | dict) else str(value)
