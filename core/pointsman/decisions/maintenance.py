"""Daily partitions, retention and erasure of the decision tables; run by the supervisor, not by the workers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import libpq_url, own_schema, redact, unreachable
from pointsman.errors import DatabaseError, RequestError

__all__ = ["TABLES", "erase", "maintain"]

TABLES = ("pointsman_decisions", "pointsman_attempts", "pointsman_outcomes")
_log = logging.getLogger(__name__)
_AHEAD = 3
_LOCK_KEY = int.from_bytes(b"pm_parts", "big")
_CONNECT_SECONDS = 10
# Writers wait behind whoever waits for a lock on the whole table: no longer than this, then it is left for the next time.
_LOCK_WAIT = "1s"
# Rows of a day that are moved from the default partition when the day gets its own, while the writers wait; more stay there.
_MOVABLE = 50_000
# Rows deleted in one transaction; and transactions in one go.
_BATCH = 1_000
_BATCHES = 1_000


@asynccontextmanager
async def _connect(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    try:
        connection = await psycopg.AsyncConnection.connect(
            libpq_url(database_url), autocommit=True, connect_timeout=_CONNECT_SECONDS, application_name="pointsman maintenance"
        )
    except psycopg.OperationalError as error:
        raise unreachable(database_url, error) from None
    async with connection:
        try:
            yield connection
        except psycopg.errors.UndefinedTable as error:
            raise DatabaseError("the decision tables do not exist", code="E4501", mend="run `pointsman db migrate`") from error
        except psycopg.OperationalError as error:
            if connection.closed:
                raise unreachable(database_url, error) from error
            raise _failed(error, database_url) from error
        except psycopg.Error as error:
            raise _failed(error, database_url) from error


def _failed(error: psycopg.Error, database_url: str) -> DatabaseError:
    return DatabaseError(
        f"the upkeep of the decision tables failed: {redact(str(error).strip(), database_url)}",
        code="E4501",
        mend="the database's role needs CREATE on the schema and ownership of the tables",
    )


def _partition(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


def _bounds(day: date) -> tuple[datetime, datetime]:
    start = datetime.combine(day, time(), UTC)
    return start, start + timedelta(days=1)


async def maintain(database_url: str, retention_days: int, *, now: datetime | None = None) -> None:
    """Make the partitions of today and the next two days, drop those that ended more than `retention_days` days ago.

    Safe to call from several instances at once (one at a time does a step, none does it twice) and as often as one likes, also
    through a pooler in transaction mode. Days are UTC and by the database's clock, so that an instance whose own clock is wrong
    drops nothing too early.

    Args:
        database_url: LiteLLM's DATABASE_URL.
        retention_days: whole days of records to keep besides today.
        now: for tests; the database's present moment by default.

    Raises:
        DatabaseError: E4500 unreachable, E4501 not migrated.
    """
    async with _connect(database_url) as connection:
        schema = own_schema(database_url)
        today = (now or await _clock(connection)).astimezone(UTC).date()
        try:
            for table in TABLES:
                for offset in range(_AHEAD):
                    await _make(connection, schema, table, today + timedelta(days=offset))
            for table in TABLES:
                await _drop_before(connection, schema, table, today - timedelta(days=retention_days))
        except _Elsewhere:
            return
        except psycopg.errors.LockNotAvailable as error:
            # No harm: rows without a partition are in the default one, and the next call goes on.
            _log.warning("decision tables are busy, their partitions are left for the next time: %s", error)


class _Elsewhere(Exception):
    """Another instance is at it."""


async def _clock(connection: psycopg.AsyncConnection[Any]) -> datetime:
    row = await (await connection.execute("SELECT now()")).fetchone()
    assert row is not None  # noqa: S101 - narrows the types
    moment: datetime = row[0]
    return moment


@asynccontextmanager
async def _turn(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """A transaction in which no other instance maintains. What it sets and locks ends with it: a pooler may be in between.

    Raises:
        _Elsewhere: one does.
        psycopg.errors.LockNotAvailable: a lock was not to be had in time.
    """
    async with connection.transaction():
        await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_WAIT)))
        row = await (await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK_KEY,))).fetchone()
        if row is None or not row[0]:
            raise _Elsewhere
        yield


async def _exists(connection: psycopg.AsyncConnection[Any], schema: str, name: str) -> bool:
    cursor = await connection.execute("SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)) IS NOT NULL", (schema, name))
    row = await cursor.fetchone()
    return bool(row and row[0])


async def _make(connection: psycopg.AsyncConnection[Any], schema: str, table: str, day: date) -> None:
    """Make a day's partition beside the table, move its rows there from the default partition, attach it: one transaction.

    ATTACH, not CREATE ... PARTITION OF: the latter locks out the writers of the whole table.
    """
    start, end = _bounds(day)
    whole, default = sql.Identifier(schema, table), sql.Identifier(schema, f"{table}_default")
    name = sql.Identifier(schema, _partition(table, day))
    if await _exists(connection, schema, _partition(table, day)):
        return
    of_the_day = sql.SQL("created_at >= {} AND created_at < {}").format(sql.Literal(start), sql.Literal(end))
    async with _turn(connection):
        if await _exists(connection, schema, _partition(table, day)):
            return
        # First, in this order: a writer of the default partition between the move and the attachment would make it fail.
        await connection.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(whole))
        await connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(default))
        counted = sql.SQL("SELECT count(*) FROM (SELECT FROM {} WHERE {} LIMIT {}) AS found").format(
            default, of_the_day, sql.Literal(_MOVABLE + 1)
        )
        row = await (await connection.execute(counted)).fetchone()
        if row is not None and row[0] > _MOVABLE:
            _log.warning(
                "the records of %s are too many to be moved, they stay in %s_default until they are too old", day, table
            )
            return
        await connection.execute(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)").format(name, whole)
        )
        await connection.execute(
            sql.SQL("WITH moved AS (DELETE FROM {} WHERE {} RETURNING *) INSERT INTO {} SELECT * FROM moved").format(
                default, of_the_day, name
            )
        )
        await connection.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                whole, name, sql.Literal(start), sql.Literal(end)
            )
        )


async def _drop_before(connection: psycopg.AsyncConnection[Any], schema: str, table: str, oldest: date) -> None:
    """Drop the partitions of the days before `oldest`, and such rows of the default partition.

    Detached first (CONCURRENTLY is not possible beside a default partition): the whole table is locked for that moment, and not
    while the files go. What a crash in between left detached is dropped too.
    """
    cursor = await connection.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = quote_ident(%s::text)::regnamespace "
        "AND relname ~ %s AND relname < %s ORDER BY relname",
        (schema, f"^{table}_[0-9]{{8}}$", _partition(table, oldest)),
    )
    for (name,) in await cursor.fetchall():
        partition = sql.Identifier(schema, name)
        async with _turn(connection):
            cursor = await connection.execute(
                "SELECT FROM pg_inherits WHERE inhrelid = to_regclass(format('%%I.%%I', %s::text, %s::text))", (schema, name)
            )
            if await cursor.fetchone() is not None:
                await connection.execute(
                    sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(sql.Identifier(schema, table), partition)
                )
        async with _turn(connection):
            await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(partition))
    default = sql.Identifier(schema, f"{table}_default")
    statement = sql.SQL(
        "DELETE FROM {} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {} WHERE created_at < {} ORDER BY created_at LIMIT {}))"
    ).format(default, default, sql.Literal(_bounds(oldest)[0]), sql.Literal(_BATCH))
    for _ in range(_BATCHES):
        if (await connection.execute(statement)).rowcount < _BATCH:
            return


async def erase(database_url: str, *, key_hash: str | None = None, user_id: str | None = None) -> int:
    """Delete all records of a key or a user (both given: of either), the oldest first, a batch a transaction.

    When it fails, what it has deleted stays deleted; call it again. No attempt or outcome is left without its decision, except
    those that come later: records may still wait in a worker's memory, so block the key first, erase `flush_interval` seconds
    after.

    Args:
        database_url: LiteLLM's DATABASE_URL.
        key_hash: LiteLLM's hash of the virtual key.
        user_id: LiteLLM's user id.

    Returns:
        Rows deleted: decisions, and the attempts and outcomes that followed them.

    Raises:
        RequestError: E4001 when neither is given.
        DatabaseError: E4500 unreachable, E4501 not migrated.
    """
    if key_hash is None and user_id is None:
        raise RequestError("nothing to erase: neither a key nor a user was named", mend="give key_hash or user_id")
    deleted = 0
    async with _connect(database_url) as connection:
        schema = own_schema(database_url)
        for column, value in (("key_hash", key_hash), ("user_id", user_id)):
            while value is not None and (batch := await _erase_some(connection, schema, column, value)):
                deleted += batch
    return deleted


async def _erase_some(connection: psycopg.AsyncConnection[Any], schema: str, column: str, value: str) -> int:
    decisions, *followers = (sql.Identifier(schema, table) for table in TABLES)
    async with connection.transaction():
        # In the order of an index, so that the end of a batch is the end of the work.
        found = await connection.execute(
            sql.SQL("SELECT decision_id, created_at FROM {} WHERE {} = %s ORDER BY created_at LIMIT {}").format(
                decisions, sql.Identifier(column), sql.Literal(_BATCH)
            ),
            (value,),
        )
        rows = await found.fetchall()
        if not rows:
            return 0
        names = [name for name, _ in rows]
        # The time keeps it off the other days' partitions; an outcome may have come on any later day.
        statement = sql.SQL("DELETE FROM {} WHERE decision_id = ANY(%s) AND created_at BETWEEN %s AND %s").format(decisions)
        deleted = (await connection.execute(statement, (names, rows[0][1], rows[-1][1]))).rowcount
        for table in followers:
            cursor = await connection.execute(sql.SQL("DELETE FROM {} WHERE decision_id = ANY(%s)").format(table), (names,))
            deleted += cursor.rowcount
    return deleted
