"""Interactive transactions: isolation, roll-back, time-outs, and connections that always come back to the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prisma import Prisma, errors
from prisma.engine.errors import EngineError


class _OnPurpose(Exception):
    pass


@pytest.mark.conformance("Transactions", "commit")
async def test_commit_makes_visible_what_was_not(db: Prisma) -> None:
    name = uuid4().hex
    async with db.tx() as tx:
        await tx.litellm_usertable.create(data={"user_id": name})
        assert await tx.litellm_usertable.count(where={"user_id": name}) == 1
        assert await db.litellm_usertable.count(where={"user_id": name}) == 0
        await tx.execute_raw('UPDATE "LiteLLM_UserTable" SET spend = $1 WHERE user_id = $2', 2.5, name)
        async with tx.batch_() as batch:
            batch.litellm_usertable.update(where={"user_id": name}, data={"user_email": "a@b.c"})
    found = await db.litellm_usertable.find_unique(where={"user_id": name})
    assert found is not None
    assert (found.spend, found.user_email) == (2.5, "a@b.c")


@pytest.mark.conformance("Transactions", "rollback")
async def test_an_exception_rolls_back(db: Prisma) -> None:
    name = uuid4().hex
    with pytest.raises(_OnPurpose):  # noqa: PT012 - the block is what rolls back
        async with db.tx() as tx:
            await tx.litellm_usertable.create(data={"user_id": name})
            raise _OnPurpose
    assert await db.litellm_usertable.count(where={"user_id": name}) == 0


@pytest.mark.conformance("Transactions", "batches are atomic")
async def test_a_failing_batch_leaves_nothing(db: Prisma) -> None:
    name = uuid4().hex
    batch = db.batch_()
    batch.litellm_usertable.create(data={"user_id": name})
    batch.litellm_usertable.create(data={"user_id": name})
    with pytest.raises(errors.UniqueViolationError):
        await batch.commit()
    assert await db.litellm_usertable.count(where={"user_id": name}) == 0


@pytest.mark.conformance("Transactions", "batches are atomic")
async def test_a_failing_batch_inside_a_transaction_is_not_silent(db: Prisma) -> None:
    name = uuid4().hex
    with pytest.raises(errors.UniqueViolationError):  # noqa: PT012 - the block is the transaction
        async with db.tx() as tx:
            batch = tx.batch_()
            batch.litellm_usertable.create(data={"user_id": name})
            batch.litellm_usertable.create(data={"user_id": name})
            await batch.commit()
    assert await db.litellm_usertable.count(where={"user_id": name}) == 0


@pytest.mark.conformance("Transactions", "time-out")
async def test_a_transaction_expires(db: Prisma) -> None:
    name = uuid4().hex
    with pytest.raises(errors.TransactionExpiredError):  # noqa: PT012 - the block is the transaction
        async with db.tx(timeout=timedelta(milliseconds=200)) as tx:
            await tx.litellm_usertable.create(data={"user_id": name})
            await asyncio.sleep(0.6)
            await tx.litellm_usertable.count()
    assert await db.litellm_usertable.count(where={"user_id": name}) == 0


@pytest.mark.conformance("Transactions", "P2028 closed or unknown")
async def test_a_closed_or_unknown_transaction_is_refused_and_harms_nobody(db: Prisma) -> None:
    """The WASM engine itself panics on an unknown id."""
    manager = db.tx()
    tx = await manager.start()
    await manager.commit()
    with pytest.raises(errors.TransactionError):
        await tx.litellm_usertable.count()
    with pytest.raises(EngineError, match=r"already closed|422|malformed"):
        await manager.rollback()
    with pytest.raises(EngineError, match="not found"):
        await db._engine.rollback_transaction("no-such-transaction")
    with pytest.raises(errors.TransactionError, match="not found"):
        await db._engine.query('{"query": "query {result: findManyLiteLLM_Config {param_name}}"}', tx_id="no-such")
    assert isinstance(await db.litellm_usertable.count(), int)


@pytest.mark.conformance("Transactions", "two at once, row locks")
async def test_two_transactions_wait_for_each_other(db: Prisma) -> None:
    """`FOR UPDATE` in one holds up the other until it ends: no lost update."""
    name = uuid4().hex
    await db.litellm_usertable.create(data={"user_id": name})

    async def add() -> None:
        async with db.tx(timeout=timedelta(seconds=20)) as tx:
            rows = await tx.query_raw('SELECT spend FROM "LiteLLM_UserTable" WHERE user_id = $1 FOR UPDATE', name)
            await asyncio.sleep(0.01)
            await tx.litellm_usertable.update(where={"user_id": name}, data={"spend": rows[0]["spend"] + 1})

    await asyncio.gather(*(add() for _ in range(6)))
    found = await db.litellm_usertable.find_unique(where={"user_id": name})
    assert found is not None
    assert found.spend == 6


async def _metrics(db: Prisma) -> dict[str, float]:
    metrics = await db.get_metrics()
    return {metric.key: metric.value for metric in [*metrics.counters, *metrics.gauges]}


@pytest.mark.conformance("Transactions", "connections come back, also lost ones")
async def test_no_connection_is_lost_whatever_happens(db: Prisma, new_database: Callable[[], str], own_engine: Any) -> None:
    """Expired, failed, aborted, and dead at COMMIT: a pool of two must still serve afterwards."""
    small = own_engine(new_database() + "?connection_limit=2&pool_timeout=5")
    client = small.client()
    await client.connect()
    try:
        for _ in range(3):
            name = uuid4().hex
            with pytest.raises(errors.TransactionExpiredError):  # noqa: PT012 - the block is the transaction
                async with client.tx(timeout=timedelta(milliseconds=50)) as tx:
                    await asyncio.sleep(0.2)
                    await tx.litellm_usertable.count()
            with pytest.raises(errors.RawQueryError):
                async with client.tx() as tx:
                    await tx.query_raw("SELECT 1/0")
            with pytest.raises(errors.DataError):  # noqa: PT012 - the block is the transaction
                async with client.tx() as tx:
                    await tx.litellm_usertable.create(data={"user_id": name})
                    with pytest.raises(errors.DataError):
                        await tx.execute_raw("SELECT pg_terminate_backend(pg_backend_pid())")
                    await tx.litellm_usertable.count()
            # A constraint that is only checked at COMMIT makes that fail.
            await client.execute_raw("CREATE TABLE IF NOT EXISTS a (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            with pytest.raises(EngineError):
                async with client.tx() as tx:
                    await tx.execute_raw("INSERT INTO a VALUES (1), (1)")
        counts = await asyncio.gather(*(client.litellm_usertable.count() for _ in range(8)))
        assert counts == [0] * 8
        after = await _metrics(client)
        assert after["prisma_pool_connections_open"] <= 2
        assert after["prisma_pool_connections_busy"] == 0
    finally:
        await client.disconnect()


@pytest.mark.conformance("Transactions", "P2024 the pool is exhausted")
async def test_an_exhausted_pool_says_so(new_database: Callable[[], str], own_engine: Any) -> None:
    small = own_engine(new_database() + "?connection_limit=1&pool_timeout=1")
    client = small.client()
    await client.connect()
    try:
        async with client.tx(timeout=timedelta(seconds=10)):
            with pytest.raises(errors.DataError, match="Timed out fetching a new connection") as caught:
                await client.litellm_usertable.count()
        assert caught.value.code == "P2024"
        assert await client.litellm_usertable.count() == 0
    finally:
        await client.disconnect()


async def test_metrics_are_readable(db: Prisma) -> None:
    before = await _metrics(db)
    await db.litellm_usertable.count()
    after = await _metrics(db)
    assert after["prisma_client_queries_total"] == before["prisma_client_queries_total"] + 1
    assert "# TYPE prisma_pool_connections_open gauge" in await db.get_metrics(format="prometheus")
