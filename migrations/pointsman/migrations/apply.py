"""Apply one file: in a transaction with its entry in the ledger, or outside of one where Postgres wants that.

A statement that changes a table waits until nobody uses it, and whoever comes after waits behind it: so no attempt waits longer
than `LOCK_TIMEOUT`; requests go on in between.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import address, own_schema, schema_of, unreachable
from pointsman.errors import DatabaseError
from pointsman.migrations.failure import failure, mend
from pointsman.migrations.ledger import OurLedger, PrismaLedger
from pointsman.migrations.sources import Migration
from pointsman.migrations.statements import without_comments

__all__ = ["LOCK_TIMEOUT", "TABLE_PATIENCE", "apply", "prepare", "schema_problem", "search_path"]

LOCK_TIMEOUT = "2s"
"""How long an attempt may keep a table's other users waiting."""

TABLE_PATIENCE = 300.0
"""Seconds after which a table that never falls free is an error."""

_DEADLOCKS = 5
_INDEX = re.compile(r'CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?"?([^"\s]+)"?', re.IGNORECASE)

Record = Callable[[Migration, datetime], None]
Connection = psycopg.Connection[Any]


def schema_problem(connection: Connection, schema: str, database_url: str) -> DatabaseError | None:
    """What stands in the way of using a schema: it is missing and this role may not make it, or it is there and not for us."""
    there, may_create, usable, role, name = _schema(connection, schema)
    if usable if there else may_create:
        return None
    needed = f"GRANT USAGE, CREATE ON SCHEMA {name} TO {role};" if there else f"CREATE SCHEMA {name} AUTHORIZATION {role};"
    return DatabaseError(
        f"the schema {name} " + ("may not be used" if there else "is missing and may not be made") + f" by {role}",
        code="E4501",
        where=address(database_url),
        mend=f"have the database's owner run: {needed}",
    )


def _schema(connection: Connection, schema: str) -> tuple[bool, bool, bool, str, str]:
    row = connection.execute(
        "SELECT n.oid IS NOT NULL, has_database_privilege(current_database(), 'CREATE'), "
        "coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), false), "
        "quote_ident(current_user), quote_ident(%s) FROM (SELECT to_regnamespace(quote_ident(%s))) AS n(oid)",
        (schema, schema),
    ).fetchone()
    return row if row else (False, True, False, "", schema)


def prepare(connection: Connection, database_url: str) -> None:
    """Make the schemas and the ledgers that are missing.

    Raises:
        DatabaseError: E4501 with what an administrator has to run.
    """
    try:
        for schema in (schema_of(database_url), own_schema(database_url)):
            if (problem := schema_problem(connection, schema, database_url)) is not None:
                raise problem
            # First the question: CREATE SCHEMA IF NOT EXISTS wants the right to create even where it has nothing to do.
            if not _schema(connection, schema)[0]:
                connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        PrismaLedger.create(connection)
        OurLedger(connection, own_schema(database_url)).create()
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise DatabaseError(
            f"the ledger cannot be written: {error.diag.message_primary}",
            code="E4501",
            where=address(database_url),
            mend=mend(error),
        ) from error


def apply(
    connection: Connection,
    migration: Migration,
    database_url: str,
    record: Record,
    path: tuple[str, ...],
    progress: Callable[[str], None],
    patience: float = TABLE_PATIENCE,
) -> None:
    """Apply a file and note it.

    Args:
        connection: direct, in autocommit mode, holding the migration lock.
        migration: the file.
        database_url: for messages.
        record: notes it in its ledger, on the same connection.
        path: search path for its statements.
        progress: told when it has to wait for a table.
        patience: seconds to wait for tables that are in use.

    Raises:
        DatabaseError: E4500 the connection was lost, E4501 it failed (file, statement and reason named).
    """
    deadline, deadlocks, told = time.monotonic() + patience, 0, False
    while True:
        try:
            _attempt(connection, migration, database_url, record, path)
            return
        except psycopg.errors.LockNotAvailable as error:
            if time.monotonic() > deadline:
                raise _in_use(connection, migration, patience) from error
            if not told:
                progress(f"migrations: {migration.name} waits for a table that is in use; {_oldest(connection)}")
                told = True
        except psycopg.errors.DeadlockDetected as error:  # with a writer or another tool, who gives up or comes through in time
            deadlocks += 1
            if deadlocks == _DEADLOCKS:
                raise _failed(connection, migration, error, path) from error
        except psycopg.Error as error:
            if connection.closed or connection.broken:
                raise unreachable(database_url, error) from error
            raise _failed(connection, migration, error, path) from error
        time.sleep(random.uniform(0.3, 1.0))  # noqa: S311 - lets the others through, no secret


def _failed(connection: Connection, migration: Migration, error: psycopg.Error, path: tuple[str, ...]) -> DatabaseError:
    search_path(connection, path)  # the file is rehearsed
    return failure(connection, migration, error)


def _attempt(connection: Connection, migration: Migration, database_url: str, record: Record, path: tuple[str, ...]) -> None:
    started = datetime.now(UTC)
    if migration.concurrent:
        search_path(connection, path)
        try:
            _concurrently(connection, migration)
        finally:
            if not connection.closed:
                search_path(connection, (schema_of(database_url),))
        record(migration, started)
        return
    with connection.transaction():
        search_path(connection, path, local=True)
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
        # Without parameters psycopg sends the whole text in one simple query, as Prisma does.
        connection.execute(migration.text.encode())
        record(migration, started)


def search_path(connection: Connection, path: tuple[str, ...], *, local: bool = False) -> None:
    """Set the search path, for the session or (`local`) for the transaction."""
    names = sql.SQL(", ").join(map(sql.Identifier, path))
    connection.execute(sql.SQL("SET LOCAL search_path TO {}" if local else "SET search_path TO {}").format(names))


def _concurrently(connection: Connection, migration: Migration) -> None:
    # An earlier, interrupted build; IF NOT EXISTS would take it for done.
    for name in _INDEX.findall(without_comments(migration.text)):
        invalid = connection.execute(
            "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(quote_ident(%s)) AND NOT indisvalid", (name,)
        ).fetchone()
        if invalid:
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
    connection.execute(migration.text.encode())


def _oldest(connection: Connection) -> str:
    """The transaction that is most likely in the way."""
    row = connection.execute(
        "SELECT pid, coalesce(nullif(application_name, ''), '?'), extract(epoch FROM clock_timestamp() - xact_start)::int "
        "FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend' ORDER BY xact_start LIMIT 1"
    ).fetchone()
    return (
        "no transaction is open now"
        if row is None
        else f"the oldest transaction is backend {row[0]} ({row[1]}), {row[2]} s old"
    )


def _in_use(connection: Connection, migration: Migration, patience: float) -> DatabaseError:
    return DatabaseError(
        f"the migration {migration.name} waited {patience:.0f} s for a table that is in use; {_oldest(connection)}",
        code="E4501",
        where=str(migration.path),
        mend="end long transactions (or wait for a backup to finish) and start again; the schema is as before this file",
    )
