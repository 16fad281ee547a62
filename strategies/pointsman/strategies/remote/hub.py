"""The Unix socket between the owners, in the supervisor, and the gateway's workers.

A socket of its own and not the supervisor's control line: a prompt may be a hundred times as long as a control message, a line
that carried both would hold up snapshots and the drain, and a message too long for it would end the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pointsman.errors import ProcessError
from pointsman.strategies.base import UnavailableError
from pointsman.strategies.remote.child import FrameError, read_message
from pointsman.strategies.remote.owner import Owner
from pointsman.strategies.remote.serve import pack

__all__ = ["Hub"]

logger = logging.getLogger("pointsman.remote")


class Hub:
    """Serves the workers of an instance.

    Args:
        owners: strategy -> its owner.
        path: of the socket, in a directory that is nobody else's (0700).
    """

    def __init__(self, owners: Mapping[str, Owner], path: Path) -> None:
        self.path = path
        self._owners = owners
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        for owner in owners.values():
            owner.on_ready = self._tell

    async def start(self) -> None:
        """Listen, and let the owners begin.

        Raises:
            ProcessError: the socket cannot be made.
        """
        try:
            self._server = await asyncio.start_unix_server(self._accept, path=str(self.path))
        except OSError as error:
            raise ProcessError(
                f"cannot make a socket: {error}", where=str(self.path), mend="set TMPDIR to a short path"
            ) from error
        for owner in self._owners.values():
            owner.start()

    async def stop(self) -> None:
        """End every process."""
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*(owner.stop() for owner in self._owners.values()))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for line in self._lines:
            line.close()

    def _tell(self, owner: Owner) -> None:
        for line in self._lines:
            line.write(_about(owner))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines.add(writer)
        asked: dict[int, asyncio.Task[None]] = {}
        try:
            for owner in self._owners.values():
                if owner.ready:
                    writer.write(_about(owner))
            while True:
                message = await read_message(reader)
                if "cancel" in message:
                    if (task := asked.get(message["cancel"])) is not None:
                        task.cancel()
                    continue
                number = message["id"]
                task = asyncio.create_task(self._answer(writer, message))
                asked[number] = task
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(lambda _, number=number: asked.pop(number, None))  # type: ignore[misc]
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (FrameError, KeyError) as error:
            logger.error("a worker of the gateway said something that is no message: %s", error)
        finally:
            self._lines.discard(writer)
            for task in list(asked.values()):
                task.cancel()
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
        reply: dict[str, Any] = {"id": message["id"]}
        try:
            owner = self._owners[message["strategy"]]
            reply["scores"] = dict(await owner.ask(message["text"], message["user"]))
        except UnavailableError as error:
            reply |= {"reason": error.reason, "message": error.message}
        except Exception:  # the asker gets an answer whatever goes wrong; the log has the trace
            logger.exception("asking %r failed", message.get("strategy"))
            reply |= {"reason": "error", "message": "the owner failed"}
        try:
            frame = pack(reply)
        except ValueError:  # scores with names so long that they fit into no message
            frame = pack({"id": message["id"], "reason": "worker_nonsense", "message": "its answer is too long"})
        writer.write(frame)


def _about(owner: Owner) -> bytes:
    return pack({"strategy": owner.name, **asdict(owner.about)})
