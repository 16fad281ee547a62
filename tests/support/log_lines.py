"""The log lines of a process, told by a real `Logs` that writes into a pipe."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

from pointsman.callbacks.logs import Logs
from pointsman.settings import PointsmanSettings

__all__ = ["Told", "telling"]


class Told:
    """What was told so far.

    Attributes:
        logs: who tells it.
    """

    def __init__(self, logs: Logs, read: int) -> None:
        self.logs = logs
        self._raw: list[bytes] = []
        self.reader = threading.Thread(target=self._read, args=(read,))
        self.reader.start()

    def _read(self, read: int) -> None:
        with os.fdopen(read, "rb") as stream:
            self._raw.extend(stream)

    def raw(self) -> list[bytes]:
        """All lines as they were written."""
        return list(self._raw)

    def lines(self) -> list[dict[str, Any]]:
        """All lines."""
        return [json.loads(line) for line in self.raw()]


@contextlib.contextmanager
def telling(*loggers: str, text: bool = False, **section: Any) -> Iterator[Told]:
    """Records of these loggers at every level are told as a worker's; when the block has ended, all were written."""
    read, write = os.pipe()
    told = Told(Logs(PointsmanSettings.load(section), "worker-0", descriptor=write, text=text), read)
    found = [logging.getLogger(name) for name in loggers]
    before = [(logger, logger.level, logger.propagate) for logger in found]
    for logger in found:
        logger.addHandler(told.logs.handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    try:
        yield told
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(told.logs.handler)
            logger.setLevel(level)
            logger.propagate = propagate
        told.logs.close()
        os.close(write)
        told.reader.join(10)
