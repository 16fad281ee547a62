"""The seam between an instance and what several instances share (Redis): small facts go out and come in, in the background.

Nothing waits for it. Facts are such that their order, repetition and loss do no harm (pins of sessions: `custom_router.pins`):
while the store is away each instance goes on by what it knows, which `failing` tells. No store is implemented yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

__all__ = ["Fact", "Mirror", "SharedStore"]

logger = logging.getLogger("pointsman.mirror")

Fact: TypeAlias = Mapping[str, Any]
"""A JSON object."""


class SharedStore(Protocol):
    """Where instances leave facts for each other. Both methods may raise what they like, and may be cancelled."""

    async def publish(self, facts: Sequence[Fact]) -> None:
        """Leave them for the others."""

    async def collect(self) -> Sequence[Fact]:
        """What others have left since the last call; that one's own are among it does no harm."""


class Mirror:
    """Keeps an instance and the store in step.

    Args:
        store: see there.
        deliver: is given what others left; must not block.
        bound: facts that wait; the oldest make room for more, and are counted.
        interval: seconds between two rounds.
        timeout: seconds that each call of the store may take.
    """

    BATCH = 512

    def __init__(
        self,
        store: SharedStore,
        deliver: Callable[[Sequence[Fact]], object],
        *,
        bound: int = 4096,
        interval: float = 0.5,
        timeout: float = 2.0,
    ) -> None:
        self._store, self._deliver = store, deliver
        self._waiting: deque[Fact] = deque(maxlen=bound)
        self._interval, self._timeout = interval, timeout
        self.dropped = 0
        """Facts that were lost over the bound."""
        self.failing: str | None = None
        """Class name of the last round's error, or None."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, facts: Iterable[Fact]) -> None:
        """Send them with the next round. Never blocks."""
        for fact in facts:
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(fact)

    async def round(self) -> None:
        """Send what waits and take what came. Raises nothing; what could not be sent waits for the next round."""
        try:
            for _ in range(-(-len(self._waiting) // self.BATCH)):  # what is put meanwhile is the next round's
                await self._send([self._waiting.popleft() for _ in range(min(self.BATCH, len(self._waiting)))])
            async with asyncio.timeout(self._timeout):
                found = await self._store.collect()
            self._deliver(found)
        except Exception as error:  # noqa: BLE001 - whatever a store raises: the instance goes on by what it knows
            if self.failing is None:
                logger.warning("facts are not shared with other instances: %s", error)
            self.failing = type(error).__name__
            return
        if self.failing is not None:
            logger.info("facts are shared with other instances again")
        self.failing = None

    async def run(self) -> None:
        """Rounds until cancelled."""
        while True:
            await self.round()
            await asyncio.sleep(self._interval)

    async def _send(self, batch: list[Fact]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._store.publish(batch)
        except BaseException:  # cancelled as well: sent twice does no harm, not at all might
            room = (self._waiting.maxlen or 0) - len(self._waiting)
            self.dropped += max(0, len(batch) - room)
            self._waiting.extendleft(reversed(batch[-room:] if room > 0 else []))
            raise
