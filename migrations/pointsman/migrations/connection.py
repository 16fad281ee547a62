"""The connection that migrations run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import address, libpq_url, redact, schema_of, unreachable
from pointsman.errors import DatabaseError
from pointsman.migrations.direct import require_direct

__all__ = ["connect"]

CONNECT_SECONDS = 10
OLDEST_SERVER = 130_000


@contextmanager
def connect(database_url: str, *, direct: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """A connection in the URL's schema, without the role's time limits.

    Args:
        database_url: LiteLLM's.
        direct: in autocommit mode, and one session of the server, as whoever changes the schema needs. Otherwise one read-only
            transaction, which goes through any pooler.

    Raises:
        DatabaseError: E4504 malformed URL, E4500 unreachable or lost on the way, E4508 through a pooler that takes turns. The
            password is never shown.
    """
    try:
        connection = psycopg.connect(
            libpq_url(database_url),
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name="pointsman migrate",
            prepare_threshold=None,
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
            schema = sql.Identifier(schema_of(database_url))
            if not direct:
                with connection.transaction():
                    connection.execute("SET TRANSACTION READ ONLY")
                    connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(schema))
                    yield connection
                return
            require_direct(connection, database_url)
            connection.execute("SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0")
            # A migrator whose machine vanishes must not hold the lock for two hours.
            connection.execute("SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3")
            connection.execute("SET client_min_messages = warning")
            # Always, as Prisma does: a role's own default may look elsewhere first.
            connection.execute(sql.SQL("SET search_path TO {}").format(schema))
            yield connection
        except psycopg.OperationalError as error:
            if connection.closed or connection.broken:
                raise unreachable(database_url, error) from error
            raise
