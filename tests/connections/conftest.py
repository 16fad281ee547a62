"""Servers that a test shapes itself, and engines on them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.harness import EngineThread
from support.pg_cluster import pg_cluster

__all__ = ["Engine", "engines", "pg_cluster"]


class Engine(EngineThread):
    """An engine that a test asks in its own words: raw SQL, answers or Prisma's errors."""

    async def ask(self, sql: str, *values: object) -> Any:
        """Rows of a query; raises what prisma-client-py makes of a failure."""
        return await self.db.query_raw(sql, *values)

    async def connect(self) -> None:
        self.db = self.client()
        await self.db.connect()

    async def execute(self, sql: str, *values: object) -> int:
        """Run a statement; returns the number of rows."""
        return int(await self.db.execute_raw(sql, *values))

    async def metrics(self) -> dict[str, float]:
        """The pool's gauges."""
        found = await self.db.get_metrics(format="json")
        return {gauge.key: gauge.value for gauge in found.gauges}


@pytest.fixture
async def engines(tmp_path: Path) -> Any:
    """Factory of engines with a connected client: `engine = await engines(url)`."""
    made: list[Engine] = []

    async def make(url: str) -> Engine:
        engine = Engine(url, tmp_path / f"engine{len(made)}")
        made.append(engine)
        engine.start()
        await engine.connect()
        return engine

    yield make
    for engine in made:
        with contextlib.suppress(httpx.TransportError):
            await engine.db.disconnect()
        engine.close()
