"""Facts of an instance and of the others, by a store that they share (Redis): they go out and come in, in the background.

Nothing waits for it. Order, repetition and loss of facts do no harm (`process.facts`): while the store is away the instance
goes on by what it knows, which `status` tells; when it is back everything is told again. What waits are keys, not facts: what
holds at the time of sending is sent, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pointsman.process.facts import CHUNK, Fact, chunks

__all__ = ["Board", "Mirror", "SharedStore", "Told"]

logger = logging.getLogger("pointsman.mirror")


@dataclass(frozen=True, slots=True)
class Told:
    """Facts of another instance, `age` seconds old."""

    topic: str
    facts: Sequence[Any]
    age: float


class SharedStore(Protocol):
    """Where instances leave facts for each other. All but `close` may raise what they like, and may be cancelled."""

    async def publish(self, topic: str, facts: Sequence[Fact]) -> None:
        """Leave them for the others."""

    async def collect(self) -> Sequence[Told]:
        """What others have left since the last call; at the first, what stands."""

    async def trim(self) -> None:
        """Drop what is old; now and then."""

    async def reset(self) -> None:
        """After an error; the next `collect` gives all that stands."""

    async def close(self) -> None:
        """Give back what it holds."""


class Board(Protocol):
    """What is mirrored; `process.facts.Exchange`."""

    @property
    def topics(self) -> tuple[str, ...]: ...
    def wire(self, topic: str, keys: Iterable[str]) -> list[dict[str, Any]]: ...
    def keys(self, topic: str) -> list[str]: ...
    def deliver(self, topic: object, facts: object, age: float) -> None: ...


class Mirror:
    """Keeps an instance and the store in step.

    Args:
        store: see there.
        board: see there.
        refresh: topic -> seconds after which all of it is told again, for who has joined.
        interval: seconds between two looks at the store.
        timeout: seconds that each call of the store may take.
        bound: keys of a topic that wait; of more the oldest go.
        clock: monotonic seconds.
    """

    PAUSE = 2.0
    """Seconds between two tries while the store is away."""

    def __init__(
        self,
        store: SharedStore,
        board: Board,
        *,
        refresh: Mapping[str, float] | None = None,
        interval: float = 0.3,
        timeout: float = 3.0,
        bound: int = 50_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._board, self._clock = store, board, clock
        self._waiting: dict[str, dict[str, None]] = {topic: {} for topic in board.topics}
        self._refresh = dict(refresh or {})
        self._refreshed = dict.fromkeys(self._refresh, clock())
        self._interval, self._timeout, self._bound = interval, timeout, bound
        self._wake = asyncio.Event()
        self._since: float | None = None
        self.dropped = 0
        """Keys that were lost over the bound."""
        self.failing: str | None = "not connected yet"
        """Why facts are not shared (class name of the last error), or None."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, topic: str, keys: Iterable[str]) -> None:
        """Tell of them at once. Never blocks."""
        waiting = self._waiting[topic]
        waiting.update(dict.fromkeys(keys))
        while len(waiting) > self._bound:
            del waiting[next(iter(waiting))]
            self.dropped += 1
        self._wake.set()

    async def round(self) -> bool:
        """Send what waits and take what came; gives back whether that went well. Raises nothing; what was not sent waits."""
        try:
            if self.failing is not None:
                await self._within(self._store.reset())
            for topic in self._waiting:
                await self._send(topic)
            for told in await self._within(self._store.collect()):
                self._board.deliver(told.topic, told.facts, told.age)
            if self.failing is None:
                await self._again()
        except Exception as error:  # noqa: BLE001 - whatever a store raises: the instance goes on by what it knows
            if self.failing is None or self._since is None:
                logger.warning("facts are not shared with other instances: %s", type(error).__name__)
                self._since = self._clock()
            self.failing = type(error).__name__
            return False
        if self.failing is not None:
            if self._since is not None:
                logger.info("facts are shared with other instances again")
            for topic in self._board.topics:  # the store may have lost all, and the others wait for it as well
                self.put(topic, self._board.keys(topic))
        self.failing = self._since = None
        return True

    async def run(self) -> None:
        """Rounds until cancelled; then the store is closed."""
        try:
            while True:
                self._wake.clear()
                pause = self._interval if await self.round() else self.PAUSE
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        if self.failing is not None:
                            await asyncio.sleep(pause)  # news does not make it come back
                        await self._wake.wait()
        finally:
            with contextlib.suppress(Exception):  # it may be gone; nothing can be done about it any more
                await self._within(self._store.close())

    def status(self) -> dict[str, Any]:
        """For operators."""
        return {
            "state": "shared" if self.failing is None else "local",
            "error": self.failing,
            "seconds": round(self._clock() - self._since, 1) if self._since is not None else None,
            "waiting": len(self),
            "dropped": self.dropped,
        }

    async def _send(self, topic: str) -> None:
        waiting = self._waiting[topic]
        for _ in range(-(-len(waiting) // CHUNK)):  # what is put meanwhile is the next round's
            keys = list(waiting)[:CHUNK]
            for facts in chunks(self._board.wire(topic, keys)):
                await self._within(self._store.publish(topic, facts))
            for key in keys:
                waiting.pop(key, None)

    async def _again(self) -> None:
        for topic, seconds in self._refresh.items():
            if self._clock() - self._refreshed[topic] >= seconds:
                self._refreshed[topic] = self._clock()
                self.put(topic, self._board.keys(topic))
                await self._within(self._store.trim())

    async def _within(self, call: Any) -> Any:
        async with asyncio.timeout(self._timeout):
            return await call
