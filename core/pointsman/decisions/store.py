"""The bounded, batched store of decision records: one a worker, written behind the requests' backs.

`put` appends to a queue in memory and returns. A task writes batches on a connection of its own; while the database is away
the records wait, up to the bound, and what comes after is dropped and counted. A batch whose answer was lost is written again,
which changes nothing (`ON CONFLICT DO NOTHING`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections import deque
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import libpq_url, own_schema, redact
from pointsman.decisions.maintenance import erase, maintain
from pointsman.decisions.rows import Record, encode, inserts
from pointsman.decisions.types import Decision
from pointsman.settings import DecisionSettings

__all__ = ["DecisionStore", "erase", "maintain"]

_log = logging.getLogger(__name__)
_CONNECT_SECONDS = 10
_WRITE_SECONDS = 15.0
# Times that a batch is tried again because the partitions changed under it: its tables have one change a day each.
_MOVES = 5
_BACKOFF = (0.1, 10.0)
# With `privacy.capture_prompts`: prompt characters that may wait, so that the bound on records is a bound on memory too.
_PROMPT_CHARACTERS = 64 * 2**20


class DecisionStore:
    """Queue and writer.

    Args:
        database_url: LiteLLM's DATABASE_URL; None: nothing is kept.
        settings: bound, batch size, interval; `enabled: false`: nothing is kept.
    """

    def __init__(self, database_url: str | None, settings: DecisionSettings) -> None:
        self._url = database_url if settings.enabled else None
        self._settings = settings
        self._inserts: dict[type[Record], sql.Composed] = {}
        self._queue: deque[Record] = deque()
        self._prompt_characters = 0
        self._dropped = 0
        self._written = 0
        self._closed = False
        self._closing = asyncio.Event()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection: psycopg.AsyncConnection[Any] | None = None

    @property
    def enabled(self) -> bool:
        """Whether records are kept at all."""
        return self._url is not None

    @property
    def dropped(self) -> int:
        """Records that were not kept: over the bound, refused by the database, or left at the end."""
        return self._dropped

    @property
    def written(self) -> int:
        """Records that the database acknowledged."""
        return self._written

    @property
    def pending(self) -> int:
        """Records in memory, those of the batch under way included."""
        return len(self._queue)

    def put(self, record: Record) -> None:
        """Keep a record. Never blocks, never raises; callable from any thread."""
        if self._url is None:
            return
        prompt = len(record.prompt or "") if isinstance(record, Decision) else 0
        if (
            self._closed
            or len(self._queue) >= self._settings.queue_size
            or (prompt and self._prompt_characters + prompt > _PROMPT_CHARACTERS)
        ):
            self._dropped += 1
            return
        self._prompt_characters += prompt
        self._queue.append(record)
        if len(self._queue) == self._settings.batch_size and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                self._loop.call_soon_threadsafe(self._wake.set)

    async def start(self) -> None:
        """Start the writer; it connects by itself, so a database that is away is no error here."""
        if self._url is None or self._task is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._write_behind(self._url), name="pointsman-decision-store")

    async def close(self, timeout: float) -> None:
        """Write what is left, for at most `timeout` seconds; the rest is dropped and counted. Idempotent."""
        self._closed = True
        self._closing.set()
        self._wake.set()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait({task}, timeout=max(0.0, timeout))
            # The first cancellation lets psycopg cancel its query politely, which a dead server never answers; the second cuts.
            for _ in range(2):
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task}, timeout=0.5)
        self._cut()
        if self._queue:
            _log.warning("decision store closed with %d record(s) not written", len(self._queue))
            self._dropped += len(self._queue)
            self._queue.clear()
            self._prompt_characters = 0

    def _cut(self) -> None:
        """Close the connection without a word to the server, which may not be listening."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.pgconn.finish()

    async def _write_behind(self, url: str) -> None:
        pause = 0.0
        while True:
            await self._rest(pause or self._settings.flush_interval, failing=pause > 0)
            try:
                while self._queue:
                    await self._write_batch(url)
                    if pause:
                        _log.warning("decision store writes again; %d record(s) wait, %d dropped", self.pending, self._dropped)
                        pause = 0.0
            except Exception as error:  # noqa: BLE001 - a writer that died of a surprise would lose every later record
                self._cut()
                if not pause:
                    said = redact(f"{type(error).__name__}: {error}", url).strip()
                    _log.warning("decision store cannot write, records wait in memory: %s", said)
                pause = min(max(_BACKOFF[0], pause * 2), _BACKOFF[1])
            if self._closing.is_set() and not self._queue:
                return

    async def _rest(self, seconds: float, *, failing: bool) -> None:
        """Sleep between two writes; a full batch ends it, when closing there is hardly any."""
        if self._closing.is_set():
            await asyncio.sleep(min(seconds, 0.2) if failing else 0)
            return
        event = self._closing if failing else self._wake
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the workers, no secret
        self._wake.clear()

    async def _write_batch(self, url: str) -> None:
        batch = list(itertools.islice(self._queue, self._settings.batch_size))
        async with asyncio.timeout(_WRITE_SECONDS):
            connection = await self._connected(url)
            written = await self._write(connection, batch)
        # Only now, and only here, records leave the queue: whatever happens above, they are still in it.
        for record in batch:
            self._queue.popleft()
            if isinstance(record, Decision) and record.prompt:
                self._prompt_characters -= len(record.prompt)
        self._written += written
        self._dropped += len(batch) - written

    async def _connected(self, url: str) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            connection = await psycopg.AsyncConnection.connect(
                libpq_url(url),
                autocommit=True,
                connect_timeout=_CONNECT_SECONDS,
                application_name="pointsman decisions",
                prepare_threshold=None,  # poolers in transaction mode
            )
            self._connection = connection
            self._inserts = inserts(own_schema(url))
        return self._connection

    async def _write(self, connection: psycopg.AsyncConnection[Any], batch: list[Record], moves: int = _MOVES) -> int:
        """Write a batch in one transaction; when the database refuses its content, the halves, so that one bad record is alone.

        Returns:
            How many were written; the others are records that no retry would mend.
        """
        try:
            async with connection.transaction():
                for kind, statement in self._inserts.items():
                    records = [record for record in batch if isinstance(record, kind)]
                    if records:
                        await connection.execute(statement, (encode(records),))
        except (psycopg.DataError, psycopg.IntegrityError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, psycopg.errors.CheckViolation) and moves:
                # A row was on its way to the default partition when its day got a partition of its own; it finds that now.
                return await self._write(connection, batch, moves - 1)
            if len(batch) == 1:
                _log.error("decision store dropped a record that cannot be stored: %s: %s", type(error).__name__, error)
                return 0
            middle = len(batch) // 2
            return await self._write(connection, batch[:middle]) + await self._write(connection, batch[middle:])
        return len(batch)
