"""One engine on one database for the session, driven through prisma-client-py as LiteLLM does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prisma import Prisma

from engine.harness import EngineThread, Gate, Side
from support.native import RecordingClient, compare, neutral_id


@pytest.fixture(scope="session")
def database(new_database: Callable[[], str]) -> str:
    """A migrated database that the tests of this directory share; they use keys of their own."""
    return new_database() + "?connection_limit=8"


@pytest.fixture(scope="session")
def engine(database: str) -> Iterator[EngineThread]:
    """The shared engine."""
    with tempfile.TemporaryDirectory(prefix="engine-") as run_dir:
        thread = EngineThread(database, Path(run_dir))
        try:
            yield thread.start()
        finally:
            thread.close()


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[Callable[..., EngineThread]]:
    """Factory of engines for one test: `own_engine(url)`."""
    made: list[EngineThread] = []

    def make(url: str, env: dict[str, str] | None = None) -> EngineThread:
        thread = EngineThread(url, tmp_path / f"run-{len(made)}", env)
        made.append(thread)
        return thread.start()

    yield make
    for thread in made:
        thread.close()


@pytest.fixture
async def db(engine: EngineThread) -> AsyncIterator[Prisma]:
    """A connected client of the shared engine."""
    client = engine.client()
    await client.connect()
    yield client
    await client.disconnect()


@pytest.fixture
async def gate(database: str) -> AsyncIterator[Gate]:
    """An open gate before the shared database."""
    opened = Gate(int(database.partition("@")[2].partition(":")[2].partition("/")[0]))
    await opened.open()
    yield opened
    await opened.shut()


@pytest.fixture(scope="session")
def side(request: pytest.FixtureRequest, new_database: Callable[[], str]) -> Iterator[Side]:
    """The engine that conformance is tested on: ours, and with `--native-engine` Prisma's as well (support/native.py)."""
    if request.param == "ours":
        engine: EngineThread = request.getfixturevalue("engine")
        binary, url = engine.engine.environment["PRISMA_QUERY_ENGINE_BINARY"], engine.url
    else:
        binary, url = str(Path(request.config.getoption("--native-engine")).resolve()), new_database() + "?connection_limit=8"
    with psycopg.connect(url.partition("?")[0], autocommit=True) as sql:
        yield Side(request.param, binary, url, sql)


@pytest.fixture
async def client(request: pytest.FixtureRequest, side: Side) -> AsyncIterator[Any]:
    """A client of that engine. On the second engine the answers that it got must be those of the first."""
    os.environ["PRISMA_QUERY_ENGINE_BINARY"] = side.binary
    connected = RecordingClient(side.url)
    await connected.connect()
    yield connected
    await connected.disconnect()
    compare(request.config, side.name, request.node.nodeid, connected.answers)


@pytest.fixture
def sql(side: Side) -> Any:
    """psycopg's connection to that engine's database: the second opinion on what a table holds."""
    return side.sql


@pytest.fixture
def tag(request: pytest.FixtureRequest, side: Side) -> str:
    """Prefix of this test's keys, the same on both engines: the database is shared."""
    return sha256(neutral_id(side.name, request.node.nodeid).encode()).hexdigest()[:12]
