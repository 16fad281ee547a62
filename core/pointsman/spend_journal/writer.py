"""The thread that owns a worker's journal: the event loop never waits for the disk, and all is done in the order told."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from pointsman.spend_journal.segments import Journal

__all__ = ["MAX_WAITING", "Writer"]

logger = logging.getLogger("pointsman.spend_journal")

MAX_WAITING = 20_000
"""Lines that may wait for a disk that hangs."""

T = TypeVar("T")
_Work = Callable[[Journal], object]


class Writer:
    """Writes lines, and does what else is to be done, one after the other.

    Entries that cannot be written are lost to the journal, not to LiteLLM; that is told once, and once more when all is well.

    Args:
        journal: nobody else touches it from here on.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queue: queue.SimpleQueue[bytes | _Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pointsman-spend-journal", daemon=True)
        self._unwritten = 0
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Have a line written, its end included."""
        if self._queue.qsize() < MAX_WAITING:
            self._queue.put(line)
        else:
            self._lost(1, f"the disk hangs; {MAX_WAITING} entries wait for it")

    def do(self, work: Callable[[Journal], object]) -> None:
        """Have something done after what was put before; if the disk fails in it, that is told."""
        self._queue.put(work)

    async def ask(self, work: Callable[[Journal], T]) -> T:
        """Have something done, and wait for what comes of it.

        Raises:
            OSError: the disk failed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: OSError | None) -> None:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(result)  # type: ignore[arg-type]

        def asked(journal: Journal) -> None:
            try:
                result = work(journal)
            except OSError as error:
                loop.call_soon_threadsafe(settle, None, error)
            else:
                loop.call_soon_threadsafe(settle, result, None)

        self._queue.put(asked)
        return await future

    def stop(self) -> None:
        """Do what is still to be done, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        lines: list[bytes] = []
        item = self._queue.get()
        while item is not None:
            if isinstance(item, bytes):
                lines.append(item)
                if len(lines) < 64 and not self._queue.empty():
                    item = self._queue.get()
                    continue
            self._write(lines)
            lines = []
            if not isinstance(item, bytes):
                self._do(item)
            item = self._queue.get()
        self._write(lines)

    def _do(self, work: _Work) -> None:
        try:
            work(self._journal)
        except OSError as error:
            logger.error("the spend journal cannot be kept in order: %s", error)

    def _write(self, lines: list[bytes]) -> None:
        if not lines:
            return
        try:
            taken = self._journal.append(b"".join(lines))
        except OSError as error:
            self._lost(len(lines), str(error))
            return
        if not taken:
            self._lost(len(lines), "it is full, because spend is not written to the database (pointsman.spend.journal_mb)")
        elif self._unwritten:
            logger.warning("the spend journal takes entries again, after %d that are not in it", self._unwritten)
            self._unwritten = 0

    def _lost(self, count: int, why: str) -> None:
        if not self._unwritten:
            logger.error("the spend journal takes no entries, so what they cost is lost if this worker is killed: %s", why)
        self._unwritten += count
