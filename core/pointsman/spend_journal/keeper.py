"""Keeps a worker's journal in step with LiteLLM, and books what dead workers left in theirs.

LiteLLM books a request in memory, in the callback of its success: its row into one queue, its costs into others. From there
the rows go every few seconds, the counters with the job `update_spend_job`. So here a callback behind LiteLLM's looks at the
queue of rows and writes what is new into the journal; the scheduler tells when that job begins and ends, and so how far the
entries have come. What is between an answer and its callback, a few milliseconds, is in nobody's books.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pointsman.callbacks.spend import rows_waiting
from pointsman.settings import SpendSettings
from pointsman.spend_journal.books import Recovered, book, by_progress, encode, groups_of, row_of
from pointsman.spend_journal.segments import Journal, Segment
from pointsman.spend_journal.writer import Writer

__all__ = ["JournalKeeper", "SpendJournal"]

logger = logging.getLogger("pointsman.spend_journal")

FLUSH = "update_spend_job"
JOBS = (FLUSH, "update_daily_tag_spend_job")
"""LiteLLM's jobs that write spend; counters are written by the first alone."""
INTERVAL = 2.0
"""Seconds between two looks: for rows of failed requests, which have no callback of success, and for workers that died."""
REMEMBERED = 3
"""Flushes for which request ids are remembered: a row that cannot be written comes back into the queue."""
LATE = 1.0
"""Seconds that the wall clock must go back."""


class SpendJournal(CustomLogger):  # type: ignore[misc]  # LiteLLM is untyped here
    """One worker's; lives on its event loop.

    Args:
        writer: of its journal.
        client: LiteLLM's database client.
        scheduler: LiteLLM's.
        costs: LiteLLM's queue of costs.
    """

    def __init__(self, writer: Writer, client: Any, scheduler: Any, costs: asyncio.Queue[Any]) -> None:
        super().__init__()
        self._writer = writer
        self._client = client
        self._scheduler = scheduler
        self._costs = costs
        self._seen: deque[set[str]] = deque([set()])
        self._claimed: list[Segment] = []
        self._handled: set[str] = set()
        self._failing = False
        self._clocks = time.time() - time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Listen, and book what was left behind, now and from time to time."""
        import litellm
        from apscheduler import events

        steps: dict[int, Callable[[], None]] = {
            events.EVENT_JOB_SUBMITTED: self._flush_begins,
            events.EVENT_JOB_EXECUTED: lambda: self._flush_ends(good=True),
            events.EVENT_JOB_ERROR: lambda: self._flush_ends(good=False),
            events.EVENT_JOB_MISSED: lambda: self._writer.do(Journal.undo),
        }

        def told(event: Any) -> None:
            if event.job_id == FLUSH:
                steps[event.code]()

        self._scheduler.add_listener(told, reduce(or_, steps))
        litellm.logging_callback_manager.add_litellm_async_success_callback(self)  # behind LiteLLM's own
        self.look()
        self._task = asyncio.create_task(self._run(), name="pointsman-spend-journal")

    async def async_log_success_event(
        self, kwargs: Mapping[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """LiteLLM has booked a request just now."""
        self.look(kwargs)
        if not self._knows(f"call {kwargs.get('litellm_call_id')}"):  # its row was taken to be written meanwhile
            row = row_of(kwargs, response_obj, start_time, end_time)
            if row is not None:
                self._write(row, groups_of(kwargs))

    def look(self, kwargs: Mapping[str, Any] | None = None) -> None:
        """Write down what is new in LiteLLM's queue of rows: new ones are at its end, those that come back at its head.

        Args:
            kwargs: of the request that was booked last.
        """
        rows = rows_waiting()
        first = len(rows)
        while first and not self._knows(rows[first - 1]["request_id"]):
            first -= 1
        for row in rows[first:]:
            mine = kwargs is not None and row.get("litellm_call_id") == kwargs.get("litellm_call_id")
            self._write(row, groups_of(kwargs) if mine and kwargs is not None else ())

    def _knows(self, name: str) -> bool:
        return name in self._handled or any(name in names for names in self._seen)

    def _write(self, row: Mapping[str, Any], groups: Sequence[str]) -> None:
        self._seen[-1].update((row["request_id"], f"call {row.get('litellm_call_id')}"))
        try:
            self._writer.put(encode(row, groups))
        except TypeError:  # of orjson, which wants strings to be Unicode; as Postgres does, so LiteLLM will drop the row
            logger.warning("request %s is not in the spend journal: its row has no form", row["request_id"])

    async def seal(self) -> None:
        """All requests have ended; LiteLLM's last flush comes next."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.look()
        at = time.time()
        with contextlib.suppress(OSError):
            await self._writer.ask(lambda journal: journal.seal(at))

    async def close(self) -> None:
        """After LiteLLM's end: leave nothing, unless LiteLLM could not write everything."""
        left = len(self._client.spend_log_transactions)
        if left:
            logger.error("%d requests could not be written at the end; they stay in the spend journal for the next start", left)
        self._writer.do(lambda journal: journal.close(keep=bool(left)))
        await asyncio.to_thread(self._writer.stop)

    def _flush_begins(self) -> None:
        """Sent before the job's first step; the loop has not let anything else run since."""
        self.look()
        at, whole = time.time(), not self._costs.full()
        self._seen.append(set())
        self._writer.do(lambda journal: journal.begin(at, whole=whole))

    def _flush_ends(self, *, good: bool) -> None:
        if good:
            while len(self._seen) > REMEMBERED:
                self._seen.popleft()
        self._writer.do(lambda journal: journal.end(good=good))

    async def _run(self) -> None:
        while True:
            try:
                self.look()
                self._mend_clock()
                await self._recover()
                self._failing = False
            except Exception as error:  # noqa: BLE001 - whatever the database's client raises; it is tried again
                if not self._failing:
                    logger.error("what dead workers left in the spend journal cannot be booked yet: %s", error)
                self._failing = True
            await asyncio.sleep(INTERVAL)

    def _mend_clock(self) -> None:
        """LiteLLM's scheduler goes by the wall clock: once that was ahead and is set back, nothing is due for as long."""
        clocks = time.time() - time.monotonic()
        if clocks < self._clocks - LATE:
            logger.warning(
                "the wall clock went back by %.0f s; what LiteLLM would write later is due now", self._clocks - clocks
            )
            self._hurry(*JOBS)
        self._clocks = clocks

    def _hurry(self, *names: str) -> None:
        for name in names:
            job = self._scheduler.get_job(name)
            if job is not None and job.next_run_time is not None:
                job.modify(next_run_time=datetime.now(job.next_run_time.tzinfo))

    async def _recover(self) -> None:
        self._claimed += await self._writer.ask(Journal.claim)
        if not self._claimed:
            return
        recovered = Recovered()
        for segment in by_progress(self._claimed):
            await book(segment, await asyncio.to_thread(segment.lines), self._handled, recovered)
            self._claimed.remove(segment)
            self._writer.do(partial(Journal.booked, segments=[segment]))
        self._tell(recovered)
        self._hurry(FLUSH)

    def _tell(self, recovered: Recovered) -> None:
        logger.warning(
            "recovered from the spend journal of a worker that died: %d requests, of which %d rows were missing and %d, %.6g $,"
            " were not charged",
            recovered.entries,
            recovered.rows,
            recovered.charged,
            recovered.dollars,
        )
        if recovered.doubtful:
            logger.error(
                "of %d requests, %.6g $, nobody knows whether their keys, users and teams were charged when the worker died;"
                " they are not charged again, and their rows tell what is missing",
                recovered.doubtful,
                recovered.doubtful_dollars,
            )
        if recovered.unreadable:
            logger.warning("%d lines of the spend journal were cut off", recovered.unreadable)


class JournalKeeper:
    """The journal of a worker's life, or none: without a database, or where it is off or cannot be.

    Args:
        folder: of all workers' journals; None: there is no database.
        settings: of the section.
    """

    def __init__(self, folder: str | None, settings: SpendSettings) -> None:
        self._folder = Path(folder) if folder is not None and settings.journal else None
        self._limit = settings.journal_mb * 2**20
        self._journal: SpendJournal | None = None

    def begin(self) -> None:
        """To be called once LiteLLM has started. A folder that cannot be written to is told, and stops nothing."""
        from litellm.proxy import proxy_server

        if self._folder is None or proxy_server.prisma_client is None or proxy_server.scheduler is None:
            return
        if proxy_server.disable_spend_logs or proxy_server.spend_event_producer is not None:
            logger.warning("LiteLLM keeps no log of requests in this process, so there is no spend journal either")
            return
        try:
            writer = Writer(Journal(self._folder, self._limit))
        except OSError as error:
            logger.error("there is no spend journal, so spend is lost if this worker is killed: %s", error)
            return
        costs = proxy_server.proxy_logging_obj.db_spend_update_writer.spend_update_queue.update_queue
        self._journal = SpendJournal(writer, proxy_server.prisma_client, proxy_server.scheduler, costs)
        self._journal.begin()

    def around(self, app: ASGIApp) -> ASGIApp:
        """ASGI middleware that seals the journal between the last request and LiteLLM's own end."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def receive_sealing() -> Message:
                message = await receive()
                if message["type"] == "lifespan.shutdown" and self._journal is not None:
                    await self._journal.seal()
                return message

            await app(scope, receive_sealing if scope["type"] == "lifespan" else receive, send)

        return wrapped

    async def close(self) -> None:
        """After LiteLLM's end."""
        if self._journal is not None:
            await self._journal.close()
