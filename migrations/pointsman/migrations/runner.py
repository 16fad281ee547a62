"""Bring a database to the schema that this version needs: LiteLLM's migrations, then ours.

    migrate(url, print)      # idempotent; several instances may call it at once
    status(url)              # what is applied, pending, failed, unknown

Each file is one transaction together with its entry in the ledger, so a failed one leaves the schema as it was. (Files that
build an index CONCURRENTLY cannot be; they are one statement each, and an invalid index they leave is removed.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pointsman.database_url import address, libpq_url, own_schema, schema_of
from pointsman.errors import DatabaseError
from pointsman.migrations.apply import TABLE_PATIENCE, apply, prepare
from pointsman.migrations.baseline import adopt
from pointsman.migrations.connection import connect
from pointsman.migrations.indexes import build_indexes
from pointsman.migrations.ledger import OurLedger, PrismaLedger
from pointsman.migrations.lock import migration_lock
from pointsman.migrations.plan import MigrationStatus, SetStatus, compare, make_plan
from pointsman.migrations.sources import litellm_migrations, our_migrations

__all__ = ["MigrationReport", "MigrationStatus", "SetStatus", "build_indexes", "migrate", "require_current", "status"]

LOCK_PATIENCE = 300.0
_SHOWN = 5


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
    table_patience: float = TABLE_PATIENCE,
    litellm_folder: Path | None = None,
    our_folder: Path | None = None,
) -> MigrationReport:
    """Apply what is pending. Idempotent; with several callers at once one applies and the others wait.

    Args:
        database_url: LiteLLM's DATABASE_URL; Prisma's parameters are understood. A direct connection, no transaction pooler.
        progress: gets one line at a time.
        patience: seconds to wait for another migrator.
        table_patience: seconds to wait for a table that is in use.
        litellm_folder, our_folder: other sets of files, for tests.

    Raises:
        DatabaseError: E4500 unreachable, E4501 failed (file, statement and reason named), E4502 locked, E4504 bad URL,
            E4508 through a pooler in transaction mode.
    """
    started = time.monotonic()
    theirs, ours = litellm_migrations(litellm_folder), our_migrations(our_folder)
    with connect(database_url, direct=False) as connection:  # where nothing is to be done, a pooler may be in between
        own = own_schema(database_url)
        plan = make_plan(connection, own, theirs, ours, progress)
        if plan.empty:
            return MigrationReport((), (), plan.already, 0.0, time.monotonic() - started)
    with connect(database_url) as connection:
        ledger = OurLedger(connection, own)
        with migration_lock(connection, patience=patience, progress=progress) as waited:
            plan = make_plan(connection, own, theirs, ours, progress)
            # First, when the tables are there already: a refusal leaves nothing behind.
            adopted = adopt(connection, libpq_url(database_url), theirs, progress) if plan.adopt else ()
            prepare(connection, database_url)
            todo = [] if plan.adopt else plan.litellm
            for name in plan.complete:
                PrismaLedger.finish(connection, name)
            for number, migration in enumerate(todo, 1):
                note = partial(PrismaLedger.record, connection)
                apply(connection, migration, database_url, note, (schema_of(database_url),), progress, table_patience)
                if number % 50 == 0 or number == len(todo):
                    progress(f"migrations: {number} of {len(todo)} of LiteLLM's applied")
            for migration in plan.pointsman:
                apply(connection, migration, database_url, ledger.note, ledger.path, progress, table_patience)
                progress(f"migrations: {migration.name} applied")
    applied = tuple(migration.name for migration in [*todo, *plan.pointsman])
    return MigrationReport(applied, adopted, plan.already, waited, time.monotonic() - started)


def status(database_url: str, *, litellm_folder: Path | None = None, our_folder: Path | None = None) -> MigrationStatus:
    """Compare the files with the ledgers; changes nothing.

    Raises:
        DatabaseError: E4500, E4504.
    """
    with connect(database_url, direct=False) as connection:
        return MigrationStatus(
            compare(litellm_migrations(litellm_folder), PrismaLedger.read(connection)),
            compare(our_migrations(our_folder), OurLedger(connection, own_schema(database_url)).read()),
        )


def require_current(database_url: str) -> None:
    """Refuse a schema that is not this version's, for an instance that may not change it.

    Raises:
        DatabaseError: E4509 with what is pending, E4500, E4504.
    """
    found = status(database_url)
    if found.current:
        return
    pending, half = found.pending, found.litellm.failed
    names = ", ".join(pending[:_SHOWN]) + (f" and {len(pending) - _SHOWN} more" if len(pending) > _SHOWN else "")
    said = [f"{len(pending)} pending ({names})"] if pending else []
    said += [f"{len(half)} begun by another tool and not finished ({', '.join(half)})"] if half else []
    said += [f"edited since they were applied: {', '.join(found.pointsman.changed)}"] if found.pointsman.changed else []
    raise DatabaseError(
        f"the schema is not that of this version: {'; '.join(said)}",
        code="E4509",
        where=address(database_url),
        mend="run `pointsman db migrate` of this version once, before its instances start, or start them without --no-migrate",
    )
