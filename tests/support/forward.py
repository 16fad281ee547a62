"""A TCP door before a server: a fixed port that can be closed and opened, and moved to another server behind it.

`Balancer` is one before several servers, which get its connections in turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

__all__ = ["Balancer", "Door"]

T = TypeVar("T")


class Door:
    """Listens on a free port of 127.0.0.1 and passes bytes on to `target`. Shut, its port refuses connections.

    Shutting also breaks what is connected, as a server does that goes away.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="door", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.open()

    def open(self, target: int | None = None) -> None:
        """Accept connections, for another server if `target` says so."""
        self.target = target or self.target
        self._call(self._open())

    def shut(self) -> None:
        """Refuse connections and break those that are there."""
        self._call(self._shut())

    def close(self) -> None:
        """Shut it for good."""
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        try:
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        finally:
            self._writers -= {writer, there_writer}

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.target)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


class Balancer(Door):
    """Gives each connection to the next of its targets; one that refuses is passed over, as by a health check.

    `served` counts the connections of each target.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self._targets = list(targets)
        self.served = dict.fromkeys(targets, 0)
        super().__init__(targets[0])

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self._targets:
            target = self._targets.pop(0)
            self._targets.append(target)
            with contextlib.suppress(OSError):
                streams = await asyncio.open_connection("127.0.0.1", target)
                self.served[target] += 1
                return streams
        raise ConnectionRefusedError
