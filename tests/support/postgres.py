"""A real Postgres for the session, and as many databases on it as a test wants.

- `postgres_server`: the embedded Postgres in a temporary directory, usable from sync and async tests.
- `new_database`: factory of fresh, migrated databases (cloned from a template, some 50 ms each).
- `database_url`: one of them.
- `fresh_database`: factory of empty databases.

`pytest --postgres BINDIR` makes every such server of other binaries, another version for instance.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import psycopg
import pytest
from psycopg import sql

from pointsman.embedded_postgres import EmbeddedPostgres
from support.pg_versions import ForeignPostgres

T = TypeVar("T")
OWN_FIRST = "-c search_path=public_pointsman,public"
"""`psycopg.connect(url, options=OWN_FIRST)`: by their plain names our tables, not the views in LiteLLM's schema."""
TEMPLATE = "template_migrated"
# Nothing here must survive a power cut. (What is committed survives kill -9 all the same: the kernel has it.)
UNSAFE_AND_FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}


class PostgresServer:
    """`EmbeddedPostgres` for sync callers: its event loop lives in a thread of its own, for as long as the server."""

    default_binaries: ClassVar[Path | None] = None
    """Those of `--postgres`; None: the embedded ones."""

    def __init__(self, data_dir: Path, options: dict[str, str] | None = None, binaries: Path | None = None) -> None:
        binaries = binaries or self.default_binaries
        self.embedded: EmbeddedPostgres | ForeignPostgres
        if binaries is None:
            self.embedded = EmbeddedPostgres(data_dir, options=options)
        else:
            self.embedded = ForeignPostgres(binaries, data_dir, options)
        self.data_dir = data_dir
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgres-server", daemon=True)
        self._thread.start()
        self._numbers = itertools.count(1)
        self._template_lock = threading.Lock()
        self._template_ready = False

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 120.0) -> T:
        """Run a coroutine on the server's loop and wait for it, at most `timeout` seconds."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def start(self) -> str:
        return self.call(self.embedded.start())

    def watch(self) -> None:
        """Have it started again whenever it dies."""
        asyncio.run_coroutine_threadsafe(self.embedded.run(), self._loop)

    def stop(self) -> None:
        self.call(self.embedded.stop())

    def close(self) -> None:
        """Stop the server and its loop."""
        try:
            self.stop()
            self.call(self._cancel_others())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)

    async def _cancel_others(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def url(self, database: str = "litellm") -> str:
        return self.embedded.url(database)

    @property
    def port(self) -> int:
        return int(self.embedded.status()["port"])

    def fresh_database(self, name: str | None = None, template: str = "template0") -> str:
        """Make a database; returns its URL."""
        name = name or f"test_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            # FILE_COPY copies files, which is all that versions before 15 can; the default writes each page through the log.
            strategy = sql.SQL("STRATEGY FILE_COPY" if connection.info.server_version >= 150_000 else "")
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} {}").format(sql.Identifier(name), sql.Identifier(template), strategy)
            )
        return self.url(name)

    def new_database(self) -> str:
        """Make a database with LiteLLM's and our schema; returns its URL."""
        with self._template_lock:
            if not self._template_ready:
                from pointsman.migrations.runner import migrate

                migrate(self.fresh_database(TEMPLATE), lambda _: None)
                self._template_ready = True
            return self.fresh_database(template=TEMPLATE)

    def drop_database(self, url: str) -> None:
        """Remove a database and throw out whoever is connected."""
        name = url.rpartition("/")[2].partition("?")[0]
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", type=Path, default=None, help="directory of the PostgreSQL binaries to test with")


def pytest_configure(config: pytest.Config) -> None:
    PostgresServer.default_binaries = config.getoption("--postgres")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The session's server."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres") / "data", UNSAFE_AND_FAST)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def new_database(postgres_server: PostgresServer) -> Callable[[], str]:
    """Factory of migrated databases: `url = new_database()`."""
    return postgres_server.new_database


@pytest.fixture(scope="session")
def fresh_database(postgres_server: PostgresServer) -> Callable[[], str]:
    """Factory of empty databases: `url = fresh_database()`."""
    return postgres_server.fresh_database


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """One migrated database for one test."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)
