"""Log records to a collector by OTLP, over HTTP or gRPC, with OpenTelemetry's own exporters.

Bounded queue, a thread of its own, a time-out an export. A batch that does not get through is tried again, with a growing
pause, while new records wait; when the queue is full the oldest are dropped. So an outage that the queue can hold loses
nothing, and a longer one loses the oldest, counted. A batch that a working collector keeps refusing is given up after
`MAX_TRIES`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pointsman.telemetry_settings import OtlpSettings

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter

__all__ = ["Export", "exporter_of"]

MAX_PAUSE = 5.0
MAX_TRIES = 24
"""With the pauses and time-outs at least two minutes."""
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

        self.dropped = 0
        """Records that never arrived."""
        self.failing = False
        self._settings = settings
        self._resource, self._scope = Resource(dict(resource)), InstrumentationScope("pointsman")
        self._say = say
        self._exporter = exporter if exporter is not None else exporter_of(settings)
        self._queue: deque[dict[str, Any]] = deque(maxlen=settings.queue_size)
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="pointsman-log-export", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> threading.Thread:
        """The one that sends; what the exporter says there is not sent again."""
        return self._thread

    def put(self, told: dict[str, Any]) -> None:
        """Hand over one record's fields, redacted; neither blocks nor raises."""
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1
        self._queue.append(told)

    def _run(self) -> None:
        tries, pause, batch = 0, self._settings.interval, list[dict[str, Any]]()
        while True:
            self._closing.wait(pause)
            closing = self._closing.is_set()
            pause = self._settings.interval
            while batch or self._queue:
                if closing and time.monotonic() > self._deadline:
                    break
                batch = batch or self._take()
                if self._send(batch):
                    tries, batch = 0, []
                    continue
                tries += 1
                if tries >= MAX_TRIES:
                    self.dropped += len(batch)
                    tries, batch = 0, []
                pause = min(self._settings.interval * 2 ** min(tries, 6), MAX_PAUSE)
                break
            if closing:
                self.dropped += len(batch) + len(self._queue)
                self._queue.clear()
                return

    def _take(self) -> list[dict[str, Any]]:
        taken: list[dict[str, Any]] = []
        with contextlib.suppress(IndexError):
            while len(taken) < self._settings.batch_size:
                taken.append(self._queue.popleft())
        return taken

    def _send(self, batch: list[dict[str, Any]]) -> bool:
        from opentelemetry.sdk._logs.export import LogRecordExportResult

        try:
            result = self._exporter.export([self._record(told) for told in batch])
            good = result is LogRecordExportResult.SUCCESS
        except Exception:  # noqa: BLE001 - whatever the collector or the exporter does, requests and lines go on
            good = False
        if good == self.failing:
            self.failing = not good
            collector = self._settings.endpoint
            if good:
                self._say(logging.INFO, f"log records reach {collector} again; {self.dropped} were dropped so far")
            else:
                self._say(logging.WARNING, f"log records do not reach {collector}; they wait, the oldest are dropped when full")
        return good

    def _record(self, told: Mapping[str, Any]) -> ReadableLogRecord:
        from datetime import datetime

        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.sdk._logs import ReadableLogRecord
        from opentelemetry.trace import TraceFlags

        level = logging.getLevelName(told["level"])
        severity = {10: SeverityNumber.DEBUG, 20: SeverityNumber.INFO, 30: SeverityNumber.WARN, 40: SeverityNumber.ERROR}
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
            severity_number=severity.get(level if isinstance(level, int) else 0, SeverityNumber.FATAL),
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
            self.dropped += len(self._queue)
        threading.Thread(target=self._exporter.shutdown, name="pointsman-log-export-end", daemon=True).start()


def _attribute(value: Any) -> Any:
    """OTLP takes texts, numbers, lists and mappings of them."""
    return value if isinstance(value, str | int | float | bool | list | dict) else str(value)
