"""Facts of several instances through a store that they share: in the background, bounded, and nothing stops without it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from pointsman.custom_router.affinity import Affinity
from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.request import Session
from pointsman.process.facts import Exchange, Fact
from pointsman.process.mirror import Mirror, Told
from pointsman.process.pool import Worker
from pointsman.process.sharing import shelves
from pointsman.resilience_settings import BreakerSettings, StickySettings


class Shared:
    """What all instances share, in memory; may be away, hang, or lose everything."""

    def __init__(self) -> None:
        self.entries: list[tuple[object, str, list[Fact]]] = []
        self.error: Exception | None = None
        self.hangs = False
        self.reached = asyncio.Event()
        self.told = asyncio.Event()


class View:
    """One instance's connection."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self._read, self.trimmed, self.closed = shared, 0, 0, False

    async def _reach(self) -> None:
        self.shared.reached.set()
        if self.shared.hangs:
            await asyncio.Event().wait()
        if self.shared.error is not None:
            raise self.shared.error

    async def publish(self, topic: str, facts: Sequence[Fact]) -> None:
        await self._reach()
        self.shared.entries.append((self, topic, list(facts)))
        self.shared.told.set()

    async def collect(self) -> Sequence[Told]:
        await self._reach()
        found, self._read = self.shared.entries[self._read :], len(self.shared.entries)
        return [Told(topic, facts, 0.0) for by, topic, facts in found if by is not self]

    async def trim(self) -> None:
        self.trimmed += 1

    async def reset(self) -> None:
        self._read = 0

    async def close(self) -> None:
        self.closed = True


class Board:
    """Keys that are their own facts."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.known: list[str] = []

    @property
    def topics(self) -> tuple[str, ...]:
        return ("t",)

    def wire(self, topic: str, keys: Iterable[str]) -> list[dict[str, Any]]:
        return [{"key": key} for key in keys if key != "gone"]

    def keys(self, topic: str) -> list[str]:
        return self.known

    def deliver(self, topic: object, facts: Any, age: float) -> None:
        self.heard.extend(fact["key"] for fact in facts)


async def test_what_one_puts_the_other_gets_once_and_in_order() -> None:
    shared, board = Shared(), Board()
    one, two = Mirror(View(shared), Board()), Mirror(View(shared), board)
    assert await one.round()
    assert await two.round()
    names = [f"k{number}" for number in range(1_500)]
    one.put("t", names)
    one.put("t", ["gone", *names])  # what holds when it is sent is sent
    await one.round()
    await two.round()
    assert board.heard == names
    assert (len(one), one.dropped, one.failing) == (0, 0, None)


async def test_while_the_store_is_away_the_newest_wait_and_once_it_is_back_all_is_told() -> None:
    shared, own = Shared(), Board()
    mirror = Mirror(View(shared), own, bound=10, timeout=0.02)
    await mirror.round()
    shared.error = ConnectionError("away")
    mirror.put("t", [f"k{number}" for number in range(4)])
    assert not await mirror.round()
    assert (len(mirror), mirror.dropped, mirror.status()["error"]) == (4, 0, "ConnectionError")
    shared.error, shared.hangs = None, True
    mirror.put("t", [f"k{number}" for number in range(12)])
    assert not await mirror.round()
    assert (len(mirror), mirror.dropped, mirror.failing) == (10, 2, "TimeoutError")
    shared.hangs = False
    own.known = [f"k{number}" for number in range(12)]
    assert await mirror.round()
    assert mirror.status()["state"] == "shared"
    await mirror.round()
    assert {fact["key"] for _, _, facts in shared.entries for fact in facts} >= set(own.known) - {"k0", "k1"}


async def test_it_is_told_again_for_who_joins() -> None:
    now, shared, own, late = [0.0], Shared(), Board(), Board()
    own.known = ["k"]
    view = View(shared)
    mirror = Mirror(view, own, refresh={"t": 60.0}, clock=lambda: now[0])
    await mirror.round()
    await mirror.round()
    shared.entries.clear()
    now[0] = 59.0
    await mirror.round()
    assert shared.entries == []
    now[0] = 60.0
    await mirror.round()
    await mirror.round()
    assert view.trimmed == 1
    await Mirror(View(shared), late).round()
    assert late.heard == ["k"]


async def test_one_that_is_cancelled_while_it_sends_loses_nothing_and_closes_its_store() -> None:
    shared = Shared()
    view = View(shared)
    mirror = Mirror(view, Board())
    await mirror.round()
    shared.hangs = True
    mirror.put("t", ["a", "b"])
    shared.reached.clear()
    task = asyncio.create_task(mirror.run())
    await asyncio.wait_for(shared.reached.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert view.closed
    shared.hangs = False
    await mirror.round()
    assert [fact["key"] for _, _, facts in shared.entries for fact in facts] == ["a", "b"]


async def test_news_goes_at_once() -> None:
    shared, board = Shared(), Board()
    one = Mirror(View(shared), Board(), interval=600)
    task = asyncio.create_task(one.run())
    await asyncio.wait_for(shared.reached.wait(), 10)
    one.put("t", ["k"])

    await asyncio.wait_for(shared.told.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await Mirror(View(shared), board).round()
    assert board.heard == ["k"]


async def test_breakers_and_sessions_of_two_instances_meet_there() -> None:
    shared = Shared()
    exchanges = [Exchange(shelves(), lambda: []) for _ in range(2)]
    mirrors = [Mirror(View(shared), exchange) for exchange in exchanges]
    for exchange, mirror in zip(exchanges, mirrors, strict=True):
        exchange.outside = mirror
        await mirror.round()
    rests = [Breakers(BreakerSettings(), lambda: 5.0, lambda: 0.0) for _ in range(2)]
    sessions = [Affinity(StickySettings(enabled=True), b"k") for _ in range(2)]
    key = sessions[0].key(("key",), "auto", [Session("header", "one")])
    assert key is not None
    rests[0].hold("up", open=True, reason="maintenance")
    for name, session in zip("ab", sessions, strict=True):
        session.claim(key, name, {"a", "b"})
    for _ in range(3):
        for exchange, mirror, rest, session in zip(exchanges, mirrors, rests, sessions, strict=True):
            exchange.heard(Worker(0), {"topic": "breakers", "facts": rest.news()})
            exchange.heard(Worker(0), {"topic": "affinity", "facts": session.news()})
            await mirror.round()
            rest.adopt(exchange.everything("breakers"))
            session.adopt(exchange.everything("affinity"))
    assert rests[1].states() == {"up": "held_open"}
    assert sessions[0].find(key) == sessions[1].find(key)
