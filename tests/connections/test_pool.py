"""The engine's pool: it keeps to its number whatever goes wrong, and leaves nothing running at the server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from prisma.errors import PrismaError

from connections.conftest import Engine
from support.gateway import free_port

Engines = Callable[[str], Awaitable[Engine]]
OURS = "datname = current_database() AND application_name = 'pointsman-engine'"


async def look(url: str, query: str) -> int:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute(query.encode())).fetchone()
        return int(row[0]) if row else 0


@pytest.mark.requirement("R-4.4")
async def test_it_keeps_to_its_number_while_connections_die(fresh_database: Callable[[], str], engines: Engines) -> None:
    """Backends are killed at random, statements time out, transactions are left open: never more than three at the server."""
    url = fresh_database()
    engine = await engines(f"{url}?connection_limit=3&socket_timeout=1&pool_timeout=20")
    until, most, done = time.monotonic() + 2, 0, 0

    async def work() -> None:
        nonlocal done
        while time.monotonic() < until:
            with contextlib.suppress(PrismaError):
                if random.random() < 0.05:
                    await engine.ask("SELECT 1 FROM pg_sleep(1.2)")
                elif random.random() < 0.3:
                    async with engine.db.tx(max_wait=20_000) as tx:
                        await tx.query_raw("SELECT 1")
                else:
                    await engine.ask("SELECT 1")
                done += 1

    async def kill(connection: psycopg.AsyncConnection[object]) -> None:
        nonlocal most
        while time.monotonic() < until:
            cursor = await connection.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}")  # noqa: S608
            row = await cursor.fetchone()
            most = max(most, row[0] if isinstance(row, tuple) else 0)
            if random.random() < 0.1:
                await connection.execute(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS} ORDER BY random() LIMIT 1"  # noqa: S608
                )
            await asyncio.sleep(0.005)

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await asyncio.gather(kill(connection), *(work() for _ in range(12)))
    assert most == 3
    assert done > 30
    assert await engine.ask("SELECT 1 AS one") == [{"one": 1}]
    gauges = await engine.metrics()
    assert gauges["prisma_pool_connections_busy"] == 0


async def test_an_abandoned_statement_is_cancelled(fresh_database: Callable[[], str], engines: Engines) -> None:
    """Prisma's own engine lets it run on, with its locks and its connection slot."""
    url = fresh_database()
    engine = await engines(f"{url}?connection_limit=1&socket_timeout=1")
    with pytest.raises(PrismaError) as caught:
        await engine.ask("SELECT pg_sleep(60)::text")
    assert "timed out" in str(caught.value)
    assert await engine.ask("SELECT 1 AS one") == [{"one": 1}]  # the only connection is free again
    sleeping = f"SELECT count(*) FROM pg_stat_activity WHERE {OURS} AND state = 'active' AND query LIKE '%pg_sleep(%'"  # noqa: S608
    assert await look(url, sleeping) == 0


async def test_nobody_waits_for_a_database_that_is_away(engines: Engines) -> None:
    """Who waits for a connection is told as soon as it is known that there will be none, not after `pool_timeout`."""
    engine = await engines(f"postgresql://u:p@127.0.0.1:{free_port()}/d?connection_limit=2&pool_timeout=60")
    start = time.monotonic()
    got = await asyncio.gather(*(engine.ask("SELECT 1") for _ in range(30)), return_exceptions=True)
    assert [getattr(error, "code", None) for error in got] == ["P1001"] * 30
    assert time.monotonic() - start < 5


async def test_idle_and_old_connections_go(fresh_database: Callable[[], str], engines: Engines) -> None:
    url = fresh_database()
    open_ = f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}"  # noqa: S608
    engine = await engines(f"{url}?connection_limit=4&max_idle_connection_lifetime=1")
    await asyncio.gather(*(engine.ask("SELECT 1 FROM pg_sleep(0.1)") for _ in range(4)))
    assert await look(url, open_) == 4
    async with asyncio.timeout(5):
        while await look(url, open_):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.05)
    assert await engine.ask("SELECT 1 AS one") == [{"one": 1}]
