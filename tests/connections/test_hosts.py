"""Several hosts in one URL: a real primary, a real standby, and what happens when they change places."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prisma.errors import DataError

from connections.agreement import by_libpq, by_the_engine
from connections.conftest import Engine
from pointsman.database_url import libpq_url
from support.pg_cluster import PgCluster

Make = Callable[..., PgCluster]
Engines = Callable[[str], Awaitable[Engine]]
HERE = "SELECT current_setting('port') AS port"


def both(first: PgCluster, second: PgCluster, parameters: str = "") -> str:
    """One URL for two servers."""
    head, _, tail = first.url().rpartition(f":{first.port}")
    return f"{head}:{first.port},127.0.0.1:{second.port}{tail}?connection_limit=4{parameters}"


async def test_the_writable_host_is_found_lost_and_found_again(pg_cluster: Make, engines: Engines) -> None:
    primary = pg_cluster()
    primary.execute("CREATE TABLE notes (n int PRIMARY KEY)")
    standby = pg_cluster(origin=primary)
    url = both(standby, primary)  # the standby first: it answers, and is passed over
    engine = await engines(url)
    assert await engine.ask(HERE) == [{"port": str(primary.port)}]
    with psycopg.connect(libpq_url(url)) as connection:
        assert connection.info.port == primary.port
    await asyncio.gather(*(engine.execute("INSERT INTO notes VALUES ($1)", n) for n in range(20)))

    primary.stop(kill=True)
    with pytest.raises(DataError) as caught:  # nobody takes writes now
        await engine.execute("INSERT INTO notes VALUES (100)")
    assert caught.value.code == "P1001"
    standby.promote()
    await engine.execute("INSERT INTO notes VALUES (101)")
    assert await engine.ask(HERE) == [{"port": str(standby.port)}]
    with psycopg.connect(libpq_url(url)) as connection:
        assert connection.info.port == standby.port


async def test_a_demoted_server_is_left_without_a_failed_statement(pg_cluster: Make, engines: Engines) -> None:
    """The connections still work when their server turns read-only; the first refused write finds the other one."""
    one, two = pg_cluster(), pg_cluster()
    for server in (one, two):
        server.execute("CREATE TABLE notes (n int)")
    engine = await engines(both(one, two))
    await asyncio.gather(*(engine.execute("INSERT INTO notes VALUES ($1)", n) for n in range(20)))
    assert len(one.execute("SELECT * FROM notes")) == 20
    one.configure({"default_transaction_read_only": "on"})
    one.reload()
    await asyncio.gather(*(engine.execute("INSERT INTO notes VALUES ($1)", n) for n in range(20)))
    assert len(two.execute("SELECT * FROM notes")) == 20
    assert one.sessions("application_name = 'pointsman-engine'") == 0


async def test_a_single_read_only_server_is_a_database_that_is_away(pg_cluster: Make, engines: Engines) -> None:
    """P1001, so that LiteLLM answers 503; a transaction is not repeated, its statements are the caller's."""
    only = pg_cluster()
    only.execute("CREATE TABLE notes (n int)")
    engine = await engines(only.url() + "?connection_limit=2")
    only.configure({"default_transaction_read_only": "on"})
    only.reload()
    for _ in range(3):
        with pytest.raises(DataError) as caught:
            await engine.execute("INSERT INTO notes VALUES (1)")
        assert caught.value.code == "P1001"
    with pytest.raises(DataError) as caught:
        async with engine.db.tx() as tx:
            await tx.execute_raw("INSERT INTO notes VALUES (1)")
    assert caught.value.code in ("P1001", "P2034")  # away, or: try the whole transaction again
    assert await engine.ask("SELECT count(*) AS n FROM notes") == [{"n": 0}]
    only.configure({"default_transaction_read_only": "off"})
    only.reload()
    await engine.execute("INSERT INTO notes VALUES (1)")


def test_engine_and_libpq_choose_alike(two_servers: tuple[PgCluster, PgCluster], tmp_path: Path) -> None:
    """By the kind of server; a refused password ends the search."""
    found = {"any": 0, "read-write": 1, "primary": 1, "read-only": 0, "standby": 0, "prefer-standby": 0}
    cases: dict[str, Any] = {
        both(*two_servers, f"&target_session_attrs={kind}"): two_servers[n].port for kind, n in found.items()
    }
    cases[both(*two_servers)] = two_servers[1].port
    cases[both(*two_servers).replace("boss:", "boss:wrong")] = None
    sql = "SELECT current_setting('port')::int"
    for url, port, one in zip(cases, cases.values(), by_the_engine(list(cases), sql), strict=True):
        two = by_libpq(url, tmp_path, sql)
        if port is None:
            assert "password authentication failed" in one
            assert "password authentication failed" in two
        else:
            assert (one, two) == ([port], [port]), url


@pytest.fixture(scope="module")
def two_servers(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A standby and its primary."""
    root = tmp_path_factory.mktemp("two")
    primary = PgCluster(root / "primary").start()
    standby = PgCluster(root / "standby", origin=primary).start()
    yield standby, primary
    standby.stop()
    primary.stop()
