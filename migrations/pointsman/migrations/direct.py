"""See that a connection is one session of the server, not a pooler's turn-taking.

A pooler in transaction mode gives each transaction whatever backend is free: an advisory lock stays behind on one, settings on
another, and the migrator would believe itself alone while it is not. Poolers do not say what they are, so it is tried out.
"""

from __future__ import annotations

import select
import time
import uuid
from typing import Any

import psycopg
from psycopg import pq

from pointsman.database_url import address, libpq_url
from pointsman.errors import DatabaseError

__all__ = ["require_direct", "takes_turns"]

_ROUNDS = 4
_SECONDS = 5.0
_NAME = "pointsman.session"


def require_direct(connection: psycopg.Connection[Any], database_url: str) -> None:
    """Refuse a connection through a pooler in transaction (or statement) mode; one in session mode is as good as direct.

    Raises:
        DatabaseError: E4508 naming DIRECT_URL.
    """
    if takes_turns(connection, database_url):
        raise DatabaseError(
            "the database is reached through a connection pooler in transaction mode, where no migration lock holds",
            code="E4508",
            where=address(database_url),
            mend="set DIRECT_URL to the database itself, past the pooler (or to a port of it in session mode); "
            "DATABASE_URL may stay as it is",
        )


def takes_turns(connection: psycopg.Connection[Any], database_url: str) -> bool:
    """Whether statements of one connection run in different sessions of the server. One round trip where nothing is in between.

    Args:
        connection: in autocommit mode, outside a transaction.
        database_url: the URL that it was made with, for a second connection.
    """
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    # The server tells its process id when a session starts; a pooler tells a number of its own.
    if row is not None and row[0] == connection.info.backend_pid:
        return False
    for _ in range(_ROUNDS):
        token = uuid.uuid4().hex
        first = connection.execute("SELECT pg_backend_pid(), set_config(%s, %s, false)", (_NAME, token)).fetchone()
        # A new client, while ours rests: one that takes turns gives it the backend that we have just left, settings and all.
        found, setting = _seen_by_another(database_url)
        if setting == token:
            return True
        # Twice: where two backends go round, every second statement is on the same one.
        for _ in range(2):
            if connection.execute("SELECT pg_backend_pid(), current_setting(%s, true)", (_NAME,)).fetchone() != first:
                return True
        if not found:
            return False
    return False


def _seen_by_another(database_url: str) -> tuple[bool, str | None]:
    """Whether a second connection gets a session (in session mode it may wait for ours), and our setting as it finds it."""
    try:
        with psycopg.connect(libpq_url(database_url), autocommit=True, connect_timeout=int(_SECONDS)) as other:
            other.pgconn.send_query(f"SELECT current_setting('{_NAME}', true)".encode())
            deadline = time.monotonic() + _SECONDS
            while other.pgconn.is_busy():
                ready, _, _ = select.select([other.pgconn.socket], [], [], max(0.0, deadline - time.monotonic()))
                if not ready:
                    other.pgconn.finish()
                    return False, None
                other.pgconn.consume_input()
            result = other.pgconn.get_result()
            if result is None or result.status != pq.ExecStatus.TUPLES_OK:
                return False, None
            value = result.get_value(0, 0)
            other.pgconn.finish()
            return True, value.decode() if value else None
    except psycopg.OperationalError:
        return False, None
