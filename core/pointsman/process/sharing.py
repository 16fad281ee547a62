"""What an instance shares: between its workers by the exchange (`process.facts`), with other instances by the mirror.

The supervisor owns one. A topic is a row of `shelves`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pointsman.custom_router.breaker_facts import Fact
from pointsman.custom_router.pin_facts import contradicted, reader
from pointsman.custom_router.score_facts import ScoreFact
from pointsman.process.facts import Exchange, Shelf
from pointsman.process.mirror import Mirror
from pointsman.process.pool import Worker, WorkerPool
from pointsman.process.redis_store import RedisStore
from pointsman.process.redis_target import RedisTarget, find
from pointsman.resilience_settings import ResilienceSettings, StickySettings

__all__ = ["Sharing", "shelves"]

logger = logging.getLogger("pointsman.sharing")

REFRESH = {"breakers": 60.0}
"""Topic -> seconds after which all of it is told to the other instances again. Sessions and scores are told while they live."""
RETENTION = {"breakers": 180.0, "scores": 600.0}
"""Topic -> seconds that Redis keeps what was told."""
CATCH_UP = 1.0
"""Seconds between two looks for workers that read again."""


def shelves(sticky: StickySettings | None = None) -> dict[str, Shelf[Any]]:
    """Topic -> shelf; a worker's `Sources` have the same names. `sticky`: how long sessions last, and how many there are."""
    sticky = sticky or StickySettings()
    return {
        "breakers": Shelf(Fact.from_wire),
        "affinity": Shelf(reader(sticky.ttl), sticky.max_sessions, contradicted),
        "scores": Shelf(ScoreFact.from_wire),
    }


class Sharing:
    """See the module.

    Args:
        workers: the worker slots.
        settings: of resilience.
        target: the Redis that instances share; None: there is none.
    """

    def __init__(
        self,
        workers: Callable[[], Sequence[Worker]],
        settings: ResilienceSettings | None = None,
        target: RedisTarget | None = None,
    ) -> None:
        settings = settings or ResilienceSettings()
        self.exchange = Exchange(shelves(settings.sticky), workers)
        self._where = target.where if target is not None else None
        self._store: RedisStore | None = None
        self._mirror: Mirror | None = None
        if target is not None and settings.sharing.enabled:
            kept = {topic: RETENTION.get(topic, settings.sticky.ttl) for topic in self.exchange.topics}
            self._store = RedisStore(target, kept, settings.sharing.prefix)
            self._mirror = Mirror(self._store, self.exchange, refresh=REFRESH)
            self.exchange.outside = self._mirror

    @classmethod
    def of(
        cls,
        workers: Callable[[], Sequence[Worker]],
        settings: ResilienceSettings,
        effective: Mapping[str, Any],
        env: Mapping[str, str],
    ) -> Sharing:
        """With the Redis of an effective configuration; one that is told in a way not known here is passed over, and said."""
        try:
            target = find(effective, env)
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("the settings of Redis cannot be read, so facts are not shared with other instances: %s", error)
            target = None
        return cls(workers, settings, target)

    def attach(self, pool: WorkerPool) -> None:
        """Hear what the pool's workers tell, and tell those that join."""
        pool.on_facts, pool.on_join = self.exchange.heard, self.exchange.joined

    def status(self) -> dict[str, Any]:
        """For operators."""
        if self._mirror is None or self._store is None:
            told: dict[str, Any] = {"state": "off", "redis": self._where}
        else:
            told = {**self._mirror.status(), "redis": self._where, "refused": self._store.refused}
        return {"instances": told, **self.exchange.status()}

    def failing(self) -> int | None:
        """Whether other instances cannot be told (1) or can (0); None: there is no store."""
        return None if self._mirror is None else int(self._mirror.failing is not None)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._mirror is not None:
                tasks.create_task(self._mirror.run(), name="pointsman-mirror")
            while True:
                await asyncio.sleep(CATCH_UP)
                self.exchange.catch_up()
