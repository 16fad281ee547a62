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

    Safe to call from several instances at once (one does the work) and as often as one likes. Days are UTC.

    Args:
        database_url: LiteLLM's DATABASE_URL.
        retention_days: whole days of records to keep besides today.
        now: for tests; the present moment by default.

    Raises:
        DatabaseError: E4500 unreachable, E4501 not migrated.
    """
    today = (now or datetime.now(UTC)).date()
    async with _connect(database_url) as connection:
        await connection.execute("SET lock_timeout = '5s'")
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK_KEY,))
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return
        try:
            await _maintain(connection, own_schema(database_url), today, retention_days)
        except psycopg.errors.LockNotAvailable as error:
            # No harm: rows without a partition are in the default one, and the next call moves them.
            _log.warning("decision tables are busy, their partitions are left for the next time: %s", error)


async def _maintain(connection: psycopg.AsyncConnection[Any], schema: str, today: date, retention_days: int) -> None:
    oldest = today - timedelta(days=retention_days)
    for table in TABLES:
        present = await _partitions(connection, schema, table)
        for offset in range(_AHEAD):
            day = today + timedelta(days=offset)
            if _partition(table, day) not in present:
                await _make(connection, schema, table, day)
        # The suffix is fixed-width digits, so names compare as dates do.
        for name in sorted(present):
            if name.removeprefix(f"{table}_").isdigit() and name < _partition(table, oldest):
                await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(schema, name)))
        await connection.execute(
            sql.SQL("DELETE FROM {} WHERE created_at < %s").format(sql.Identifier(schema, f"{table}_default")),
            (_bounds(oldest)[0],),
        )


async def _partitions(connection: psycopg.AsyncConnection[Any], schema: str, table: str) -> set[str]:
    cursor = await connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = "
        "format('%%I.%%I', %s::text, %s::text)::regclass",
        (schema, table),
    )
    return {name for (name,) in await cursor.fetchall()}


async def _make(connection: psycopg.AsyncConnection[Any], schema: str, table: str, day: date) -> None:
    """Make a day's partition beside the table, move its rows there from the default partition, attach it: one transaction.

    ATTACH, not CREATE ... PARTITION OF: the latter locks out the writers of the whole table.
    """
    start, end = _bounds(day)
    whole, default = sql.Identifier(schema, table), sql.Identifier(schema, f"{table}_default")
    name = sql.Identifier(schema, _partition(table, day))
    async with connection.transaction():
        # First, in this order: a writer of the default partition between the move and the attachment would make it fail.
        await connection.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(whole))
        await connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(default))
        await connection.execute(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)").format(name, whole)
        )
        await connection.execute(
            sql.SQL(
                "WITH moved AS (DELETE FROM {} WHERE created_at >= {} AND created_at < {} RETURNING *) "
                "INSERT INTO {} SELECT * FROM moved"
            ).format(default, sql.Literal(start), sql.Literal(end), name)
        )
        await connection.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                whole, name, sql.Literal(start), sql.Literal(end)
            )
        )


async def erase(database_url: str, *, key_hash: str | None = None, user_id: str | None = None) -> int:
    """Delete all records of a key or a user (both given: of either), in one transaction.

    Records that still wait in a worker's memory are written later: block the key first, erase `flush_interval` seconds after.

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
    # One statement, one snapshot: no attempt survives its decision.
    decisions, attempts, outcomes = (sql.Identifier(own_schema(database_url), table) for table in TABLES)
    statement = sql.SQL(
        "WITH gone AS (DELETE FROM {} WHERE key_hash = %(key)s OR user_id = %(user)s RETURNING decision_id), "
        "a AS (DELETE FROM {} WHERE decision_id IN (SELECT decision_id FROM gone) RETURNING 1), "
        "o AS (DELETE FROM {} WHERE decision_id IN (SELECT decision_id FROM gone) RETURNING 1) "
        "SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM a) + (SELECT count(*) FROM o)"
    ).format(decisions, attempts, outcomes)
    async with _connect(database_url) as connection:
        cursor = await connection.execute(statement, {"key": key_hash, "user": user_id})
        row = await cursor.fetchone()
    return int(row[0]) if row else 0
