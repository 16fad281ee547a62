"""Take over a database that has LiteLLM's tables but no ledger (made by `prisma db push`).

Nothing is assumed: the migrations are rehearsed in a scratch database, which is dropped again, and only when every table and
column they make is in the real one, with the same type, the ledger is written as `prisma migrate resolve --applied` would do.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from pointsman.errors import DatabaseError
from pointsman.migrations.ledger import PrismaLedger
from pointsman.migrations.sources import Migration

__all__ = ["adopt", "has_litellm_tables"]

_SHOWN = 8
_COLUMNS = (
    "SELECT c.relname, a.attname, replace(format_type(a.atttypid, a.atttypmod), quote_ident(n.nspname) || '.', '') "
    "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = {} AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped"
)


def has_litellm_tables(connection: psycopg.Connection[Any]) -> bool:
    """Whether the connection's schema holds tables of LiteLLM's."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename LIKE 'LiteLLM\\_%')"
    ).fetchone()
    return bool(row and row[0])


def _columns(connection: psycopg.Connection[Any], schema: str) -> dict[tuple[str, str], str]:
    rows = connection.execute(sql.SQL(_COLUMNS).format(sql.Literal(schema))).fetchall()
    return {(table, column): kind for table, column, kind in rows}


def _expected(
    connection: psycopg.Connection[Any], conninfo: str, schema: str, migrations: list[Migration]
) -> dict[tuple[str, str], str]:
    # A database, not a schema: some migrations ask information_schema for a constraint's name alone, whatever its schema.
    scratch = f"pointsman_rehearsal_{uuid.uuid4().hex[:12]}"
    connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(scratch)))
    try:
        with psycopg.connect(conninfo, dbname=scratch, autocommit=True) as other:
            other.execute("SET client_min_messages = warning; SET statement_timeout = 0")
            other.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
            other.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
            for migration in migrations:
                other.execute(migration.text.encode())
            return _columns(other, schema)
    finally:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(scratch)))


def adopt(
    connection: psycopg.Connection[Any], conninfo: str, migrations: list[Migration], progress: Callable[[str], None]
) -> tuple[str, ...]:
    """Write the ledger for a schema that is already as the migrations would make it. Call it while holding the migration lock.

    Args:
        connection: to the database, in its schema.
        conninfo: libpq URL of the same server and user, for the scratch database.
        migrations: all of LiteLLM's.
        progress: gets one line at a time.

    Returns:
        The names noted as applied.

    Raises:
        DatabaseError: E4501 with what is missing or different; nothing is changed then.
    """
    progress("migrations: LiteLLM's tables are here without a ledger; comparing them with what the migrations would make")
    row = connection.execute("SELECT current_schema()").fetchone()
    schema = str(row[0]) if row else "public"
    try:
        expected = _expected(connection, conninfo, schema, migrations)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            "LiteLLM's tables are here without a ledger, and this user may not make a scratch database to compare them",
            code="E4501",
            where=f"schema {schema}",
            mend="ALTER ROLE the user of DATABASE_URL CREATEDB for this once, or run `pointsman db migrate` as one who may",
        ) from error
    present = _columns(connection, schema)
    missing = [
        f"{table}.{column}: {present.get((table, column), 'missing')}, should be {kind}"
        for (table, column), kind in sorted(expected.items())
        if present.get((table, column)) != kind
    ]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DatabaseError(
            "LiteLLM's tables are here without a ledger, and not as this version makes them: "
            + "; ".join(missing[:_SHOWN])
            + more,
            code="E4501",
            where=f"schema {schema}",
            mend="bring the schema to this LiteLLM version with the tool that made it (`prisma db push`), or start with "
            "an empty database; nothing was changed",
        )
    now = datetime.now(UTC)
    with connection.transaction():
        PrismaLedger.create(connection)
        for migration in migrations:
            PrismaLedger.record(connection, migration, now, steps=0)
    progress(f"migrations: the schema is complete; noted {len(migrations)} as applied")
    return tuple(migration.name for migration in migrations)
