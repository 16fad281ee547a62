"""What a large database costs: 100,000 keys, 10 million rows of LiteLLM's request log, 3 million decisions of ours.

    python -m bench.database_scale [--rows 10000000] [--keys 100000] [--decisions 3000000] [--json]

from the repository's root. A large and a small database stand on one server, which is thrown away afterwards and therefore runs
without fsync; both are made here, in SQL: some minutes, one gigabyte a million rows. What both can do is measured alternately:
looking up keys through the engine, raising spend, starting a gateway, requests with a key that it has not seen yet. Pages of
the admin interface, erasure and retention are measured on the large one. Times are in milliseconds unless named seconds.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import uvloop
from bench.database import CONNECTIONS, Engine, lookup_statement, run
from bench.database_data import FAST_AND_UNSAFE, TEAMS, add_decisions, add_keys, add_spend, settle, token
from bench.database_gateway import gateway, pages, say, spend_of_requests, spread, unseen_keys
from psycopg import sql

from pointsman.database_url import own_schema
from pointsman.decisions.maintenance import erase, maintain
from pointsman.embedded_postgres import EmbeddedPostgres
from pointsman.migrations.engine import QueryEngine
from pointsman.migrations.runner import build_indexes, migrate

__all__ = ["main", "measure"]

DAYS = 30
SMALL = {"rows": 10_000, "keys": 10_000, "decisions": 3_000}
ROUNDS = 3
STARTS = 2


def asked(connection: psycopg.Connection[Any], statement: sql.Composed, values: Iterable[object]) -> list[float]:
    """Seconds of a query, for each value."""
    taken = []
    for value in values:
        begun = time.perf_counter()
        connection.execute(statement, (value,)).fetchall()
        taken.append(time.perf_counter() - begun)
    return taken


async def fill(folder: Path, url: str, rows: int, keys: int, decisions: int) -> float:
    """Migrate and fill a database; returns the seconds."""
    begun = time.perf_counter()
    await asyncio.to_thread(migrate, url, lambda _line: None)
    await asyncio.to_thread(build_indexes, url)
    async with connected(folder, url) as client:
        # What LiteLLM does at its first start; on a large database it would not.
        from litellm.proxy.db.create_views import create_missing_views

        await create_missing_views(client)
    await asyncio.to_thread(add_keys, url, keys)
    await asyncio.to_thread(add_spend, url, rows, keys, log=say)
    today = datetime.now(UTC)
    for age in range(DAYS):
        await maintain(url, 100, now=today - timedelta(days=age))
    await asyncio.to_thread(add_decisions, url, decisions, keys, [today.date() - timedelta(days=age) for age in range(DAYS)])
    say(f"{decisions} decisions, as many attempts and outcomes")
    await asyncio.to_thread(settle, url)
    say("vacuumed and analysed")
    return time.perf_counter() - begun


@asynccontextmanager
async def connected(place: Path, url: str) -> AsyncIterator[Any]:
    """LiteLLM's database client, on an engine of its own."""
    from prisma import Prisma

    await asyncio.to_thread(place.mkdir, 0o700)
    engine = QueryEngine(f"{url}?connection_limit={CONNECTIONS}", place)
    await engine.start()
    os.environ.update(engine.environment)
    client = Prisma(datasource={"url": url})
    await client.connect()
    try:
        yield client
    finally:
        await client.disconnect()
        await engine.stop()


async def through_the_engine(
    folder: Path, urls: dict[str, str], sizes: dict[str, int], statement: LiteralString
) -> dict[str, Any]:
    """Key look-ups by eight callers, and flushes of spend and of the request log by one; by database."""
    figures: dict[str, dict[str, list[dict[str, float]]]] = {name: {"lookup": [], "flush": []} for name in urls}
    for turn in range(ROUNDS + 1):
        for name, url in urls.items():
            async with connected(folder / f"engine-{name}-{turn}", url) as client:
                counter, side = itertools.count(turn * 100_000), Engine(client, statement)

                def number(counter: Iterator[int] = counter, keys: int = sizes[name]) -> int:
                    return next(counter) * 7919 % keys + 1

                await run(side.lookup, 8, 200, number)
                looked_up = await run(side.lookup, 8, 2000, number)
                flushed = await run(_flush(client, side, f"{name}-{turn}"), 1, 10, number)
                if turn:
                    figures[name]["lookup"].append(looked_up)
                    figures[name]["flush"].append(flushed)
    return {
        name: {
            what: {share: round(statistics.median(one[share] for one in measured), 2) for share in ("p50", "p99", "rate")}
            for what, measured in both.items()
        }
        for name, both in figures.items()
    }


def _flush(client: Any, side: Engine, mark: str) -> Callable[[int], Awaitable[object]]:
    """What LiteLLM writes after 100 requests: their keys' spend in one transaction, and the rows of the log."""

    async def flush(key: int) -> object:
        await side.flush(key)
        now = datetime.now(UTC)
        row = {
            "call_type": "acompletion",
            "spend": 1e-6,
            "startTime": now,
            "endTime": now,
            "model": "openai/model-1",
            "user": "user-1",
        }
        rows = [{"request_id": f"flush-{mark}-{key}-{n}", "api_key": token(key), **row} for n in range(100)]
        return await client.litellm_spendlogs.create_many(data=rows, skip_duplicates=True)

    return flush


async def decisions(url: str) -> dict[str, Any]:
    """Look-ups, erasure and retention of our own tables; retention while somebody writes."""
    schema, figures = own_schema(url), dict[str, Any]()
    with psycopg.connect(url, autocommit=True) as connection:
        for column, prefix in (("decision_id", "d-"), ("request_id", "chatcmpl-")):
            statement = sql.SQL("SELECT * FROM {}.pointsman_decisions WHERE {} = {} || md5(%s::text)").format(
                sql.Identifier(schema), sql.Identifier(column), sql.Literal(prefix)
            )
            figures[f"by {column}"] = spread(asked(connection, statement, range(300)))
        latest = sql.SQL("SELECT * FROM {}.pointsman_decisions WHERE key_hash = %s ORDER BY created_at DESC LIMIT 50").format(
            sql.Identifier(schema)
        )
        figures["latest 50 of a key"] = spread(asked(connection, latest, [token(n) for n in range(1, 101)]))
    for what, named in (("erase a key", {"key_hash": token(77)}), ("erase a user", {"user_id": "user-77"})):
        begun = time.perf_counter()
        rows = await erase(url, **named)
        figures[what] = {"rows": rows, "seconds": round(time.perf_counter() - begun, 3)}
    waits: list[float] = []
    stop = asyncio.Event()
    insert = sql.SQL(
        "INSERT INTO {}.pointsman_outcomes (decision_id, created_at, status, prompt_tokens, completion_tokens, cost) "
        "VALUES (gen_random_uuid()::text, now(), 'success', 1, 1, 0)"
    ).format(sql.Identifier(schema))

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while not stop.is_set():
                begun = time.perf_counter()
                await connection.execute(insert)
                waits.append(time.perf_counter() - begun)

    writer = asyncio.create_task(write())
    begun = time.perf_counter()
    await maintain(url, 19)
    dropped = time.perf_counter() - begun
    stop.set()
    await writer
    left = sql.SQL("SELECT count(*), min(created_at) FROM {}.pointsman_decisions").format(sql.Identifier(schema))
    with psycopg.connect(url) as connection:
        oldest = (connection.execute(left).fetchone() or (0, None))[1]
    assert oldest is not None
    assert oldest.astimezone(UTC).date() >= date.today() - timedelta(days=20)
    figures["drop ten days"] = {"seconds": round(dropped, 3), "longest wait of a writer": round(max(waits) * 1000, 1)}
    return figures


async def measure(folder: Path, rows: int, keys: int, records: int, statement: LiteralString) -> dict[str, Any]:
    """Everything, in an empty `folder`; `statement`: see `lookup_statement`."""
    postgres = EmbeddedPostgres(folder / "database", options=FAST_AND_UNSAFE)
    first = await postgres.start()
    try:
        urls = {"small": first, "large": postgres.url("large")}
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE large")
        await fill(folder / "small-filling", urls["small"], **SMALL)
        loading = await fill(folder / "large-filling", urls["large"], rows, keys, records)
        with psycopg.connect(urls["large"]) as connection:
            size = (connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,))[0]
        say(f"filled in {loading:.0f} s, {size / 2**30:.1f} GiB")
        report: dict[str, Any] = {
            "rows": rows,
            "keys": keys,
            "decisions": records,
            "gigabytes": round(size / 2**30, 1),
            "loading seconds": round(loading),
            "cores": len(os.sched_getaffinity(0)),
        }
        report["engine"] = await through_the_engine(folder, urls, {"small": SMALL["keys"], "large": keys}, statement)
        say(json.dumps(report["engine"]))
        report["own tables"] = await decisions(urls["large"])
        say(json.dumps(report["own tables"]))
        live: dict[str, dict[str, Any]] = {name: {"ready": [], "unseen keys": [], "spend written": []} for name in urls}
        for turn in range(STARTS):
            for name, url in urls.items():
                # Ready once more and not for the first time: bytecode and file cache are warm on both.
                with gateway(folder / name, url) as (address, ready):
                    live[name]["ready"].append(ready)
                    live[name]["unseen keys"] += unseen_keys(address, 1000 + turn * 500, 500)
                    live[name]["spend written"].append(spend_of_requests(address, url, 5000 + turn * 200, 200))
                    say(f"{name}: {json.dumps({what: one[-1] for what, one in live[name].items()})}")
                    if name == "large" and turn == STARTS - 1:
                        report["pages"] = pages(address)
        report["gateway"] = {
            name: {
                "ready seconds": round(statistics.median(one["ready"]), 2),
                "unseen keys": spread(one["unseen keys"]),
                "spend written seconds": round(statistics.median(one["spend written"]), 2),
            }
            for name, one in live.items()
        }
        say(json.dumps(report["gateway"]))
    finally:
        await postgres.stop()
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.database_scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the request log (default 10000000)")
    parser.add_argument("--keys", type=int, default=100_000, help=f"keys, a multiple of {TEAMS} (default 100000)")
    parser.add_argument("--decisions", type=int, default=3_000_000, help="decisions of ours (default 3000000)")
    parser.add_argument("--json", action="store_true", help="print JSON without line breaks")
    chosen = parser.parse_args(arguments)
    statement = lookup_statement()
    gc.collect()
    gc.freeze()  # as LiteLLM's workers do
    with (
        tempfile.TemporaryDirectory(prefix="pointsman-bench-") as scratch,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        report = runner.run(measure(Path(scratch), chosen.rows, chosen.keys, chosen.decisions, statement))
    print(json.dumps(report, indent=None if chosen.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
