"""Lines leave the process here: a bounded queue and one thread, so that a reader who is slow or gone holds up no request.

What is written has no partner: a pipe whose reader stalls blocks this thread alone, the queue fills, the oldest records are
dropped and counted. Several processes of an instance write to one pipe or file; a lock file keeps their lines apart. Its first
byte says that somebody gave up in the middle of a line, so that whoever writes next begins a new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pointsman.callbacks.log_queue import Waiting
from pointsman.callbacks.log_records import Entry

__all__ = ["Output"]

BATCH = 256
LOOK = 0.1
"""Seconds between two looks of the thread: to wake it for each line would cost a request more than the line does. It is woken
for warnings and errors, and when as much waits as is written at a time."""
PATIENCE = 5.0
"""Seconds that a write to a descriptor that does not block waits for its reader; then the batch is given up."""


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
        self._descriptor = descriptor
        self._make, self._render, self._also = make, render, also
        self._queue = Waiting[Entry](queue_size)
        self._lock: int | None = None
        self._torn = False
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pointsman-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Entries that were never written whole: the queue was full, or they could not be."""
        return self._queue.dropped

    def lose(self, count: int = 1) -> None:
        """Count entries that could not even be made."""
        self._queue.lose(count)

    @property
    def thread(self) -> threading.Thread:
        """The one that writes; what it says itself must not come back to it."""
        return self._thread

    def share(self, lock: Path) -> None:
        """From here on other processes write there as well."""
        self._lock = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def put(self, entry: Entry) -> None:
        """Hand over one entry; neither blocks nor raises."""
        self._queue.put(entry, entry.weight)
        if (entry.level >= logging.WARNING or len(self._queue) >= BATCH) and not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(LOOK)
            self._wake.clear()
            while self._queue:
                self._write(self._queue.take(BATCH))
            if self._closing:
                return

    def _write(self, entries: Sequence[Entry]) -> None:
        lines = []
        for entry in entries:
            try:
                told = self._make(entry)
                lines.append(self._render(told))
            except Exception:  # noqa: BLE001 - one record that cannot be rendered must not end the thread
                self.lose()
                continue
            if self._also is not None:
                self._also(entry, told)
        if not lines:
            return
        with self._alone():
            self._put_out(lines)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process writes."""
        lock = self._lock
        if lock is None:
            yield
            return
        with contextlib.suppress(OSError):  # rather lines that may mix than none
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._torn = os.pread(lock, 1, 0) == b"\1"
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.pwrite(lock, b"\1" if self._torn else b"\0", 0)
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _put_out(self, lines: Sequence[bytes]) -> None:
        before = b"\n" if self._torn else b""
        data = memoryview(before + b"".join(lines))
        done, until = 0, time.monotonic() + PATIENCE
        ready = select.poll()
        ready.register(self._descriptor, select.POLLOUT)
        try:
            while done < len(data):
                try:
                    done += os.write(self._descriptor, data[done:])
                    until = time.monotonic() + PATIENCE
                except BlockingIOError:  # whoever shares the pipe with us has set it so
                    if time.monotonic() > until:
                        raise
                    ready.poll(1_000 * LOOK)
        except OSError:  # the reader is gone or does not read, or the disk is full
            ends = itertools.accumulate(map(len, lines), initial=len(before))
            whole = [end for end in ends if end <= done]
            self.lose(len(lines) - max(0, len(whole) - 1))
            self._torn = (self._torn and not whole) or bool(whole and whole[-1] < done)
        else:
            self._torn = False

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():  # it waits for who reads
            self._queue.clear()
        if self._lock is not None and not self._thread.is_alive():
            os.close(self._lock)
            self._lock = None

    def flushed(self, timeout: float) -> bool:
        """Wait until nothing waits; for tests and the end of a process."""
        deadline = time.monotonic() + timeout
        while self._queue and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._queue
