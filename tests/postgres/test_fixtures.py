"""The fixtures that other tests stand on."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from pointsman.embedded_postgres.cluster import MAJOR
from support.pg_versions import server_major


def test_databases_are_separate(fresh_database: Callable[[], str]) -> None:
    first, second = fresh_database(), fresh_database()
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE only_here (x int)")
    with psycopg.connect(second) as connection:
        found = connection.execute("SELECT to_regclass('only_here')").fetchone()
    assert first != second
    assert found == (None,)


async def test_fixtures_work_in_async_tests(fresh_database: Callable[[], str]) -> None:
    async with await psycopg.AsyncConnection.connect(fresh_database()) as connection:
        row = await (await connection.execute("SHOW server_encoding")).fetchone()
    assert row == ("UTF8",)


def test_the_server_is_of_the_version_that_was_asked_for(
    fresh_database: Callable[[], str], pytestconfig: pytest.Config
) -> None:
    binaries = pytestconfig.getoption("--postgres")
    with psycopg.connect(fresh_database()) as connection:
        assert connection.info.server_version // 10_000 == (server_major(binaries) if binaries else MAJOR)
