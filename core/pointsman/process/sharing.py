"""What an instance shares: between its workers by the exchange (`process.facts`), with other instances by the mirror.

The supervisor owns one. A topic is a row of `shelves`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pointsman.custom_router.breaker_facts import Fact
from pointsman.custom_router.pin_facts import PinFact
from pointsman.process.facts import Exchange, Shelf
from pointsman.process.pool import Worker, WorkerPool

__all__ = ["Sharing", "shelves"]

CATCH_UP = 1.0
"""Seconds between two looks for workers that read again."""


def shelves() -> dict[str, Shelf[Any]]:
    """Topic -> shelf; a worker's `Sources` have the same names."""
    return {
        "breakers": Shelf(Fact.from_wire),
        "affinity": Shelf(PinFact.from_wire, bound=50_000),
    }


class Sharing:
    """See the module.

    Args:
        workers: the worker slots.
    """

    def __init__(self, workers: Callable[[], Sequence[Worker]]) -> None:
        self.exchange = Exchange(shelves(), workers)

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
