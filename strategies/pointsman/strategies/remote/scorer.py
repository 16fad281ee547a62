"""The gateway worker's end: a strategy that asks the owner, and the one line that all such strategies of a worker share."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointsman.strategies.base import Query, Scale, UnavailableError
from pointsman.strategies.remote.child import FrameError, read_message
from pointsman.strategies.remote.owner import MAX_TEXT, MAX_USER, About
from pointsman.strategies.remote.serve import pack

__all__ = ["Line", "RemoteScorer"]

logger = logging.getLogger("pointsman.remote")

MAX_PENDING = 20_000
"""Questions without an answer; the owner refuses long before."""


class Line:
    """One connection to the hub, made at the first question and again when it is lost. Belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._scorers: dict[str, RemoteScorer] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    def scorer(self, name: str, kind: str) -> RemoteScorer:
        """The strategy of that name, asked over this line."""
        self._scorers[name] = RemoteScorer(self, name, kind)
        return self._scorers[name]

    async def connect(self) -> None:
        """Connect, unless it is connected.

        Raises:
            OSError: nobody listens.
        """
        async with self._connecting:
            if self._reading is not None and not self._reading.done():
                return
            reader, self._writer = await asyncio.open_unix_connection(str(self._path))
            self._reading = asyncio.create_task(self._read(reader), name="pointsman-remote")

    async def ask(self, strategy: str, query: Query) -> Mapping[str, float]:
        """Scores, or UnavailableError."""
        try:
            if self._reading is None or self._reading.done():
                await self.connect()
        except OSError as error:
            raise UnavailableError("worker_died", f"{strategy}: its owner cannot be reached: {error}") from error
        if len(self._asked) >= MAX_PENDING:
            raise UnavailableError("worker_busy", f"{strategy}: too many questions wait")
        number, future = next(self._ids), asyncio.get_running_loop().create_future()
        user = query.user[:MAX_USER] if query.user is not None else None
        self._asked[number] = future
        try:
            self._send({"id": number, "strategy": strategy, "text": query.text[:MAX_TEXT], "user": user})
            answer = await future
        except asyncio.CancelledError:
            self._send({"cancel": number})
            raise
        finally:
            self._asked.pop(number, None)
        if "reason" in answer:
            raise UnavailableError(answer["reason"], answer["message"])
        scores: dict[str, float] = answer["scores"]
        return scores

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                message = await read_message(reader)
                if "id" in message:
                    future = self._asked.get(message["id"])
                    if future is not None and not future.done():
                        future.set_result(message)
                elif (scorer := self._scorers.get(message["strategy"])) is not None:
                    scorer.take(About(message["version"], tuple(message["models"]), message["scale"]))
        except (asyncio.IncompleteReadError, ConnectionError, FrameError) as error:
            logger.warning("the owner of the processes is gone: %s", error)
        finally:
            if self._writer is not None:
                self._writer.close()
            for future in self._asked.values():
                if not future.done():
                    future.set_result({"reason": "worker_died", "message": "the owner of the processes is gone"})

    async def close(self) -> None:
        """Hang up."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


class RemoteScorer:
    """An `AsyncScorer`: the strategy as the owner's process has it.

    `models` is empty until a process has told its own; then what it names is matched with the candidates.
    """

    def __init__(self, line: Line, name: str, kind: str) -> None:
        self._line, self._name = line, name
        self.kind, self.version = kind, ""
        self.models: tuple[str, ...] = ()
        self._scale: Scale = "rank"

    @property
    def scale(self) -> Scale:
        """See `pointsman.strategies.base.Scale`."""
        return self._scale

    def take(self, about: About) -> None:
        """A process is ready, and this is what it is."""
        self.version, self.models, self._scale = about.version, about.models, about.scale

    async def score_async(self, query: Query) -> Mapping[str, float]:
        """Ask the process; see `pointsman.strategies.remote.owner` for the reasons."""
        return await self._line.ask(self._name, query)
