"""Facts of several instances through a store that they share: in the background, bounded, and nothing stops without it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pointsman.custom_router.affinity import Affinity
from pointsman.custom_router.request import Session
from pointsman.process.mirror import Fact, Mirror
from pointsman.resilience_settings import StickySettings


class Board:
    """A store in memory, of which each instance has its own view; may be away or hang."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.error: Exception | None = None
        self.hangs = False
        self.reached = asyncio.Event()

    def view(self) -> View:
        return View(self)


class View:
    """One instance's connection."""

    def __init__(self, board: Board) -> None:
        self._board, self._read = board, 0

    async def _reach(self) -> None:
        self._board.reached.set()
        if self._board.hangs:
            await asyncio.Event().wait()
        if self._board.error is not None:
            raise self._board.error

    async def publish(self, facts: Sequence[Fact]) -> None:
        await self._reach()
        self._board.facts.extend(facts)

    async def collect(self) -> Sequence[Fact]:
        await self._reach()
        found = self._board.facts[self._read :]
        self._read = len(self._board.facts)
        return found


async def test_what_one_puts_the_other_gets_in_order() -> None:
    board, got = Board(), list[Fact]()
    one, two = Mirror(board.view(), lambda _: None), Mirror(board.view(), got.extend)
    one.put({"n": number} for number in range(1_500))
    await one.round()
    await two.round()
    assert [fact["n"] for fact in got] == list(range(1_500))
    assert (len(one), one.dropped, one.failing) == (0, 0, None)


async def test_while_the_store_is_away_the_newest_wait_and_the_rest_is_counted() -> None:
    board, got = Board(), list[Fact]()
    mirror = Mirror(board.view(), got.extend, bound=10, timeout=0.02)
    board.error = ConnectionError("away")
    mirror.put({"n": number} for number in range(4))
    await mirror.round()
    assert (len(mirror), mirror.dropped, mirror.failing) == (4, 0, "ConnectionError")
    board.error, board.hangs = None, True
    mirror.put({"n": number} for number in range(4, 12))
    await mirror.round()
    assert (len(mirror), mirror.dropped, mirror.failing) == (10, 2, "TimeoutError")
    board.hangs = False
    await mirror.round()
    assert [fact["n"] for fact in got] == list(range(2, 12))
    assert (len(mirror), mirror.failing) == (0, None)


async def test_one_that_is_cancelled_while_it_sends_loses_nothing() -> None:
    board = Board()
    board.hangs = True
    mirror = Mirror(board.view(), lambda _: None, bound=3)
    mirror.put([{"n": 1}, {"n": 2}])
    task = asyncio.create_task(mirror.run())
    await asyncio.wait_for(board.reached.wait(), 10)
    mirror.put([{"n": 3}, {"n": 4}])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    board.hangs = False
    await mirror.round()
    assert [fact["n"] for fact in board.facts] == [2, 3, 4]
    assert mirror.dropped == 1


async def test_sessions_of_two_instances_meet_there() -> None:
    board = Board()
    settings = StickySettings(enabled=True)
    instances = [Affinity(settings, b"k"), Affinity(settings, b"k")]
    mirrors = [Mirror(board.view(), one.adopt) for one in instances]
    key = instances[0].key(("key",), "auto", [Session("header", "one")])
    assert key is not None
    instances[0].claim(key, "a", {"a", "b"})
    instances[1].claim(key, "b", {"a", "b"})
    for _ in range(2):
        for instance, mirror in zip(instances, mirrors, strict=True):
            mirror.put(instance.news())
            await mirror.round()
    assert instances[0].find(key) == instances[1].find(key)
    assert instances[1].claim(key, "b", {"a", "b"})[0].deployment_id == "a"
