"""What the engine's tests share besides fixtures: an engine on a loop of its own, a gate before Postgres, polling."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from prisma import Prisma

from pointsman.migrations.engine import QueryEngine

__all__ = ["EngineThread", "Gate", "Side", "eventually", "is_alive", "through"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Side:
    """An engine that conformance is tested on: its name, executable and database, and psycopg's connection to that."""

    name: str
    binary: str
    url: str
    sql: psycopg.Connection[Any]


def eventually(condition: Callable[[], Any], *, within: float = 15.0, what: str = "the condition") -> Any:
    """Poll until `condition` is true; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {within} s")


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class EngineThread:
    """A supervised `QueryEngine` whose event loop lives in a thread of its own, as the supervisor's does in its process."""

    def __init__(self, url: str, run_dir: Path, env: dict[str, str] | None = None) -> None:
        self.url = url
        self.engine = QueryEngine(url, run_dir, env)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def start(self) -> EngineThread:
        self.call(self.engine.start())
        self._running = asyncio.run_coroutine_threadsafe(self.engine.run(), self._loop)
        return self

    @property
    def pid(self) -> int:
        return int(self.engine.status()["pid"])

    def client(self) -> Prisma:
        """A client that starts its own joiner when it connects."""
        os.environ.update(self.engine.environment)
        return Prisma(datasource={"url": self.url})

    def close(self) -> None:
        try:
            self.call(self.engine.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()


class Gate:
    """A TCP proxy before Postgres that can be shut, as when the database is down, and opened again on the same port."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(upstream)
            await asyncio.gather(self._pump(reader, upstream), self._pump(upstream_reader, writer))
        except OSError:
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass  # shut, or one side went
        finally:
            writer.close()
            self._writers.discard(writer)


def through(gate: Gate, url: str) -> str:
    """The same database, through the gate."""
    return url.replace(f":{gate.target_port}/", f":{gate.port}/")
