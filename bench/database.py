"""Our query engine beside a plain psycopg loop: the same SQL on the same server, alternately, in one run.

    python -m bench.database [--rounds 5] [--json]          from the repository's root; `make bench-database` does it

What is measured, by one client process with 1, 8 and 50 callers at once:

- **lookup**: the statement behind each request whose key is not in memory: the key with its team, budgets and so on. It is
  asked of LiteLLM's own code, not written here. Each caller takes another key.
- **page**: 50 keys of a team, newest first, all columns (`find_many`), as the admin pages do.
- **flush**: 100 keys' spend raised in one transaction, as the workers do every few seconds.

What is compared:

- **engine**: prisma-client-py, which LiteLLM brings; HTTP; our Node server with Prisma's engine as WASM; `pg`.
- **plain**: psycopg's asyncio connections, rows as dictionaries, statements prepared by psycopg's own rule. No process between,
  no object mapping, no validation: not an alternative, but the floor.

Both have ten connections (LiteLLM's default). Latencies are in milliseconds, rates in operations a second, each the median of
the rounds; a ratio is the median of the rounds' ratios, engine through plain.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, LiteralString, cast

import psycopg
import uvloop
from bench.database_data import FAST_AND_UNSAFE, TEAMS, add_keys, settle, token
from psycopg.rows import dict_row

from pointsman.embedded_postgres import EmbeddedPostgres
from pointsman.migrations.engine import QueryEngine
from pointsman.migrations.runner import migrate

__all__ = ["Report", "Row", "main", "measure"]

CONNECTIONS = 10
PAGE = 50
BATCH = 100
CALLERS = (1, 8, 50)
PATIENCE = timedelta(seconds=60)
# Operations a round, by number of callers: enough for a 99th percentile, few enough for a round to take a second or so.
OPERATIONS = {"lookup": (300, 600, 1200), "page": (100, 200, 300), "flush": (8, 16, 50)}

Operation = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Row:
    """One operation with one number of callers.

    Attributes:
        operation: lookup, page or flush.
        callers: at once.
        engine: medians over the rounds: p50, p95, p99 in ms; rate a second.
        plain: the same of psycopg.
        ratio: medians of the rounds' ratios, engine through plain.
    """

    operation: str
    callers: int
    engine: dict[str, float]
    plain: dict[str, float]
    ratio: dict[str, float]


@dataclass(frozen=True, slots=True)
class Report:
    """All rows, and what they were measured with."""

    rows: tuple[Row, ...]
    keys: int
    rounds: int
    connections: int
    cores: int


def lookup_statement() -> LiteralString:
    """LiteLLM's own statement for a key: caught where its client would send it."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm.proxy.utils import PrismaClient

    seen: list[str] = []

    async def catch(statement: str, *_: object) -> None:
        seen.append(statement)

    recorder = SimpleNamespace(_query_first_with_cached_plan_fallback=catch)
    ask = cast("Any", PrismaClient.get_data)
    asyncio.run(ask(recorder, token="0" * 64, table_name="combined_view", query_type="find_unique", check_deprecated=False))
    return seen[0]


class Plain:
    """psycopg: so many connections, each lent to one caller at a time."""

    def __init__(
        self, connections: Sequence[psycopg.AsyncConnection[dict[str, Any]]], statement: LiteralString, columns: str
    ) -> None:
        self._free: asyncio.Queue[psycopg.AsyncConnection[dict[str, Any]]] = asyncio.Queue()
        for connection in connections:
            self._free.put_nowait(connection)
        self._lookup = statement.replace("%", "%%").replace("$1", "%s")
        self._page = (
            f'SELECT {columns} FROM "LiteLLM_VerificationToken" WHERE team_id = %s ORDER BY created_at DESC LIMIT {PAGE}'  # noqa: S608
        )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        connection = await self._free.get()
        try:
            yield connection
        finally:
            self._free.put_nowait(connection)

    async def lookup(self, key: int) -> object:
        async with self._connection() as connection:
            row = await (await connection.execute(self._lookup.encode(), (token(key),))).fetchone()
        assert row is not None
        return row

    async def page(self, key: int) -> object:
        async with self._connection() as connection:
            rows = await (await connection.execute(self._page.encode(), (f"team-{key % TEAMS}",))).fetchall()
        assert len(rows) == PAGE
        return rows

    async def flush(self, key: int) -> object:
        statement = 'UPDATE "LiteLLM_VerificationToken" SET spend = spend + %s, updated_at = now() WHERE token = %s'
        async with self._connection() as connection, connection.transaction():
            for one in _some(key):
                await connection.execute(statement, (0.001, one))
        return None


class Engine:
    """prisma-client-py, as LiteLLM uses it."""

    def __init__(self, client: Any, statement: LiteralString) -> None:
        self._client = client
        self._statement = statement

    async def lookup(self, key: int) -> object:
        row = await self._client.query_first(self._statement, token(key))
        assert row is not None
        return row

    async def page(self, key: int) -> object:
        where = {"team_id": f"team-{key % TEAMS}"}
        rows = await self._client.litellm_verificationtoken.find_many(where=where, order={"created_at": "desc"}, take=PAGE)
        assert len(rows) == PAGE
        return rows

    async def flush(self, key: int) -> object:
        # Fifty callers share ten connections; Prisma's own patience of two seconds is not what is measured.
        async with self._client.tx(max_wait=PATIENCE, timeout=PATIENCE) as transaction, transaction.batch_() as batch:
            for one in _some(key):
                batch.litellm_verificationtoken.update_many(where={"token": one}, data={"spend": {"increment": 0.001}})
        return None


def _some(key: int) -> list[str]:
    """A flush's keys: neighbours of `key`, in the order that keeps two flushes from waiting for each other in a circle."""
    return sorted(token(key // BATCH * BATCH + offset + 1) for offset in range(BATCH))


async def run(operation: Operation, callers: int, count: int, numbers: Callable[[], int]) -> dict[str, float]:
    """`count` operations by so many callers at once; percentiles of the latency in ms, and the rate a second."""
    left = iter(range(count))
    taken: list[float] = []

    async def call() -> None:
        for _ in left:
            begun = time.perf_counter()
            await operation(numbers())
            taken.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    seconds = time.perf_counter() - begun
    taken.sort()
    at = {
        name: taken[min(len(taken) - 1, int(len(taken) * share))]
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    return {**at, "rate": count / seconds}


async def measure(folder: Path, *, rounds: int, keys: int, statement: LiteralString, log: Any = sys.stderr) -> Report:
    """Fill a database in `folder`, warm both sides up, then measure each operation `rounds` times alternately.

    Args:
        folder: an empty directory.
        rounds: of each operation with each number of callers.
        keys: in the database; a multiple of `TEAMS` times `PAGE`.
        statement: see `lookup_statement`.
        log: where progress is written.
    """
    options = FAST_AND_UNSAFE | {"shared_buffers": "128MB"}
    postgres = EmbeddedPostgres(folder / "database", options=options)
    url = await postgres.start()
    try:
        await asyncio.to_thread(migrate, url, lambda _line: None)
        await asyncio.to_thread(add_keys, url, keys)
        await asyncio.to_thread(settle, url)
        engine_folder = folder / "engine"
        engine_folder.mkdir(mode=0o700)
        engine = QueryEngine(f"{url}?connection_limit={CONNECTIONS}", engine_folder)
        await engine.start()
        try:
            async with _sides(url, engine, statement) as sides:
                rows = await _measure(sides, rounds, keys, log)
        finally:
            await engine.stop()
    finally:
        await postgres.stop()
    return Report(tuple(rows), keys, rounds, CONNECTIONS, len(os.sched_getaffinity(0)))


@asynccontextmanager
async def _sides(url: str, engine: QueryEngine, statement: LiteralString) -> AsyncIterator[dict[str, Any]]:
    from prisma import Prisma

    os.environ.update(engine.environment)
    client = Prisma(datasource={"url": url})
    await client.connect()
    connections = [
        await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row) for _ in range(CONNECTIONS)
    ]
    try:
        found = await connections[0].execute(
            "SELECT string_agg(quote_ident(attname), ', ') AS names FROM pg_attribute "
            "WHERE attrelid = '\"LiteLLM_VerificationToken\"'::regclass AND attnum > 0 AND NOT attisdropped"
        )
        columns = await found.fetchone()
        assert columns is not None
        yield {"plain": Plain(connections, statement, columns["names"]), "engine": Engine(client, statement)}
    finally:
        for connection in connections:
            await connection.close()
        await client.disconnect()


async def _measure(sides: dict[str, Any], rounds: int, keys: int, log: Any) -> list[Row]:
    counter = itertools.count(1)

    def numbers() -> int:
        # Strides of a prime: no two callers meet in one flush's keys, and every key has its turn.
        return next(counter) * 7919 % keys + 1

    rows = []
    for name, counts in OPERATIONS.items():
        for callers, count in zip(CALLERS, counts, strict=True):
            figures: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for turn in range(rounds + 1):
                # The first turn warms up; afterwards each side is the first one every other time.
                for side in sorted(sides, reverse=turn % 2 == 0):
                    measured = await run(getattr(sides[side], name), callers, count if turn else min(count, 100), numbers)
                    if turn:
                        figures[side].append(measured)
            rows.append(_row(name, callers, figures))
            print(shown(rows[-1]), file=log, flush=True)
    return rows


def _row(name: str, callers: int, figures: dict[str, list[dict[str, float]]]) -> Row:
    medians = {
        side: {what: round(statistics.median(one[what] for one in measured), 2) for what in measured[0]}
        for side, measured in figures.items()
    }
    pairs = list(zip(figures["engine"], figures["plain"], strict=True))
    ratio = {what: round(statistics.median(ours[what] / floor[what] for ours, floor in pairs), 2) for what in pairs[0][0]}
    return Row(name, callers, medians["engine"], medians["plain"], ratio)


def shown(row: Row) -> str:
    """One line for people."""
    sides = (("engine", row.engine), ("plain", row.plain))
    said = "  ".join(f"{side} {f['p50']:.2f}/{f['p95']:.2f}/{f['p99']:.2f} ms {f['rate']:.0f}/s" for side, f in sides)
    return f"{row.operation:>7} x{row.callers:<3} {said}  ratio {row.ratio['p50']:.2f} (rate {row.ratio['rate']:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.database", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each operation (default 5)")
    parser.add_argument("--keys", type=int, default=10_000, help="keys in the database (default 10000)")
    parser.add_argument("--json", action="store_true", help="print only JSON on standard output")
    chosen = parser.parse_args(arguments)
    keys = max(1, chosen.keys // (TEAMS * PAGE)) * TEAMS * PAGE
    statement = lookup_statement()
    # As in LiteLLM's workers: a full collection of LiteLLM's modules takes long.
    gc.collect()
    gc.freeze()
    with (
        tempfile.TemporaryDirectory(prefix="pointsman-bench-") as scratch,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        report = runner.run(measure(Path(scratch), rounds=max(1, chosen.rounds), keys=keys, statement=statement))
    if chosen.json:
        print(json.dumps(asdict(report)))
    else:
        print("\n".join(shown(row) for row in report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
