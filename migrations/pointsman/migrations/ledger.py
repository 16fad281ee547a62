"""What was applied, in the database itself: Prisma's table `_prisma_migrations`, written as Prisma writes it, and ours."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from pointsman.migrations.sources import Migration

__all__ = ["MOVE", "OUR_TABLE", "PRISMA_TABLE", "Ledger", "OurLedger", "PrismaLedger"]

PRISMA_TABLE = "_prisma_migrations"
OUR_TABLE = "pointsman_migrations"
MOVE = "0003_own_schema"
"""The migration that takes our tables out of LiteLLM's schema."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger as read.

    Attributes:
        exists: whether the table is there.
        applied: name -> sha256 of the file as it was applied.
        failed: name -> what Prisma logged, for rows that neither finished nor were rolled back.
        complete: names among `failed` whose only missing step is the note that they finished.
    """

    exists: bool
    applied: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    complete: dict[str, str] = field(default_factory=dict)


def _exists(connection: psycopg.Connection[Any], table: str) -> bool:
    # Through the search path, where everything else here looks too.
    row = connection.execute("SELECT to_regclass(quote_ident(%s)) IS NOT NULL", (table,)).fetchone()
    return bool(row and row[0])


class PrismaLedger:
    """`_prisma_migrations`, columns and values as the 5.17 schema engine writes them (checksum: sha256 of the file)."""

    @staticmethod
    def read(connection: psycopg.Connection[Any]) -> Ledger:
        """The ledger of the connection's schema."""
        if not _exists(connection, PRISMA_TABLE):
            return Ledger(exists=False)
        ledger = Ledger(exists=True)
        rows = connection.execute(
            f"SELECT migration_name, checksum, finished_at IS NOT NULL, applied_steps_count, coalesce(logs, '') "  # noqa: S608 - a constant
            f"FROM {PRISMA_TABLE} WHERE rolled_back_at IS NULL ORDER BY started_at"
        ).fetchall()
        for name, checksum, finished, steps, logs in rows:
            if finished:
                ledger.applied[name] = checksum
            else:
                ledger.failed[name] = logs
                if steps == 1 and not logs.strip():
                    ledger.complete[name] = checksum
        return ledger

    MAKE: LiteralString = (
        "CREATE TABLE IF NOT EXISTS _prisma_migrations (id VARCHAR(36) PRIMARY KEY NOT NULL, checksum VARCHAR(64) NOT NULL, "
        "finished_at TIMESTAMPTZ, migration_name VARCHAR(255) NOT NULL, logs TEXT, rolled_back_at TIMESTAMPTZ, "
        "started_at TIMESTAMPTZ NOT NULL DEFAULT now(), applied_steps_count INTEGER NOT NULL DEFAULT 0)"
    )

    @staticmethod
    def create(connection: psycopg.Connection[Any]) -> None:
        """Make the table when it is missing."""
        connection.execute(PrismaLedger.MAKE)

    @staticmethod
    def record(connection: psycopg.Connection[Any], migration: Migration, started: datetime, *, steps: int = 1) -> None:
        """Note a finished migration. `steps` 0 is Prisma's mark for "resolved as applied, not run"."""
        connection.execute(PrismaLedger.entry(migration, sql.Literal(started), steps))

    @staticmethod
    def entry(migration: Migration, started: sql.Composable, steps: int = 1) -> sql.Composed:
        """The statement that notes a finished migration."""
        return sql.SQL(
            "INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, started_at, applied_steps_count) "
            "VALUES ({}, {}, clock_timestamp(), {}, {}, {})"
        ).format(str(uuid.uuid4()), migration.sha256, migration.name, started, steps)

    @staticmethod
    def finish(connection: psycopg.Connection[Any], name: str) -> None:
        """Note that a migration whose step succeeded has finished (its runner died between the two notes)."""
        connection.execute(
            f"UPDATE {PRISMA_TABLE} SET finished_at = clock_timestamp() "  # noqa: S608 - a constant
            "WHERE migration_name = %s AND finished_at IS NULL AND rolled_back_at IS NULL AND applied_steps_count = 1",
            (name,),
        )


class OurLedger:
    """`pointsman_migrations`: name, sha256, applied_at. It stands where our tables do: in LiteLLM's schema before the migration
    that moves them, in our own after it.

    Args:
        connection: its current schema is LiteLLM's.
        own: name of our schema (`pointsman.database_url.own_schema`).
    """

    def __init__(self, connection: psycopg.Connection[Any], own: str) -> None:
        self._connection = connection
        self._own = own

    @property
    def home(self) -> str | None:
        """The schema that has the ledger; None: neither has."""
        row = self._connection.execute(
            "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = %s AND c.relkind = 'r' AND n.nspname IN (%s, current_schema())",
            (OUR_TABLE, self._own),
        ).fetchone()
        return str(row[0]) if row else None

    @property
    def path(self) -> tuple[str, ...]:
        """The search path for a file of ours: the schema where our tables are now, then the other."""
        row = self._connection.execute("SELECT current_schema()").fetchone()
        theirs = str(row[0]) if row and row[0] else "public"
        return (self._own, theirs) if self.home == self._own else (theirs, self._own)

    def _table(self) -> sql.Identifier:
        home = self.home
        return sql.Identifier(home, OUR_TABLE) if home else sql.Identifier(OUR_TABLE)

    def read(self) -> Ledger:
        """What it says; an empty one when it is not there."""
        if self.home is None:
            return Ledger(exists=False)
        rows = self._connection.execute(sql.SQL("SELECT name, sha256 FROM {}").format(self._table())).fetchall()
        return Ledger(exists=True, applied=dict(rows))

    MAKE: LiteralString = (
        "CREATE TABLE IF NOT EXISTS pointsman_migrations "
        "(name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )

    def create(self) -> None:
        """Make the table when it is missing: in LiteLLM's schema, for the migrations before the move to find it as they did."""
        if self.home is None:
            self._connection.execute(self.MAKE)

    def record(self, name: str, sha256: str) -> None:
        """Note a finished migration (or another step done once for a database)."""
        self._connection.execute(self.entry(self._table(), name, sha256))

    @staticmethod
    def entry(table: sql.Identifier, name: str, sha256: str) -> sql.Composed:
        """The statement that notes a finished migration."""
        return sql.SQL(
            "INSERT INTO {} (name, sha256) VALUES ({}, {}) ON CONFLICT (name) DO UPDATE SET sha256 = EXCLUDED.sha256"
        ).format(table, name, sha256)

    def note(self, migration: Migration, started: datetime) -> None:
        """Note a file that was applied (in the shape that both ledgers have)."""
        del started  # it notes when it ended
        self.record(migration.name, migration.sha256)
