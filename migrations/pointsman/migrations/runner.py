"""Bring a database to the schema that this version needs: LiteLLM's migrations, then ours.

    migrate(url, print)      # idempotent; several instances may call it at once
    status(url)              # what is applied, pending, failed, unknown

Each file is one transaction together with its entry in the ledger, so a failed one leaves the schema as it was. (Files that
build an index CONCURRENTLY cannot be; they are one statement each, and an invalid index they leave is removed.)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import address, libpq_url, own_schema, schema_of, unreachable
from pointsman.errors import DatabaseError
from pointsman.migrations.baseline import adopt
from pointsman.migrations.connection import connect
from pointsman.migrations.failure import failure, mend
from pointsman.migrations.indexes import build_indexes
from pointsman.migrations.ledger import OurLedger, PrismaLedger
from pointsman.migrations.lock import migration_lock
from pointsman.migrations.plan import MigrationStatus, SetStatus, compare, make_plan
from pointsman.migrations.sources import Migration, litellm_migrations, our_migrations
from pointsman.migrations.statements import without_comments

__all__ = ["MigrationReport", "MigrationStatus", "SetStatus", "build_indexes", "migrate", "status"]

LOCK_PATIENCE = 300.0
_DEADLOCKS = 5
_INDEX = re.compile(r'CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?"?([^"\s]+)"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What `migrate` did.

    Attributes:
        applied: names applied by this call, in order.
        adopted: names noted as applied without running them (a database that had the schema but no ledger).
        already: how many were there before.
        waited: seconds spent waiting for another migrator.
        seconds: whole call.
    """

    applied: tuple[str, ...]
    adopted: tuple[str, ...]
    already: int
    waited: float
    seconds: float

    def __str__(self) -> str:
        if not (self.applied or self.adopted):
            return f"schema is current ({self.already} migrations)"
        noted = f", {len(self.adopted)} noted as applied" if self.adopted else ""
        return f"{len(self.applied)} migrations applied in {self.seconds:.1f} s{noted}; {self.already} were there"


def migrate(
    database_url: str,
    progress: Callable[[str], None],
    *,
    patience: float = LOCK_PATIENCE,
    litellm_folder: Path | None = None,
    our_folder: Path | None = None,
) -> MigrationReport:
    """Apply what is pending. Idempotent; with several callers at once one applies and the others wait.

    Args:
        database_url: LiteLLM's DATABASE_URL; Prisma's parameters are understood. A direct connection, no transaction pooler.
        progress: gets one line at a time.
        patience: seconds to wait for another migrator.
        litellm_folder, our_folder: other sets of files, for tests.

    Raises:
        DatabaseError: E4500 unreachable, E4501 failed (file, statement and reason named), E4502 locked, E4504 bad URL.
    """
    started = time.monotonic()
    theirs, ours = litellm_migrations(litellm_folder), our_migrations(our_folder)
    with connect(database_url) as connection:
        own = own_schema(database_url)
        ledger = OurLedger(connection, own)
        plan = make_plan(connection, own, theirs, ours, progress)
        if plan.empty:
            return MigrationReport((), (), plan.already, 0.0, time.monotonic() - started)
        with migration_lock(connection, patience=patience, progress=progress) as waited:
            plan = make_plan(connection, own, theirs, ours, progress)
            # First, when the tables are there already: a refusal leaves nothing behind.
            adopted = adopt(connection, libpq_url(database_url), theirs, progress) if plan.adopt else ()
            _prepare(connection, database_url)
            todo = [] if plan.adopt else plan.litellm
            for name in plan.complete:
                PrismaLedger.finish(connection, name)
            for number, migration in enumerate(todo, 1):
                _apply(connection, migration, database_url, PrismaLedger.record, (schema_of(database_url),))
                if number % 50 == 0 or number == len(todo):
                    progress(f"migrations: {number} of {len(todo)} of LiteLLM's applied")
            for migration in plan.pointsman:
                _apply(connection, migration, database_url, lambda _, m, __: ledger.record(m.name, m.sha256), ledger.path)
                progress(f"migrations: {migration.name} applied")
    applied = tuple(migration.name for migration in [*todo, *plan.pointsman])
    return MigrationReport(applied, adopted, plan.already, waited, time.monotonic() - started)


def status(database_url: str, *, litellm_folder: Path | None = None, our_folder: Path | None = None) -> MigrationStatus:
    """Compare the files with the ledgers; changes nothing.

    Raises:
        DatabaseError: E4500, E4504.
    """
    with connect(database_url) as connection:
        return MigrationStatus(
            compare(litellm_migrations(litellm_folder), PrismaLedger.read(connection)),
            compare(our_migrations(our_folder), OurLedger(connection, own_schema(database_url)).read()),
        )


def _prepare(connection: psycopg.Connection[Any], database_url: str) -> None:
    try:
        for schema in (schema_of(database_url), own_schema(database_url)):
            _make_schema(connection, schema, database_url)
        PrismaLedger.create(connection)
        OurLedger(connection, own_schema(database_url)).create()
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise DatabaseError(
            f"the ledger cannot be written: {error.diag.message_primary}",
            code="E4501",
            where=address(database_url),
            mend=mend(error),
        ) from error


def _make_schema(connection: psycopg.Connection[Any], schema: str, database_url: str) -> None:
    """Make a schema, or see that it can be used: an administrator may have made it for a role that may not."""
    # First the question: CREATE SCHEMA IF NOT EXISTS wants the right to create even where it has nothing to do.
    row = connection.execute(
        "SELECT n.oid IS NOT NULL, has_database_privilege(current_database(), 'CREATE'), "
        "n.oid IS NULL OR has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), "
        "quote_ident(current_user), quote_ident(%s) FROM (SELECT to_regnamespace(quote_ident(%s))) AS n(oid)",
        (schema, schema),
    ).fetchone()
    there, may_create, usable, role, name = row if row else (False, True, True, "", "")
    if not there and may_create:
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    elif not (there and usable):
        needed = f"GRANT USAGE, CREATE ON SCHEMA {name} TO {role};" if there else f"CREATE SCHEMA {name} AUTHORIZATION {role};"
        raise DatabaseError(
            f"the schema {name} " + ("may not be used" if there else "is missing and may not be made") + f" by {role}",
            code="E4501",
            where=address(database_url),
            mend=f"have the database's owner run: {needed}",
        )


def _apply(
    connection: psycopg.Connection[Any],
    migration: Migration,
    database_url: str,
    record: Callable[[psycopg.Connection[Any], Migration, datetime], None],
    path: tuple[str, ...],
) -> None:
    started = datetime.now(UTC)
    try:
        if migration.concurrent:
            _search(connection, path, local=False)
            _apply_concurrently(connection, migration)
            _search(connection, (schema_of(database_url),), local=False)
            record(connection, migration, started)
        else:
            with connection.transaction():
                _search(connection, path, local=True)
                # Without parameters psycopg sends the whole text in one simple query, as Prisma does.
                connection.execute(migration.text.encode())
                record(connection, migration, started)
    except psycopg.Error as error:
        if connection.closed or connection.broken:
            raise unreachable(database_url, error) from error
        _search(connection, path, local=False)  # the file is rehearsed
        raise failure(connection, migration, error) from error


def _search(connection: psycopg.Connection[Any], path: tuple[str, ...], *, local: bool) -> None:
    """Set the search path, for the transaction or for the session."""
    names = sql.SQL(", ").join(map(sql.Identifier, path))
    connection.execute(sql.SQL("SET LOCAL search_path TO {}" if local else "SET search_path TO {}").format(names))


def _apply_concurrently(connection: psycopg.Connection[Any], migration: Migration) -> None:
    names = _INDEX.findall(without_comments(migration.text))
    for attempt in range(_DEADLOCKS):
        for name in names:  # an earlier, interrupted build; IF NOT EXISTS would take it for done
            invalid = connection.execute(
                "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(quote_ident(%s)) AND NOT indisvalid", (name,)
            ).fetchone()
            if invalid:
                connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
        try:
            connection.execute(migration.text.encode())
            return
        except psycopg.errors.DeadlockDetected:  # with a blocked statement of another tool, which gives up in time
            if attempt == _DEADLOCKS - 1:
                raise
            time.sleep(1.0)
