"""One migrator at a time, across instances.

`pg_advisory_lock` would wait inside a statement, and a waiting statement holds a snapshot that CREATE INDEX CONCURRENTLY waits
for: with several instances that is a deadlock. So the lock is polled, each try a statement of its own. The keys are Prisma's
(its `migrate deploy` is kept out as well) and the one of LiteLLM's newer resolver and index builder.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pointsman.errors import DatabaseError

__all__ = ["KEYS", "migration_lock"]

PRISMA_KEY = 72707369
LITELLM_KEY = int.from_bytes(b"llm_mig2", "big")
KEYS = (PRISMA_KEY, LITELLM_KEY)
_POLL = 0.2


def _try(connection: psycopg.Connection[Any]) -> int | None:
    """Take both keys or neither; the key that somebody else holds, or None when both are ours."""
    taken: list[int] = []
    for key in KEYS:
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
        if row is None or not row[0]:
            for mine in taken:
                connection.execute("SELECT pg_advisory_unlock(%s)", (mine,))
            return key
        taken.append(key)
    return None


def _holder(connection: psycopg.Connection[Any], key: int) -> str:
    row = connection.execute(
        "SELECT a.pid, coalesce(nullif(a.application_name, ''), '?'), coalesce(a.client_addr::text, 'local'), a.backend_start "
        "FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32 | l.objid::bigint) = %s",
        (key,),
    ).fetchone()
    return (
        "somebody who has just left"
        if row is None
        else f"backend {row[0]} ({row[1]} from {row[2]}, connected {row[3]:%F %T %Z})"
    )


@contextmanager
def migration_lock(connection: psycopg.Connection[Any], *, patience: float, progress: Callable[[str], None]) -> Iterator[float]:
    """Hold the lock for the duration of the block.

    Args:
        connection: in autocommit mode, on one server session (no transaction pooler).
        patience: seconds to wait at most.
        progress: told once that there is a wait, and for whom.

    Yields:
        Seconds waited.

    Raises:
        DatabaseError: E4502 naming the holder when `patience` is over.
    """
    started = time.monotonic()
    told = False
    while (key := _try(connection)) is not None:
        waited = time.monotonic() - started
        if waited > patience:
            raise DatabaseError(
                f"another instance has held the migration lock for {waited:.0f} s: {_holder(connection, key)}",
                code="E4502",
                mend="wait for it, or end it with SELECT pg_terminate_backend(<its number>) if its process is gone",
            )
        if not told:
            progress(f"migrations: waiting for {_holder(connection, key)}")
            told = True
        time.sleep(_POLL * random.uniform(0.5, 1.5))  # noqa: S311 - spreads the waiters, no secret
    try:
        yield time.monotonic() - started
    finally:
        if not connection.closed:
            for mine in KEYS:
                connection.execute("SELECT pg_advisory_unlock(%s)", (mine,))
