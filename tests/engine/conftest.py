"""One engine on one database for the session, driven through prisma-client-py as LiteLLM does."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from prisma import Prisma

from engine.harness import EngineThread, Gate


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
