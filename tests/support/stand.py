"""One reloader on a test stand: a store to publish to, a cache directory, and the list of what was published to workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from pointsman.mlops.keys import SigningKey
from pointsman.settings import StrategySettings
from pointsman.strategies.pointer import Pointer
from pointsman.strategies.reloader import Reloader, Snapshot
from pointsman.strategies.rollout import FileRollout, Rollout
from support.bundles import make_bundle, publish, publish_raw

NAME = "knn"


class Stand:
    """See the module. `version(n)` makes a bundle, `put` publishes it, `bad` publishes bytes past the publisher's checks."""

    def __init__(self, directory: Path, key: SigningKey, settings: StrategySettings, rollout: Rollout | None = None) -> None:
        self.directory, self.key, self.settings = directory, key, settings
        self.cache = directory / "cache" / NAME
        self.rollout = rollout or FileRollout(directory / "cache" / "rollout.json")
        self.snapshots: list[Snapshot] = []
        self.reloader = Reloader(NAME, settings, self.cache, self.rollout, self._publish)

    async def _publish(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    @property
    def serving(self) -> str | None:
        """Version in service."""
        return self.reloader.status().version

    @property
    def error(self) -> str | None:
        """Code of what is wrong."""
        return self.reloader.status().last_error_code

    def counter(self, name: str) -> int:
        return self.reloader.status().counters[name]

    def version(self, number: int | str, **kwargs: Any) -> Path:
        """The bundle of that version, made once."""
        path = self.directory / f"{NAME}-{number}.zip"
        return path if path.exists() else make_bundle(self.directory, str(number), name=NAME, **kwargs)

    def put(self, number: int | str, **kwargs: Any) -> Pointer:
        """Publish a good bundle."""
        return publish(self.version(number), self.settings.source or "", key=self.key, **kwargs)

    def bad(self, data: bytes, **kwargs: Any) -> Pointer:
        """Publish anything."""
        return publish_raw(data, self.settings.source or "", **{"strategy": NAME, "key": self.key, **kwargs})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Stand]:
        """Start it and poll for as long as the block lasts."""
        await self.reloader.start()
        task = asyncio.create_task(self.reloader.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[], object], timeout: float = 10.0) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"did not happen within {timeout} s; {self.reloader.status()}")
            await asyncio.sleep(0.01)
