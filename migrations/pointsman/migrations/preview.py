"""What `migrate` would do: as a list with a judgement of each file, and as SQL to be read or to be run by somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import own_schema, schema_of
from pointsman.migrations.apply import LOCK_TIMEOUT
from pointsman.migrations.connection import connect
from pointsman.migrations.ledger import MOVE, OUR_TABLE, OurLedger, PrismaLedger
from pointsman.migrations.plan import Plan, make_plan
from pointsman.migrations.safety import Review, review
from pointsman.migrations.sources import Migration, litellm_migrations, our_migrations

__all__ = ["Preview", "Step", "preview", "script"]


@dataclass(frozen=True, slots=True)
class Step:
    """One pending file.

    Attributes:
        owner: `litellm` or `pointsman`.
        migration: the file.
        review: its judgement.
    """

    owner: str
    migration: Migration
    review: Review

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "owner": self.owner,
            "name": self.migration.name,
            "transaction": not self.migration.concurrent,
            "level": self.review.level,
            "declared": " ".join(self.review.declared) if self.review.declared else None,
            "findings": [{"line": one.line, "level": one.level, "reason": one.reason} for one in self.review.findings],
        }

    def __str__(self) -> str:
        how = "concurrently " if self.migration.concurrent else "transaction  "
        kind = {"safe": "rolling-safe", "locks": "locks", "breaking": "BREAKING"}[self.review.level]
        lines = [f"{self.owner:9}  {how}  {kind:12}  {self.migration.name}"]
        if self.review.declared is not None:
            lines.append(f"             {': '.join(self.review.declared)}")
        elif self.review.level != "safe":
            lines += [f"             line {one.line}: {one.reason}" for one in self.review.findings]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Preview:
    """All of it.

    Attributes:
        steps: what would be applied, in order.
        adopt: LiteLLM's tables are there without its ledger; they would be compared with its migrations first.
        already: how many are applied.
        unused: nobody can be at work here: the database has no tables of LiteLLM's.
    """

    steps: tuple[Step, ...]
    adopt: bool
    already: int
    unused: bool

    @property
    def rolling_safe(self) -> bool:
        """Whether instances of the version before can work on meanwhile."""
        return self.unused or all(step.review.level == "safe" for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rolling_safe": self.rolling_safe,
            "unused": self.unused,
            "adopt": self.adopt,
            "already": self.already,
            "steps": [step.as_dict() for step in self.steps],
        }

    def __str__(self) -> str:
        if not self.steps:
            return f"nothing to apply ({self.already} are applied)"
        lines = [str(step) for step in self.steps]
        worst = [step for step in self.steps if step.review.level != "safe"]
        if self.adopt:
            lines.insert(0, "LiteLLM's tables are here without its ledger: they are compared first, and its migrations noted")
        said = "nobody uses this database yet" if self.unused else f"{len(worst)} not safe while other instances work"
        return "\n".join([*lines, f"{len(self.steps)} to apply, {said}"])


def preview(database_url: str, *, litellm_folder: Path | None = None, our_folder: Path | None = None) -> Preview:
    """What would be applied. Changes nothing, takes no lock, goes through poolers.

    Raises:
        DatabaseError: E4500, E4501 (what `migrate` would refuse), E4504.
    """
    with connect(database_url, direct=False) as connection:
        plan = _plan(connection, database_url, litellm_folder, our_folder)
        row = connection.execute(
            "SELECT NOT EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename LIKE 'LiteLLM\\_%%')",
            (schema_of(database_url),),
        ).fetchone()
    steps: list[Step] = []
    made: frozenset[str] = frozenset()
    for owner, files in (("litellm", [] if plan.adopt else plan.litellm), ("pointsman", plan.pointsman)):
        for migration in files:
            found = review(migration, made)
            made |= found.made
            steps.append(Step(owner, migration, found))
    return Preview(tuple(steps), plan.adopt, plan.already, bool(row and row[0]))


def _plan(connection: psycopg.Connection[Any], url: str, litellm_folder: Path | None, our_folder: Path | None) -> Plan:
    theirs, ours = litellm_migrations(litellm_folder), our_migrations(our_folder)
    return make_plan(connection, own_schema(url), theirs, ours, lambda _: None)


def script(database_url: str, *, litellm_folder: Path | None = None, our_folder: Path | None = None) -> str:
    """The SQL that `migrate` would run, its entries in the ledgers with it; for `psql -v ON_ERROR_STOP=1`. Changes nothing.

    Raises:
        DatabaseError: E4500, E4501 (what `migrate` would refuse), E4504.
    """
    with connect(database_url, direct=False) as connection:
        plan = _plan(connection, database_url, litellm_folder, our_folder)
        if plan.empty:
            return f"-- nothing to apply ({plan.already} are applied)\n"
        parts = _script(connection, plan, schema_of(database_url), own_schema(database_url))
        return "\n".join(part if isinstance(part, str) else f"{part.as_string(connection)};" for part in parts) + "\n"


def _script(connection: psycopg.Connection[Any], plan: Plan, theirs: str, own: str) -> Iterator[str | sql.Composable]:
    ledger = OurLedger(connection, own)
    home = ledger.home
    yield "-- For psql -v ON_ERROR_STOP=1, on a direct connection, by nobody else at the same time. One transaction a file."
    for schema in (theirs, own):
        if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() is None:
            yield sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema))
    yield sql.SQL("SET search_path TO {}").format(sql.Identifier(theirs))
    yield sql.SQL(PrismaLedger.MAKE)
    if home is None:
        yield sql.SQL(OurLedger.MAKE)
    if plan.adopt:
        yield "-- LiteLLM's tables are here without its ledger: `pointsman db migrate` compares them, and notes its migrations."
    for name in plan.complete:
        yield sql.SQL("UPDATE _prisma_migrations SET finished_at = clock_timestamp() WHERE migration_name = {}").format(name)
    for migration in [] if plan.adopt else plan.litellm:
        yield from _file(migration, (theirs,), PrismaLedger.entry(migration, sql.SQL("now()")))
    for migration in plan.pointsman:
        # The move leaves views with the old names, so within its own transaction the entry finds its table as before.
        path = (own, theirs) if home == own else (theirs, own)
        yield from _file(migration, path, OurLedger.entry(sql.Identifier(OUR_TABLE), migration.name, migration.sha256))
        home = own if migration.name == MOVE else home


def _file(migration: Migration, path: tuple[str, ...], entry: sql.Composed) -> Iterator[str | sql.Composable]:
    names = sql.SQL(", ").join(map(sql.Identifier, path))
    yield f"\n-- {migration.name}"
    if not migration.concurrent:
        yield sql.SQL("BEGIN")
        yield sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT)
    yield sql.SQL("SET {} search_path TO {}").format(sql.SQL("SESSION" if migration.concurrent else "LOCAL"), names)
    text = migration.text.rstrip()
    # On a line of its own: the file's last line may be a comment.
    yield text if text.endswith(";") else f"{text}\n;"
    yield entry
    if not migration.concurrent:
        yield sql.SQL("COMMIT")
