"""Failures have Prisma's shapes: LiteLLM decides by them between 400, 401 and 503."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from prisma import Prisma, errors
from prisma.engine.errors import EngineError

from engine.harness import Gate, through


async def test_unique_violation(db: Prisma) -> None:
    name = uuid4().hex
    await db.litellm_usertable.create(data={"user_id": name})
    with pytest.raises(errors.UniqueViolationError) as caught:
        await db.litellm_usertable.create(data={"user_id": name})
    assert caught.value.code == "P2002"
    assert caught.value.meta == {"target": ["user_id"]}


async def test_foreign_key_violation(db: Prisma) -> None:
    with pytest.raises(errors.ForeignKeyViolationError):
        await db.litellm_teammembership.create(data={"user_id": uuid4().hex, "team_id": "t", "budget_id": "none"})


async def test_record_not_found(db: Prisma) -> None:
    where = {"user_id": uuid4().hex}
    assert await db.litellm_usertable.find_unique(where=where) is None
    assert await db.litellm_usertable.update(where=where, data={"spend": 1}) is None
    assert await db.litellm_usertable.delete(where=where) is None
    with pytest.raises(errors.RecordNotFoundError):
        await db.litellm_usertable.find_unique_or_raise(where=where)
    with pytest.raises(errors.RecordNotFoundError):
        await db.litellm_usertable.create(
            data={"user_id": uuid4().hex, "object_permission": {"connect": {"object_permission_id": "no"}}}
        )


async def test_unknown_and_missing_fields(db: Prisma) -> None:
    with pytest.raises(errors.FieldNotFoundError):
        await db.litellm_usertable.find_first(where={"no_such_field": 1})
    with pytest.raises(errors.MissingRequiredValueError):
        await db.litellm_proxymodeltable.create(data={"model_name": "x"})


async def test_raw_errors_carry_the_sqlstate(db: Prisma) -> None:
    with pytest.raises(errors.RawQueryError, match="does not exist") as caught:
        await db.query_raw('SELECT * FROM "NoSuchTable"')
    assert caught.value.code == "P2010"
    assert caught.value.meta["code"] == "42P01"
    with pytest.raises(errors.RawQueryError, match="multiple commands"):
        await db.execute_raw("SELECT 1; SELECT 2")


async def test_a_missing_table(new_database: Callable[[], str], own_engine: Any) -> None:
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('DROP TABLE "LiteLLM_CronJob"')
    client = own_engine(url).client()
    await client.connect()
    try:
        with pytest.raises(errors.TableNotFoundError) as caught:
            await client.litellm_cronjob.count()
        assert caught.value.code == "P2021"
    finally:
        await client.disconnect()


async def test_values_that_postgres_refuses(db: Prisma) -> None:
    with pytest.raises(errors.DataError) as caught:
        await db.litellm_usertable.create(data={"user_id": "a\x00b"})
    assert "22021" in str(caught.value) or "invalid byte sequence" in str(caught.value)
    with pytest.raises(errors.DataError):
        await db.litellm_usertable.create(data={"user_id": uuid4().hex, "tpm_limit": 2**63})


async def test_a_query_that_is_none(db: Prisma) -> None:
    for body in ('{"query": "query {"}', '{"query": "query {result: findManyNothing {id}}"}', "{nonsense"):
        with pytest.raises(errors.DataError):
            await db._engine.query(body, tx_id=None)
    assert isinstance(await db.litellm_usertable.count(), int)


@pytest.mark.conformance("Errors", "P1001 unreachable")
async def test_a_database_that_goes_away_and_comes_back(database: str, gate: Gate, own_engine: Any) -> None:
    client = own_engine(through(gate, database)).client()
    await client.connect()
    try:
        await client.litellm_usertable.count()
        slow = asyncio.ensure_future(client.query_raw("SELECT pg_sleep(30)::text"))
        transaction = client.tx()
        tx = await transaction.start()
        await asyncio.sleep(0.2)
        await gate.shut()
        with pytest.raises(errors.DataError, match="Can't reach database server") as caught:
            await slow
        assert caught.value.code == "P1001"
        for _ in range(3):
            with pytest.raises(errors.DataError, match="Can't reach database server") as caught:
                await client.litellm_usertable.count()
            assert caught.value.code == "P1001"
            with pytest.raises(errors.PrismaError, match="Can't reach database server"):
                await tx.litellm_usertable.count()
            with pytest.raises(EngineError, match="Can't reach database server"):
                await client.tx().start()
            batch = client.batch_()
            batch.litellm_usertable.delete_many(where={"user_id": "x"})
            with pytest.raises(errors.DataError, match="Can't reach database server"):
                await batch.commit()
        await gate.open()
        assert isinstance(await client.litellm_usertable.count(), int)
        async with client.tx() as tx:
            assert isinstance(await tx.litellm_usertable.count(), int)
    finally:
        await client.disconnect()


@pytest.mark.conformance("Errors", "P1001 unreachable")
async def test_a_database_that_is_not_there_at_the_start(database: str, gate: Gate, own_engine: Any) -> None:
    await gate.shut()
    client = own_engine(through(gate, database)).client()
    await client.connect()
    try:
        with pytest.raises(errors.DataError, match="Can't reach database server"):
            await client.litellm_usertable.count()
        await gate.open()
        assert isinstance(await client.litellm_usertable.count(), int)
    finally:
        await client.disconnect()


@pytest.mark.conformance("Errors", "P1001 unreachable")
async def test_connections_that_the_server_ends(database: str, own_engine: Any) -> None:
    """Idle connections are replaced unnoticed; one in use fails as unreachable, not as bad data."""
    client = own_engine(database + "&application_name=mortal").client()
    await client.connect()
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mortal'"
    try:
        await asyncio.gather(*(client.litellm_usertable.count() for _ in range(6)))
        with psycopg.connect(database.partition("?")[0], autocommit=True) as admin:
            admin.execute(end)
            await asyncio.sleep(0.3)
            await asyncio.gather(*(client.litellm_usertable.count() for _ in range(6)))
            slow = asyncio.ensure_future(client.query_raw("SELECT pg_sleep(30)::text"))
            await asyncio.sleep(0.3)
            admin.execute(end)
        with pytest.raises(errors.DataError) as caught:
            await slow
        assert caught.value.code == "P1001"
    finally:
        await client.disconnect()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda url: url.replace("://pointsman:", "://pointsman:x"), "P1000"),
        (lambda url: url.partition("?")[0] + "_none", "P1003"),
        (lambda url: url + "&sslmode=require", "P1001"),
    ],
    ids=["password", "database", "tls"],
)
@pytest.mark.conformance("Errors", "P1000 password, P1003 database")
async def test_a_wrong_url(database: str, own_engine: Any, change: Callable[[str], str], code: str) -> None:
    client = own_engine(change(database)).client()
    await client.connect()
    try:
        with pytest.raises(errors.DataError) as caught:
            await client.litellm_usertable.count()
        assert caught.value.code == code
    finally:
        await client.disconnect()


async def test_a_full_server_is_told_from_a_dead_one(new_database: Callable[[], str], own_engine: Any) -> None:
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 0")
    host = url.partition("@")[2]
    client = own_engine(f"postgresql://few:few@{host}").client()
    await client.connect()
    try:
        with pytest.raises(errors.DataError, match="too many connections for role"):
            await client.litellm_usertable.count()
    finally:
        await client.disconnect()
