"""Bring a database to the schema that this version needs: LiteLLM's migrations, then ours.

    migrate(url, print)      # idempotent; several instances may call it at once
    status(url)              # what is applied, pending, failed, unknown

Each file is one transaction together with its entry in the ledger, so a failed one leaves the schema as it was (files that build an
index CONCURRENTLY cannot; they are one statement each, and an invalid index they leave is removed).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import address, libpq_url, redact, schema_of, unreachable
from pointsman.errors import DatabaseError
from pointsman.migrations.baseline import adopt, has_litellm_tables
from pointsman.migrations.ledger import Ledger, OurLedger, PrismaLedger
from pointsman.migrations.lock import migration_lock
from pointsman.migrations.sources import Migration, litellm_migrations, our_migrations
from pointsman.migrations.statements import split, without_comments

__all__ = ["MigrationReport", "MigrationStatus", "SetStatus", "connect", "migrate", "status"]

LOCK_PATIENCE = 300.0
CONNECT_SECONDS = 10
OLDEST_SERVER = 130_000
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


@dataclass(frozen=True, slots=True)
class SetStatus:
    """One set of migrations against its ledger.

    Attributes:
        applied, pending: names in order.
        failed: name -> what was logged, for migrations that another tool began and did not finish.
        unknown: applied here, but not among this version's files (a newer version was here).
        changed: applied, but the file's bytes are others now.
    """

    applied: tuple[str, ...]
    pending: tuple[str, ...]
    failed: dict[str, str]
    unknown: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """Both sets."""

    litellm: SetStatus
    pointsman: SetStatus

    @property
    def current(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.litellm.pending or self.pointsman.pending or self.litellm.failed)


@dataclass(frozen=True, slots=True)
class _Plan:
    litellm: list[Migration]
    pointsman: list[Migration]
    complete: list[str]
    already: int
    adopt: bool

    @property
    def empty(self) -> bool:
        return not (self.litellm or self.pointsman or self.complete)


@contextmanager
def connect(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit mode, in the URL's schema, without the role's time limits.

    Raises:
        DatabaseError: E4504 malformed URL, E4500 unreachable or lost on the way; the password is never shown.
    """
    try:
        connection = psycopg.connect(
            libpq_url(database_url), autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="pointsman migrate"
        )
    except psycopg.OperationalError as error:
        raise unreachable(database_url, error) from None
    except psycopg.Error as error:
        raise DatabaseError(
            f"the database URL is malformed: {redact(str(error), database_url)}",
            code="E4504",
            where="DATABASE_URL",
            mend="write it as postgresql://user:password@host:5432/database",
        ) from None
    with connection:
        try:
            if connection.info.server_version < OLDEST_SERVER:
                raise DatabaseError(
                    f"PostgreSQL {connection.info.server_version // 10_000} is too old",
                    code="E4501",
                    where=address(database_url),
                    mend="use PostgreSQL 13 or newer",
                )
            schema = schema_of(database_url)
            connection.execute("SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0")
            # A migrator whose machine vanishes must not hold the lock for two hours.
            connection.execute("SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3")
            connection.execute("SET client_min_messages = warning")
            if schema != "public":
                connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
            yield connection
        except psycopg.OperationalError as error:
            if connection.closed or connection.broken:
                raise unreachable(database_url, error) from error
            raise


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
        database_url: LiteLLM's DATABASE_URL; Prisma's parameters are understood. Must be a direct connection (no transaction pooler).
        progress: gets one line at a time.
        patience: seconds to wait for another migrator.
        litellm_folder, our_folder: other sets of files, for tests.

    Raises:
        DatabaseError: E4500 unreachable, E4501 failed (file, statement and reason named), E4502 locked, E4504 bad URL.
    """
    started = time.monotonic()
    theirs, ours = litellm_migrations(litellm_folder), our_migrations(our_folder)
    with connect(database_url) as connection:
        plan = _plan(connection, theirs, ours, progress)
        if plan.empty:
            return MigrationReport((), (), plan.already, 0.0, time.monotonic() - started)
        with migration_lock(connection, patience=patience, progress=progress) as waited:
            plan = _plan(connection, theirs, ours, progress)
            if schema_of(database_url) != "public":
                connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema_of(database_url))))
            adopted = adopt(connection, libpq_url(database_url), theirs, progress) if plan.adopt else ()
            todo = [] if plan.adopt else plan.litellm
            _prepare(connection, plan, database_url)
            for number, migration in enumerate(todo, 1):
                _apply(connection, migration, database_url, PrismaLedger.record)
                if number % 50 == 0 or number == len(todo):
                    progress(f"migrations: {number} of {len(todo)} of LiteLLM's applied")
            for migration in plan.pointsman:
                _apply(connection, migration, database_url, lambda c, m, _: OurLedger.record(c, m.name, m.sha256))
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
            _compare(litellm_migrations(litellm_folder), PrismaLedger.read(connection)),
            _compare(our_migrations(our_folder), OurLedger.read(connection)),
        )


def _compare(files: list[Migration], ledger: Ledger) -> SetStatus:
    names = {migration.name for migration in files}
    return SetStatus(
        applied=tuple(m.name for m in files if m.name in ledger.applied),
        pending=tuple(m.name for m in files if m.name not in ledger.applied),
        failed={name: logs for name, logs in ledger.failed.items() if name not in ledger.applied},
        # Our ledger also notes steps that are no files; their names have a colon.
        unknown=tuple(sorted(name for name in ledger.applied if name not in names and ":" not in name)),
        changed=tuple(m.name for m in files if ledger.applied.get(m.name, m.sha256) != m.sha256),
    )


def _plan(
    connection: psycopg.Connection[Any], theirs: list[Migration], ours: list[Migration], progress: Callable[[str], None]
) -> _Plan:
    prisma, own = PrismaLedger.read(connection), OurLedger.read(connection)
    litellm, pointsman = _compare(theirs, prisma), _compare(ours, own)
    by_name = {migration.name: migration for migration in theirs}
    complete = [name for name in litellm.failed if name in by_name and prisma.complete.get(name) == by_name[name].sha256]
    for name, logs in litellm.failed.items():
        if name not in complete:
            raise DatabaseError(
                f"another tool began LiteLLM's migration {name} and did not finish it"
                + (f": {' '.join(logs.split())[:500]}" if logs.strip() else ""),
                code="E4501",
                where="_prisma_migrations",
                mend="look whether its changes are in the schema; if not: UPDATE _prisma_migrations SET rolled_back_at = now() "
                f"WHERE migration_name = '{name}' AND finished_at IS NULL; if so, SET finished_at = now() there",
            )
    if pointsman.changed:
        files = ", ".join(str(m.path) for m in ours if m.name in pointsman.changed)
        raise DatabaseError(
            "a migration of ours that is applied here has another content now",
            code="E4501",
            where=files,
            mend="restore the file as it was released; a change of the schema is a new file",
        )
    if litellm.unknown or pointsman.unknown:
        names = [*litellm.unknown, *pointsman.unknown]
        progress(
            f"migrations: the database knows {len(names)} that this version does not (a newer one was here): {names[-1]} ..."
        )
    pending = set(litellm.pending) - set(complete)
    return _Plan(
        litellm=[m for m in theirs if m.name in pending],
        pointsman=[m for m in ours if m.name in set(pointsman.pending)],
        complete=complete,
        already=len(litellm.applied) + len(pointsman.applied),
        adopt=not prisma.exists and has_litellm_tables(connection),
    )


def _prepare(connection: psycopg.Connection[Any], plan: _Plan, database_url: str) -> None:
    try:
        PrismaLedger.create(connection)
        OurLedger.create(connection)
        for name in plan.complete:
            PrismaLedger.finish(connection, name)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise DatabaseError(
            f"the ledger cannot be written: {error.diag.message_primary}",
            code="E4501",
            where=address(database_url),
            mend=_mend(error),
        ) from error


def _apply(
    connection: psycopg.Connection[Any],
    migration: Migration,
    database_url: str,
    record: Callable[[psycopg.Connection[Any], Migration, datetime], None],
) -> None:
    started = datetime.now(UTC)
    try:
        if migration.concurrent:
            _apply_concurrently(connection, migration)
            record(connection, migration, started)
        else:
            with connection.transaction():
                # Without parameters psycopg sends the whole text in one simple query, as Prisma does.
                connection.execute(migration.text.encode())
                record(connection, migration, started)
    except psycopg.Error as error:
        if connection.closed or connection.broken:
            raise unreachable(database_url, error) from error
        raise _failure(connection, migration, error) from error


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


def _failure(connection: psycopg.Connection[Any], migration: Migration, error: psycopg.Error) -> DatabaseError:
    line, text = _culprit(connection, migration, error)
    excerpt = " ".join(without_comments(text).split())
    excerpt = excerpt if len(excerpt) <= 300 else excerpt[:300] + " ..."
    reason = error.diag.message_primary or str(error)
    detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
    return DatabaseError(
        f"the migration {migration.name} failed at `{excerpt}`: {reason}{detail}",
        code="E4501",
        where=f"{migration.path}, line {line}",
        mend=_mend(error),
    )


def _culprit(connection: psycopg.Connection[Any], migration: Migration, error: psycopg.Error) -> tuple[int, str]:
    """Line and text of the failing statement: from the position that the server tells, else by a rehearsal that is rolled back."""
    statements = split(migration.text)
    if error.diag.statement_position:
        line = migration.text.count("\n", 0, int(error.diag.statement_position) - 1) + 1
        guilty = max((s for s in statements if s.line <= line), key=lambda s: s.line, default=None)
        return line, guilty.text if guilty else migration.text
    if len(statements) > 1 and not migration.concurrent:
        for statement in statements:
            try:
                with connection.transaction(force_rollback=True):
                    for earlier in statements[: statements.index(statement) + 1]:
                        connection.execute(earlier.text.encode())
            except psycopg.Error:
                return statement.line, statement.text
    first = statements[0] if statements else None
    return (first.line, first.text) if first else (1, migration.text)


def _mend(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "grant the user of DATABASE_URL ownership of the schema's tables, or migrate as their owner (`pointsman db migrate`)"
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return "point DATABASE_URL at the primary, not at a read replica"
    if isinstance(error, psycopg.errors.DiskFull):
        return "free some space on the database server's disk and start again"
    return "the schema is as before this file; mend the cause and start again (`pointsman db status` lists what is applied)"
