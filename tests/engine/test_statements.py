"""Prepared statements of the engine: what comes again gets a name, and no name ever changes an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from prisma import Prisma

from engine.harness import EngineThread, Gate, through

Own = Callable[..., EngineThread]
NAMED = "SELECT count(*)::int AS number FROM pg_prepared_statements"


async def connected(engine: EngineThread) -> Prisma:
    client = engine.client()
    await client.connect()
    return client


async def named(client: Prisma) -> int:
    """Statements with a name on the engine's one connection."""
    return int((await client.query_raw(NAMED))[0]["number"])


async def test_from_the_third_time_on_a_statement_has_a_name(database_url: str, own_engine: Own) -> None:
    client = await connected(own_engine(f"{database_url}?connection_limit=1"))
    asked = "SELECT count(*)::int AS number FROM pg_prepared_statements WHERE statement LIKE 'SELECT%VerificationToken%FROM%'"
    counts = []
    for _ in range(4):
        await client.litellm_verificationtoken.find_unique(where={"token": "t"})
        counts.append((await client.query_raw(f"{asked} AND {len(counts)} >= 0"))[0]["number"])
    assert counts[:2] == [0, 0]
    assert counts[2] == counts[3] == 1
    await client.disconnect()


async def test_updates_in_a_transaction_have_names_too(database_url: str, own_engine: Own) -> None:
    client = await connected(own_engine(f"{database_url}?connection_limit=1"))
    for _ in range(4):
        await client.query_raw("SELECT 1 AS one, 'long enough'")  # by now the connection is known
    await client.litellm_verificationtoken.create(data={"token": "t", "spend": 0.0})
    async with client.tx() as transaction, transaction.batch_() as batch:
        for _ in range(10):
            batch.litellm_verificationtoken.update_many(where={"token": "t"}, data={"spend": {"increment": 1}})
    key = await client.litellm_verificationtoken.find_unique(where={"token": "t"})
    assert key is not None
    assert key.spend == 10
    found = await client.query_raw("SELECT name FROM pg_prepared_statements WHERE statement LIKE 'UPDATE%'")
    assert len(found) == 1
    await client.disconnect()


async def test_there_are_never_more_names_than_the_url_says(database_url: str, own_engine: Own) -> None:
    client = await connected(own_engine(f"{database_url}?connection_limit=1&statement_cache_size=10"))
    most = 0
    for number in range(40):
        for _ in range(3):
            assert (await client.query_raw(f"SELECT {number} AS answer, 'statement'"))[0]["answer"] == number
        most = max(most, await named(client))
    assert 5 < most <= 11
    await client.disconnect()


@pytest.mark.parametrize("parameter", ["pgbouncer=true", "statement_cache_size=0"])
async def test_names_can_be_turned_off(database_url: str, own_engine: Own, parameter: str) -> None:
    client = await connected(own_engine(f"{database_url}?connection_limit=1&{parameter}"))
    for _ in range(5):
        assert await named(client) == 0
    await client.disconnect()


async def test_a_table_that_changes_under_a_name(database_url: str, own_engine: Own) -> None:
    """As when another instance migrates: the plan is stale, the caller does not notice, and names go on being used."""
    client = await connected(own_engine(f"{database_url}?connection_limit=1"))
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("CREATE TABLE changing (one int)")
        other.execute("INSERT INTO changing VALUES (1)")
        for _ in range(4):
            assert await client.query_raw("SELECT * FROM changing") == [{"one": 1}]
        other.execute("ALTER TABLE changing ADD COLUMN two int DEFAULT 2")
        for _ in range(4):
            assert await client.query_raw("SELECT * FROM changing") == [{"one": 1, "two": 2}]
    assert await named(client) > 0
    await client.disconnect()


async def test_a_name_that_somebody_dropped(database_url: str, own_engine: Own) -> None:
    client = await connected(own_engine(f"{database_url}?connection_limit=1"))
    for _ in range(3):
        assert await client.query_raw("SELECT 1 AS one, 'statement'")
    await client.execute_raw("DEALLOCATE ALL")
    for _ in range(3):
        assert (await client.query_raw("SELECT 1 AS one, 'statement'"))[0]["one"] == 1
    assert await named(client) == 0, "the connection is not what it seemed to be"
    await client.disconnect()


async def test_many_callers_at_once(database_url: str, own_engine: Own) -> None:
    client = await connected(own_engine(f"{database_url}?connection_limit=4&statement_cache_size=5"))

    async def ask(number: int) -> Any:
        return (await client.query_raw(f"SELECT {number % 12} AS answer, $1::int AS value", number))[0]

    answers = await asyncio.gather(*(ask(number) for number in range(400)))
    assert answers == [{"answer": number % 12, "value": number} for number in range(400)]
    await client.disconnect()


class Pooler(Gate):
    """Gives its clients process ids of its own, as poolers do."""

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        class Altered:
            async def read(self, most: int) -> bytes:
                chunk = await reader.read(most)
                before, key_data, after = chunk.partition(b"K\x00\x00\x00\x0c")
                return before + key_data + b"\x00\x00\x00\x01" + after[4:] if key_data and len(after) >= 8 else chunk

        await super()._pump(Altered(), writer)  # type: ignore[arg-type]


async def test_no_names_behind_a_pooler_that_nobody_told_of(database_url: str, own_engine: Own) -> None:
    pooler = Pooler(int(database_url.partition("@")[2].partition(":")[2].partition("/")[0]))
    await pooler.open()
    client = await connected(own_engine(through(pooler, database_url) + "?connection_limit=1&sslmode=disable"))
    for _ in range(6):
        assert await named(client) == 0
    await client.disconnect()
    await pooler.shut()
