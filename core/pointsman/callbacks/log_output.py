"""Lines leave the process here: a bounded queue and one thread, so that a reader who is slow or gone holds up no request.

What is written has no partner: a pipe whose reader stalls blocks this thread alone, the queue fills, the oldest records are
dropped and counted. Several processes of an instance write to one pipe or file; a lock file keeps their lines apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pointsman.callbacks.log_records import Entry

__all__ = ["Output"]

BATCH = 256
LOOK = 0.1
"""Seconds between two looks of the thread: to wake it for each line would cost a request more than the line does. It is woken
for warnings and errors, and when as much waits as is written at a time."""


class Output:
    """The thread that makes lines of entries and writes them.

    Args:
        descriptor: where to write.
        make: entry -> fields, redacted.
        render: fields -> line.
        queue_size: entries that may wait.
        also: given the fields of each entry, too; must neither block nor raise.
    """

    def __init__(
        self,
        descriptor: int,
        make: Callable[[Entry], dict[str, Any]],
        render: Callable[[dict[str, Any]], bytes],
        queue_size: int,
        also: Callable[[Entry, dict[str, Any]], None] | None = None,
    ) -> None:
        self.dropped = 0
        """Entries that were never written: the queue was full, or they could not be."""
        self._descriptor = descriptor
        self._make, self._render, self._also = make, render, also
        self._queue: deque[Entry] = deque(maxlen=queue_size)
        self._lock: int | None = None
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pointsman-log", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> threading.Thread:
        """The one that writes; what it says itself must not come back to it."""
        return self._thread

    def share(self, lock: Path) -> None:
        """From here on other processes write there as well."""
        self._lock = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def put(self, entry: Entry) -> None:
        """Hand over one entry; neither blocks nor raises."""
        if len(self._queue) == self._queue.maxlen:
            self.dropped += 1  # deque drops the oldest by itself
        self._queue.append(entry)
        if (entry.level >= logging.WARNING or len(self._queue) >= BATCH) and not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(LOOK)
            self._wake.clear()
            while self._queue:
                self._write(self._take())
            if self._closing:
                return

    def _take(self) -> list[Entry]:
        taken: list[Entry] = []
        with contextlib.suppress(IndexError):  # `put` may drop the last one at this moment
            while len(taken) < BATCH:
                taken.append(self._queue.popleft())
        return taken

    def _write(self, entries: Sequence[Entry]) -> None:
        lines = []
        for entry in entries:
            try:
                told = self._make(entry)
                lines.append(self._render(told))
            except Exception:  # noqa: BLE001 - one record that cannot be rendered must not end the thread
                self.dropped += 1
                continue
            if self._also is not None:
                self._also(entry, told)
        data, lock = memoryview(b"".join(lines)), self._lock
        try:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # the reader is gone, or the disk is full
            self.dropped += len(lines)
        finally:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        if self._lock is not None and not self._thread.is_alive():
            os.close(self._lock)
            self._lock = None

    def flushed(self, timeout: float) -> bool:
        """Wait until nothing waits; for tests and the end of a process."""
        deadline = time.monotonic() + timeout
        while self._queue and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._queue
