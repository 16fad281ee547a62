"""Compare files with ledgers: what is applied, pending, failed, unknown or changed, and what is to be done about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from pointsman.errors import DatabaseError
from pointsman.migrations.baseline import has_litellm_tables
from pointsman.migrations.ledger import Ledger, OurLedger, PrismaLedger
from pointsman.migrations.sources import Migration

__all__ = ["MigrationStatus", "Plan", "SetStatus", "compare", "make_plan"]


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
    def pending(self) -> tuple[str, ...]:
        """Names left to apply, of both sets, in order."""
        return (*self.litellm.pending, *self.pointsman.pending)

    @property
    def current(self) -> bool:
        """Whether nothing is left to do, nothing is half done, and no released file of ours was edited.

        What a newer version applied is no hindrance: it leaves an older one at work. LiteLLM does edit released files (an
        `IF NOT EXISTS` more); Prisma takes no offence either.
        """
        return not (self.pending or self.litellm.failed or self.pointsman.changed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"current": self.current, "litellm": asdict(self.litellm), "pointsman": asdict(self.pointsman)}

    def __str__(self) -> str:
        lines = []
        for title, one in (("LiteLLM", self.litellm), ("Pointsman", self.pointsman)):
            lines.append(f"{title}: {len(one.applied)} applied, {len(one.pending)} pending, {len(one.failed)} failed")
            lines += [f"  pending  {name}" for name in one.pending]
            lines += [
                f"  failed   {name}: {' '.join(logs.split())[:200] or 'interrupted'}" for name, logs in one.failed.items()
            ]
            lines += [f"  unknown  {name} (of a newer version?)" for name in one.unknown]
            lines += [f"  changed  {name} (the file is not what was applied)" for name in one.changed]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `migrate` has to do.

    Attributes:
        litellm, pointsman: files to apply, in order.
        complete: LiteLLM's that only lack the note that they finished.
        already: how many are applied.
        adopt: LiteLLM's tables are there, its ledger is not.
    """

    litellm: list[Migration]
    pointsman: list[Migration]
    complete: list[str]
    already: int
    adopt: bool

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.litellm or self.pointsman or self.complete)


def compare(files: list[Migration], ledger: Ledger) -> SetStatus:
    """One set of files against its ledger."""
    names = {migration.name for migration in files}
    return SetStatus(
        applied=tuple(m.name for m in files if m.name in ledger.applied),
        pending=tuple(m.name for m in files if m.name not in ledger.applied),
        failed={name: logs for name, logs in ledger.failed.items() if name not in ledger.applied},
        # Our ledger also notes steps that are no files; their names have a colon.
        unknown=tuple(sorted(name for name in ledger.applied if name not in names and ":" not in name)),
        changed=tuple(m.name for m in files if ledger.applied.get(m.name, m.sha256) != m.sha256),
    )


def make_plan(
    connection: psycopg.Connection[Any],
    own: str,
    theirs: list[Migration],
    ours: list[Migration],
    progress: Callable[[str], None],
) -> Plan:
    """Read both ledgers and decide. `own` is the name of our schema.

    Raises:
        DatabaseError: E4501 when a migration is half done by another tool, or an applied one of ours was edited since.
    """
    prisma = PrismaLedger.read(connection)
    litellm, pointsman = compare(theirs, prisma), compare(ours, OurLedger(connection, own).read())
    by_name = {migration.name: migration for migration in theirs}
    complete = [name for name in litellm.failed if name in by_name and prisma.complete.get(name) == by_name[name].sha256]
    for name, logs in litellm.failed.items():
        if name not in complete:
            raise DatabaseError(
                f"another tool began LiteLLM's migration {name} and did not finish it"
                + (f": {' '.join(logs.split())[:500]}" if logs.strip() else ""),
                code="E4501",
                where="_prisma_migrations",
                mend=f"look whether its changes are in the schema; `prisma migrate resolve --applied {name}` (--rolled-back) "
                "notes it, or set finished_at (or rolled_back_at) in its row",
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
    return Plan(
        litellm=[m for m in theirs if m.name in pending],
        pointsman=[m for m in ours if m.name in set(pointsman.pending)],
        complete=complete,
        already=len(litellm.applied) + len(pointsman.applied),
        adopt=not prisma.exists and has_litellm_tables(connection),
    )
