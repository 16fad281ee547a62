"""What an instance shares: between its workers by the exchange (`process.facts`), with other instances by the mirror.

The supervisor owns one. A topic is a row of `shelves`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pointsman.custom_router.breaker_facts import Fact
from pointsman.custom_router.pin_facts import contradicted, reader
from pointsman.process.facts import Exchange, Shelf
from pointsman.process.pool import Worker, WorkerPool
from pointsman.resilience_settings import StickySettings

__all__ = ["Sharing", "shelves"]

CATCH_UP = 1.0
"""Seconds between two looks for workers that read again."""


def shelves(sticky: StickySettings | None = None) -> dict[str, Shelf[Any]]:
    """Topic -> shelf; a worker's `Sources` have the same names. `sticky`: how long sessions last, and how many there are."""
    sticky = sticky or StickySettings()
    return {
        "breakers": Shelf(Fact.from_wire),
        "affinity": Shelf(reader(sticky.ttl), sticky.max_sessions, contradicted),
    }


class Sharing:
    """See the module.

    Args:
        workers: the worker slots.
        sticky: see `shelves`.
    """

    def __init__(self, workers: Callable[[], Sequence[Worker]], sticky: StickySettings | None = None) -> None:
        self.exchange = Exchange(shelves(sticky), workers)

    def attach(self, pool: WorkerPool) -> None:
        """Hear what the pool's workers tell, and tell those that join."""
        pool.on_facts, pool.on_join = self.exchange.heard, self.exchange.joined

    def status(self) -> dict[str, Any]:
        """For operators."""
        return self.exchange.status()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(CATCH_UP)
            self.exchange.catch_up()
