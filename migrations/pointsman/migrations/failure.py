"""Say which statement of a migration failed, why, and what to do."""

from __future__ import annotations

from typing import Any

import psycopg

from pointsman.errors import DatabaseError
from pointsman.migrations.sources import Migration
from pointsman.migrations.statements import split, without_comments

__all__ = ["failure", "mend"]


def failure(connection: psycopg.Connection[Any], migration: Migration, error: psycopg.Error) -> DatabaseError:
    """E4501 that names file, line, statement and reason.

    Args:
        connection: still usable and outside a transaction; the file may be rehearsed on it, and is rolled back.
        migration: what failed.
        error: what the server said.
    """
    line, text = _culprit(connection, migration, error)
    excerpt = " ".join(without_comments(text).split())
    excerpt = excerpt if len(excerpt) <= 300 else excerpt[:300] + " ..."
    reason = error.diag.message_primary or str(error)
    detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
    return DatabaseError(
        f"the migration {migration.name} failed at `{excerpt}`: {reason}{detail}",
        code="E4501",
        where=f"{migration.path}, line {line}",
        mend=mend(error),
    )


def _culprit(connection: psycopg.Connection[Any], migration: Migration, error: psycopg.Error) -> tuple[int, str]:
    """Line and text of the failing statement: by the position that the server told, or by a rehearsal."""
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


def mend(error: psycopg.Error) -> str:
    """What to do about an error of the server."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "make the user of DATABASE_URL owner of the schema's tables, or run `pointsman db migrate` as their owner"
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return "point DATABASE_URL at the primary, not at a read replica"
    if isinstance(error, psycopg.errors.DiskFull):
        return "free some space on the database server's disk and start again"
    return "the schema is as before this file; mend the cause and start again (`pointsman db status` lists what is applied)"
