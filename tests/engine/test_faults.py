"""Postgres and the engine fail at the worst moments: every COMMIT has one outcome, spend waits, nothing hangs, no lock stays.

LiteLLM's own judgement of what it is told is asked here, too: what it sends again, and what it answers with 503 and not 401.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psycopg
import pytest
from litellm.proxy._types import DB_CONNECTION_ERROR_TYPES, DB_RETRY_SAFE_ERROR_TYPES
from litellm.proxy.db.db_spend_update_writer import _spend_commit_failure_is_requeue_safe
from litellm.proxy.db.exception_handler import PrismaDBExceptionHandler
from prisma import Prisma, errors
from prisma.engine.errors import EngineError

from engine.harness import EngineThread, Gate, eventually, through
from pointsman.migrations.engine import QueryEngine
from support.pg_cluster import PgCluster, pg_cluster

__all__ = ["pg_cluster"]

SPEND = timedelta(seconds=60)
"""How long LiteLLM's spend transactions may last; the engine knows them by it."""

ROWS_EATER = "SELECT repeat('x', 1000) AS t FROM generate_series(1, 400000)"
WASM_EATER = "SELECT repeat('x', 150000000) AS one, repeat('y', 150000000) AS other"
"""Few objects for JavaScript, more bytes for WASM than it may have."""

COMMIT = b"COMMIT\x00"
Fate = Literal["pass", "lose", "keep", "stall", "mute"]


class Wire(Gate):
    """A gate that does something to the next COMMIT on its way, or swallows everything.

    - `lose`: the COMMIT does not arrive; the connection breaks.
    - `keep`: it arrives, its answer does not; the connection breaks.
    - `stall`: it does not arrive, and nothing else happens.
    - `mute`: it arrives, its answer does not, and nothing else happens.
    """

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.fate: Fate = "pass"
        self.swallows = False
        self.struck = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.target_port)
        self._writers.add(upstream)
        kept, muted = asyncio.Event(), asyncio.Event()

        async def there() -> None:
            while chunk := await reader.read(65536):
                if COMMIT in chunk and self.fate != "pass":
                    fate, self.fate = self.fate, "pass"
                    if fate == "lose":
                        self._break(writer, upstream)
                        return
                    if fate == "keep":
                        kept.set()
                    else:
                        self.struck.set()
                        muted.set()
                        if fate == "stall":
                            continue
                if not self.swallows:
                    upstream.write(chunk)
                    await upstream.drain()

        async def back() -> None:
            while chunk := await upstream_reader.read(65536):
                if kept.is_set():
                    self._break(writer, upstream)
                    return
                if not self.swallows and not muted.is_set():
                    writer.write(chunk)
                    await writer.drain()

        with contextlib.suppress(OSError):
            await asyncio.gather(there(), back())
        writer.close()
        upstream.close()

    def _break(self, *writers: asyncio.StreamWriter) -> None:
        self.struck.set()
        for writer in writers:
            writer.transport.abort()


@pytest.fixture
async def wire(database: str, own_engine: Any) -> AsyncIterator[Wire]:
    """Before the shared database. Shut before engines are stopped: that blocks this loop, so their goodbyes would not pass."""
    opened = Wire(_port(database))
    await opened.open()
    yield opened
    await opened.shut()


@pytest.fixture
async def client(wire: Wire, database: str, own_engine: Any) -> AsyncIterator[Prisma]:
    """On an engine behind the wire."""
    made = own_engine(through(wire, database)).client()
    await made.connect()
    yield made
    await made.disconnect()


@pytest.fixture
def user(database: str) -> Iterator[Callable[[], float]]:
    """A row whose spend is asked without the engine; `user.name` is its id."""
    with psycopg.connect(database.partition("?")[0], autocommit=True) as connection:
        name = uuid4().hex
        connection.execute('INSERT INTO "LiteLLM_UserTable" (user_id, spend) VALUES (%s, 0)', [name])

        def spend() -> float:
            row = connection.execute('SELECT spend FROM "LiteLLM_UserTable" WHERE user_id = %s', [name]).fetchone()
            assert row is not None
            return float(row[0])

        spend.name = name  # type: ignore[attr-defined]
        yield spend


def _port(url: str) -> int:
    return int(url.rpartition("@")[2].partition(":")[2].partition("/")[0])


async def _spend(client: Prisma, user: Any, amount: float = 1.0) -> None:
    """As LiteLLM writes spend."""
    async with client.tx(timeout=SPEND) as tx, tx.batch_() as batch:
        batch.litellm_usertable.update_many(where={"user_id": user.name}, data={"spend": {"increment": amount}})


def _sent_again(error: Exception) -> bool:
    """Whether LiteLLM's spend writer sends the same increments again after this."""
    return isinstance(error, DB_RETRY_SAFE_ERROR_TYPES) or PrismaDBExceptionHandler.is_deadlock_error(error)


def _is_503(error: Exception) -> bool:
    """Whether LiteLLM's authentication answers 503 to this, and not 401."""
    return PrismaDBExceptionHandler.is_database_service_unavailable_error(error)


async def test_a_commit_whose_answer_is_lost_has_happened(client: Prisma, wire: Wire, user: Any) -> None:
    await _spend(client, user)
    wire.fate = "keep"
    await _spend(client, user, 10.0)
    assert wire.struck.is_set()
    assert user() == 11.0


async def test_a_commit_that_is_lost_has_not_happened_and_is_sent_again(client: Prisma, wire: Wire, user: Any) -> None:
    wire.fate = "lose"
    with pytest.raises(errors.DataError, match="Can't reach database server") as caught:
        await _spend(client, user, 10.0)
    assert wire.struck.is_set()
    assert caught.value.code == "P2034"
    assert _sent_again(caught.value)
    assert user() == 0.0
    await _spend(client, user)
    assert user() == 1.0


@pytest.mark.parametrize(("fate", "happened"), [("keep", True), ("lose", False)])
async def test_a_batch_has_one_outcome_too(client: Prisma, wire: Wire, user: Any, fate: Fate, happened: bool) -> None:
    batch = client.batch_()
    for _ in range(3):
        batch.litellm_usertable.update_many(where={"user_id": user.name}, data={"spend": {"increment": 1.0}})
    wire.fate = fate
    if happened:
        await batch.commit()
    else:
        with pytest.raises(errors.DataError, match="Can't reach database server"):
            await batch.commit()
    assert user() == (3.0 if happened else 0.0)


async def test_a_commit_is_looked_up_for_as_long_as_the_database_is_away(client: Prisma, wire: Wire, user: Any) -> None:
    wire.fate = "keep"
    spending = asyncio.ensure_future(_spend(client, user))
    await wire.struck.wait()
    await wire.shut()
    await asyncio.sleep(1.5)
    assert not spending.done()
    await wire.open()
    await asyncio.wait_for(spending, 5)
    assert user() == 1.0


async def test_an_outcome_that_stays_unknown_is_never_sent_again(wire: Wire, database: str, tmp_path: Path, user: Any) -> None:
    """The connection breaks under the client: LiteLLM knows that for something that may have been applied."""
    engine = EngineThread(through(wire, database), tmp_path / "impatient")
    engine.engine = QueryEngine(engine.url, tmp_path / "impatient", patience=1.0)
    client = engine.start().client()
    await client.connect()
    try:
        wire.fate = "keep"
        spending = asyncio.ensure_future(_spend(client, user))
        await wire.struck.wait()
        await wire.shut()
        with pytest.raises(DB_CONNECTION_ERROR_TYPES) as caught:
            await asyncio.wait_for(spending, 15)
        assert not _sent_again(caught.value)
        assert not _spend_commit_failure_is_requeue_safe(caught.value)
    finally:
        await client.disconnect()
        await asyncio.to_thread(engine.close)


async def test_a_crash_that_gives_the_id_to_another_is_not_taken_for_a_commit(
    pg_cluster: Callable[..., PgCluster], own_engine: Any
) -> None:
    """Postgres forgets ids that were only in the lost end of its log; the next transaction gets the same one, and commits."""
    cluster = pg_cluster(options={"wal_writer_delay": "10s", "autovacuum": "off"})
    cluster.execute("CREATE TABLE paid (amount int)", "CREATE TABLE other (amount int)", "CHECKPOINT")
    wire = Wire(cluster.port)
    await wire.open()
    client = own_engine(through(wire, cluster.url())).client()
    await client.connect()
    try:
        transaction = client.tx(timeout=SPEND)
        tx = await transaction.start()
        rows = await tx.query_raw("INSERT INTO paid VALUES (1) RETURNING pg_current_xact_id()::text AS id")
        own = int(rows[0]["id"])
        wire.fate = "lose"
        committing = asyncio.ensure_future(transaction.commit())
        await wire.struck.wait()
        await wire.shut()
        cluster.stop(kill=True)
        await asyncio.sleep(1.1)  # the control file tells time in seconds
        await asyncio.to_thread(cluster.start)
        taken = 0
        while taken < own:
            taken = int(str(cluster.execute("INSERT INTO other VALUES (1) RETURNING pg_current_xact_id()::text")[0][0]))
        assert taken == own, "the id was not lost; the test proves nothing"
        assert cluster.execute(f"SELECT pg_xact_status({own}::text::xid8)") == [("committed",)]
        await wire.open()
        with pytest.raises(errors.DataError) as caught:
            await asyncio.wait_for(committing, 10)
        assert _sent_again(caught.value)
        assert cluster.execute("SELECT count(*) FROM paid") == [(0,)]
    finally:
        await client.disconnect()
        await wire.shut()


async def test_a_transaction_that_breaks_in_the_middle_is_sent_again(client: Prisma, wire: Wire, user: Any) -> None:
    with pytest.raises(errors.DataError) as caught:  # noqa: PT012 - the block is the transaction
        async with client.tx(timeout=SPEND) as tx:
            await tx.litellm_usertable.update_many(where={"user_id": user.name}, data={"spend": {"increment": 1.0}})
            await wire.shut()
            await wire.open()
            await tx.litellm_usertable.update_many(where={"user_id": user.name}, data={"spend": {"increment": 1.0}})
    assert _sent_again(caught.value)
    assert _is_503(caught.value)
    assert user() == 0.0


async def test_spend_waits_for_the_database_and_everybody_else_is_told_at_once(client: Prisma, wire: Wire, user: Any) -> None:
    await wire.shut()
    spending = asyncio.ensure_future(_spend(client, user))
    for ask in (client.litellm_usertable.count, client.tx().start):
        before = time.monotonic()
        with pytest.raises((errors.DataError, EngineError), match="Can't reach database server") as caught:
            await ask()
        assert time.monotonic() - before < 1
        assert _is_503(caught.value)
    await asyncio.sleep(1)
    assert not spending.done()
    await wire.open()
    await asyncio.wait_for(spending, 5)
    assert user() == 1.0


async def test_spend_waits_for_a_database_that_can_be_written_to(new_database: Callable[[], str], own_engine: Any) -> None:
    url = new_database()
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")  # type: ignore[arg-type]
    client = own_engine(url).client()
    await client.connect()

    async def create() -> None:
        async with client.tx(timeout=SPEND) as tx:
            await tx.litellm_usertable.create(data={"user_id": "late"})

    try:
        creating = asyncio.ensure_future(create())
        await asyncio.sleep(1)
        assert not creating.done()
        assert await client.litellm_usertable.count() == 0, "reading goes on"
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")  # type: ignore[arg-type]
        await asyncio.wait_for(creating, 5)
        assert await client.litellm_usertable.count() == 1
    finally:
        await client.disconnect()


async def test_spend_waits_for_a_connection_and_none_is_lost_with_who_does_not(
    new_database: Callable[[], str], own_engine: Any
) -> None:
    client = own_engine(new_database() + "?connection_limit=1&pool_timeout=60").client()
    await client.connect()
    try:
        slow = asyncio.ensure_future(client.query_raw("SELECT pg_sleep(2)::text"))
        await asyncio.sleep(0.2)
        spending = asyncio.ensure_future(client.tx(timeout=SPEND).start())
        with pytest.raises(EngineError, match="Unable to start a transaction in the given time"):
            await client.tx(max_wait=timedelta(milliseconds=500)).start()
        await slow
        tx = await asyncio.wait_for(spending, 5)
        assert await tx.litellm_usertable.count() == 0
        await client._engine.commit_transaction(tx._tx_id)
        assert await asyncio.wait_for(client.litellm_usertable.count(), 5) == 0, "the one connection is back"
    finally:
        await client.disconnect()


async def test_a_server_that_hangs_is_found_out(client: Prisma, wire: Wire, user: Any) -> None:
    """It is there, but says nothing: five seconds, and not the quarter of an hour that TCP takes."""
    await client.litellm_usertable.count()
    transaction = client.tx(timeout=SPEND)
    tx = await transaction.start()
    wire.swallows = True
    before = time.monotonic()
    asked: list[Any] = [
        client.litellm_usertable.count(),
        tx.litellm_usertable.update_many(where={"user_id": user.name}, data={"spend": {"increment": 1.0}}),
    ]
    lookup, inside = await asyncio.gather(*asked, return_exceptions=True)
    assert 3 < time.monotonic() - before < 9
    assert isinstance(lookup, errors.DataError)
    assert lookup.code == "P1001"
    assert _is_503(lookup)
    assert isinstance(inside, errors.DataError)
    assert _sent_again(inside)
    with contextlib.suppress(errors.DataError):  # its connection is gone, and it with it
        await transaction.rollback()
    wire.swallows = False
    await wire.shut()
    await wire.open()
    await asyncio.wait_for(_spend(client, user), 5)
    assert user() == 1.0


async def test_a_statement_that_is_slow_is_left_alone(client: Prisma) -> None:
    assert await client.query_raw("SELECT pg_sleep(4)::text AS done") == [{"done": ""}]


async def _killed(engine: EngineThread) -> None:
    """The process that does the work; the one that keeps the connections lives."""
    os.kill(int(engine.engine.status()["engine_pid"]), signal.SIGKILL)


async def test_a_killed_engine_is_not_noticed_by_who_reads(own_engine: Any, database: str) -> None:
    engine = own_engine(database)
    client = engine.client()
    await client.connect()
    for death in range(1, 4):
        reading = [asyncio.ensure_future(client.litellm_usertable.count()) for _ in range(20)]
        await asyncio.sleep(0.005 * death)
        await _killed(engine)
        assert all(isinstance(count, int) for count in await asyncio.wait_for(asyncio.gather(*reading), 10))
        eventually(lambda: engine.engine.status()["restarts"] == death, what="another engine")  # noqa: B023
    await client.disconnect()


async def test_what_an_engine_dies_over_is_undone_or_unknown(own_engine: Any, database: str, user: Any) -> None:
    engine = own_engine(database)
    client = engine.client()
    await client.connect()
    manager = client.tx(timeout=SPEND)
    tx = await manager.start()
    await tx.litellm_usertable.update_many(where={"user_id": user.name}, data={"spend": {"increment": 1.0}})
    writing = asyncio.ensure_future(client.execute_raw("SELECT pg_sleep(20)"))
    await asyncio.sleep(0.3)
    await _killed(engine)
    with pytest.raises(errors.DataError) as caught:
        await tx.litellm_usertable.count()
    assert _sent_again(caught.value)
    with pytest.raises(errors.DataError) as caught:
        await manager.commit()
    assert _sent_again(caught.value)
    await manager.rollback()
    with pytest.raises(DB_CONNECTION_ERROR_TYPES) as unknown:
        await writing
    assert not _sent_again(unknown.value)
    assert _is_503(unknown.value)
    await asyncio.wait_for(_spend(client, user, 5.0), 5)
    assert user() == 5.0
    await client.disconnect()


@pytest.mark.parametrize(("fate", "happened"), [("mute", True), ("stall", False)])
async def test_an_engine_that_dies_during_a_commit(
    wire: Wire, database: str, own_engine: Any, user: Any, fate: Fate, happened: bool
) -> None:
    engine = own_engine(through(wire, database))
    client = engine.client()
    await client.connect()
    wire.fate = fate
    spending = asyncio.ensure_future(_spend(client, user))
    await wire.struck.wait()
    await asyncio.sleep(0.1)
    await _killed(engine)
    if happened:
        await asyncio.wait_for(spending, 10)
    else:
        with pytest.raises(errors.DataError) as caught:
            await asyncio.wait_for(spending, 10)
        assert _sent_again(caught.value)
    assert user() == (1.0 if happened else 0.0)
    await client.disconnect()


async def test_when_all_of_the_engine_is_killed_it_is_no_bad_key(own_engine: Any, database: str) -> None:
    engine = own_engine(database)
    client = engine.client()
    await client.connect()
    asked = [asyncio.ensure_future(client.query_raw("SELECT pg_sleep(20)::text")) for _ in range(3)]
    await asyncio.sleep(0.3)
    os.kill(engine.pid, signal.SIGKILL)
    told = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    deadline, back = time.monotonic() + 10, False
    while not back and time.monotonic() < deadline:
        try:
            back = isinstance(await client.litellm_usertable.count(), int)
        except Exception as error:  # noqa: BLE001 - whatever it is, LiteLLM must answer 503
            told.append(error)
            await asyncio.sleep(0.02)
    assert back
    assert all(isinstance(error, Exception) and _is_503(error) for error in told), told
    await client.disconnect()


async def test_a_read_that_kills_engines_gets_no_third_one(database: str, tmp_path: Path) -> None:
    engine = EngineThread(database, tmp_path / "small")
    engine.engine = QueryEngine(database, tmp_path / "small", memory=96)
    client = engine.start().client()
    await client.connect()
    name = uuid4().hex
    rows = 'INSERT INTO "LiteLLM_UserTable" (user_id, user_alias) SELECT %s || i, %s FROM generate_series(1, 150) i'
    try:
        with psycopg.connect(database.partition("?")[0], autocommit=True) as connection:
            connection.execute(rows, [name, "x" * 1_000_000])
        with pytest.raises(errors.DataError, match="Can't reach database server") as caught:
            await asyncio.wait_for(client.litellm_usertable.find_many(where={"user_id": {"startswith": name}}), 60)
        assert _is_503(caught.value)
        eventually(lambda: engine.engine.status()["restarts"] == 2, what="the third engine")
        assert await client.litellm_usertable.delete_many(where={"user_id": {"startswith": name}}) == 150
    finally:
        await client.disconnect()
        await asyncio.to_thread(engine.close)


async def test_a_client_that_dies_leaves_no_lock(own_engine: Any, database: str, user: Any) -> None:
    """Its transaction would keep the rows for the minute that it may last."""
    engine = own_engine(database)
    one, two = engine.client(), engine.client()
    await asyncio.gather(one.connect(), two.connect())
    tx = await one.tx(timeout=SPEND).start()
    await tx.litellm_usertable.update_many(where={"user_id": user.name}, data={"spend": {"increment": 1.0}})
    one._engine.process.kill()
    one._engine.process.wait()
    eventually(lambda: len(engine.engine.status()["ports"]) == 1, what="the dead client's port to close")
    await asyncio.wait_for(_spend(two, user, 5.0), 5)
    assert user() == 5.0
    await one.disconnect()
    await two.disconnect()


async def test_stopping_waits_for_no_database(gate: Gate, database: str, own_engine: Any) -> None:
    engine = own_engine(through(gate, database))
    client = engine.client()
    await client.connect()
    await gate.shut()
    waiting = asyncio.ensure_future(client.tx(timeout=SPEND).start())
    await asyncio.sleep(0.5)
    before = time.monotonic()
    await asyncio.to_thread(engine.call, engine.engine.stop())
    assert time.monotonic() - before < 3
    with pytest.raises(errors.DataError) as caught:
        await waiting
    assert _sent_again(caught.value)
    await client.disconnect()


@pytest.mark.parametrize("answer", [ROWS_EATER, pytest.param(WASM_EATER, marks=pytest.mark.slow("databasefaults"))])
async def test_an_engine_out_of_memory_is_replaced(database: str, tmp_path: Path, answer: str) -> None:
    engine = EngineThread(database, tmp_path / "small")
    engine.engine = QueryEngine(database, tmp_path / "small", memory=96)
    client = engine.start().client()
    await client.connect()
    try:
        greedy = asyncio.ensure_future(client.query_raw(answer))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - judged by LiteLLM
            await asyncio.wait_for(greedy, 20)
        assert _is_503(caught.value), repr(caught.value)
        eventually(lambda: engine.engine.status()["restarts"] == 1, what="another engine")
        eventually(lambda: engine.engine.status()["state"] == "ready", what="the other engine to be ready")
        assert isinstance(await client.litellm_usertable.count(), int)
    finally:
        await client.disconnect()
        await asyncio.to_thread(engine.close)
