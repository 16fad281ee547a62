"""Facts of several workers: what one tells the others hear once, who joins hears all, and nothing grows without a bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.custom_router.affinity import Affinity
from pointsman.custom_router.breaker_facts import Fact
from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.request import Session
from pointsman.process import facts
from pointsman.process.channel import MAX_MESSAGE, Channel
from pointsman.process.facts import CHUNK, Exchange, Shelf, chunks
from pointsman.process.pool import Worker
from pointsman.process.sharing import shelves
from pointsman.process.sources import Sources
from pointsman.resilience_settings import BreakerSettings, StickySettings


class Clock:
    """Monotonic seconds, by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def lines(path: Path, count: int) -> AsyncIterator[list[tuple[Worker, Channel]]]:
    """Worker slots with real channels over a Unix socket: the supervisor's end in the slot, and the worker's."""
    accepted: asyncio.Queue[Channel] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait(Channel(reader, writer))

    server = await asyncio.start_unix_server(accept, path=str(path / "s"))
    made = []
    for index in range(count):
        far = await Channel.connect(str(path / "s"))
        near = await accepted.get()
        made.append((Worker(index, channel=near, ready=True), far))
    try:
        yield made
    finally:
        for worker, far in made:
            await far.close()
            if worker.channel is not None:
                await worker.channel.close()
        server.close()
        await server.wait_closed()


def fact(upstream: str = "u", generation: int = 1, **more: Any) -> dict[str, Any]:
    return Fact(upstream, "open", 0.0, 5.0, generation).to_wire(0.0) | more


async def next_facts(channel: Channel) -> dict[str, Any]:
    return await asyncio.wait_for(channel.receive(), 10)


async def test_what_one_worker_tells_the_others_hear_once(tmp_path: Path) -> None:
    async with lines(tmp_path, 3) as made:
        clock = Clock(100.0)
        exchange = Exchange(shelves(), lambda: [worker for worker, _ in made], clock)
        (first, to_first), (second, to_second), (third, to_third) = made
        exchange.heard(first, {"type": "facts", "topic": "breakers", "facts": [fact()]})
        for channel in (to_second, to_third):
            assert await next_facts(channel) == {"type": "facts", "topic": "breakers", "facts": [fact()]}
        exchange.heard(second, {"type": "facts", "topic": "breakers", "facts": [fact()]})  # known
        clock.now += 2
        exchange.heard(third, {"type": "facts", "topic": "breakers", "facts": [fact(generation=2)]})
        assert (await next_facts(to_first))["facts"] == [fact(generation=2)]
        assert (await next_facts(to_second))["facts"] == [fact(generation=2)]
        clock.now += 1
        exchange.joined(third)  # in the place of one that died
        assert (await next_facts(to_third))["facts"] == [fact(generation=2, age=1.0, left=4.0)]


class Outside:
    def __init__(self) -> None:
        self.told: list[tuple[str, list[str]]] = []

    def put(self, topic: str, keys: Any) -> None:
        self.told.append((topic, list(keys)))


async def test_what_workers_tell_goes_outside_and_what_comes_from_there_does_not(tmp_path: Path) -> None:
    async with lines(tmp_path, 2) as made:
        clock, outside = Clock(100.0), Outside()
        exchange = Exchange(shelves(), lambda: [worker for worker, _ in made], clock)
        exchange.outside = outside
        exchange.deliver("breakers", [fact("elsewhere")], age=2.0)
        for _, channel in made:
            assert (await next_facts(channel))["facts"] == [fact("elsewhere", age=2.0, left=3.0)]
        exchange.heard(made[0][0], {"topic": "breakers", "facts": [fact("here")]})
        assert outside.told == [("breakers", ["here"])]
        clock.now += 1
        assert exchange.wire("breakers", ["here", "nobody's"]) == [fact("here", age=1.0, left=4.0)]


@pytest.mark.parametrize(
    ("topic", "told", "unknown", "refused"),
    [
        ("no-such", [fact()], 1, 0),
        (None, [fact()], 1, 0),
        (["breakers"], [fact()], 1, 0),
        ("breakers", "facts", 1, 0),
        ("breakers", {"a": 1}, 1, 0),
        ("breakers", [None, 7, "x", [], {}, {**fact(), "generation": -1}, {**fact(), "left": float("inf")}], 0, 7),
        ("affinity", [{"session": "zz"}, {"session": "00" * 24, "deployment": "a", "since": 1, "moves": True}], 0, 2),
    ],
)
def test_what_is_no_fact_is_counted_and_does_no_harm(topic: Any, told: Any, unknown: int, refused: int) -> None:
    exchange = Exchange(shelves(), lambda: [])
    exchange.deliver(topic, told, 0.0)
    status = exchange.status()
    assert status["unknown"] == unknown
    assert sum(row["refused"] for row in status["topics"].values()) == refused
    assert sum(row["facts"] for row in status["topics"].values()) == 0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("upstream", "state", "age", "left", "generation", "orders", "rests", "cause", "reason", "seconds", "session", "moves")


@given(st.sampled_from(["breakers", "affinity"]), st.lists(ANYTHING | st.dictionaries(st.sampled_from(NAMES), ANYTHING)))
@settings(max_examples=150, deadline=None)
def test_whatever_is_told_nothing_breaks_and_memory_is_bounded(topic: str, told: list[Any]) -> None:
    exchange = Exchange(shelves(), lambda: [])
    exchange.deliver(topic, told, 1.0)
    for item in exchange.everything(topic):
        assert exchange._shelves[topic].hear([item], 0.0) == []  # what it keeps can be read by another


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from(["open", "closed", "held_open"])), max_size=12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_the_order_in_which_facts_come_does_not_matter(said: list[tuple[int, int, str]], chance: Any) -> None:
    told = [fact(f"u{which}", generation, state=state) for which, generation, state in said]
    shuffled = [*told, *told[: len(told) // 2]]
    chance.shuffle(shuffled)
    one, other = (Shelf(Fact.from_wire) for _ in range(2))
    one.hear(told, 0.0)
    other.hear(shuffled, 0.0)
    assert sorted(map(str, one.wire(1.0))) == sorted(map(str, other.wire(1.0)))


def test_a_shelf_is_bounded() -> None:
    shelf = Shelf(Fact.from_wire, bound=10)
    shelf.hear([fact(f"u{number}") for number in range(1000)], 0.0)
    assert (len(shelf), shelf.forgotten) == (10, 990)


async def test_a_worker_that_does_not_read_costs_no_memory_and_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MAX_UNREAD", 64 * 1024)
    async with lines(tmp_path, 2) as made:
        (first, _), (second, to_second) = made
        exchange = Exchange(shelves(), lambda: [worker for worker, _ in made])
        assert second.channel is not None
        for generation in range(1, 400):
            exchange.heard(first, {"topic": "breakers", "facts": [fact("long" * 200 + str(n), generation) for n in range(9)]})
        assert second.channel.unread < 2 * 64 * 1024
        exchange.catch_up()  # it still does not read
        newest = dict[str, int]()
        while len(newest) < 9 or min(newest.values()) < 399:
            message = await next_facts(to_second)
            newest |= {item["upstream"]: item["generation"] for item in message["facts"]}
            await asyncio.sleep(0)
            exchange.catch_up()


async def test_a_worker_that_joins_where_there_is_very_much_is_told_each_topic_once(tmp_path: Path) -> None:
    """More sessions than may wait to be read: what comes after them waits, and they are not told again."""
    async with lines(tmp_path, 1) as made:
        ((worker, channel),), slots = made, list[Worker]()
        exchange = Exchange(shelves(), lambda: slots)
        pin = {"deployment": "d" * 100, "since": 1.0, "moves": 0, "left": None, "age": 1.0, "idle": 1.0}
        exchange.deliver("affinity", [{"session": f"{number:048x}", **pin} for number in range(8_000)], 0.0)
        exchange.deliver("breakers", [fact()], 0.0)
        sums = {"sequence": 1, "age": 0.0, "idle": None, "traffic": {"tries": 1.0}, "feedback": {}, "half_lives": [60.0, 60.0]}
        exchange.deliver("scores", [{"upstream": "u", "origin": "o", **sums}], 0.0)
        slots.append(worker)
        exchange.joined(worker)
        told: dict[str, int] = {}
        while "scores" not in told:
            message = await next_facts(channel)
            told[message["topic"]] = told.get(message["topic"], 0) + len(message["facts"])
            await asyncio.sleep(0)
            exchange.catch_up()
        assert told["scores"] == told["breakers"] == 1
        assert told["affinity"] == 8_000


async def test_breakers_and_sessions_of_two_workers_agree_over_the_exchange(tmp_path: Path) -> None:
    async with lines(tmp_path, 2) as made:
        exchange = Exchange(shelves(), lambda: [worker for worker, _ in made])
        clocks = [Clock(5.0), Clock(90_000.0)]
        breakers = [Breakers(BreakerSettings(), clock, lambda: 0.0) for clock in clocks]
        sessions = [Affinity(StickySettings(enabled=True), b"k", clock) for clock in clocks]
        sources = []
        for (_, channel), its_breakers, its_sessions in zip(made, breakers, sessions, strict=True):
            one = Sources(channel.send)
            one.add("breakers", its_breakers)
            one.add("affinity", its_sessions)
            sources.append(one)
        breakers[0].hold("up", open=True, reason="maintenance")
        key = sessions[0].key(("tenant",), "auto", [Session("header", "one")])
        assert key is not None
        sessions[0].claim(key, "a", {"a", "b"})
        sources[0].tell()
        near = made[0][0]
        assert near.channel is not None
        for _ in range(2):
            exchange.heard(near, await next_facts(near.channel))
            sources[1].take(await next_facts(made[1][1]))
        assert breakers[1].states() == {"up": "held_open"}
        pin = sessions[1].find(key)
        assert pin is not None
        assert pin.deployment_id == "a"
        assert sources[1].refused == {"breakers": 0, "affinity": 0}
        sources[1].take({"topic": "breakers", "facts": [{}]})
        sources[1].take({"topic": "scores", "facts": [{}]})  # of a newer supervisor
        assert sources[1].refused == {"breakers": 1, "affinity": 0}


def test_a_source_that_is_broken_does_not_keep_the_others_from_telling() -> None:
    class Broken:
        def news(self) -> list[dict[str, Any]]:
            raise RuntimeError("broken")

        def adopt(self, said: Any) -> int:
            return 0

    sent: list[Any] = []
    sources = Sources(sent.append)
    breakers = Breakers(BreakerSettings(), Clock(0.0), lambda: 0.0)
    sources.add("scores", Broken())
    sources.add("breakers", breakers)
    breakers.hold("up", open=False, reason="why")
    sources.tell()
    assert [message["topic"] for message in sent] == ["breakers"]
    sources.tell()
    assert len(sent) == 1


def test_very_many_facts_go_in_messages_that_the_channel_takes() -> None:
    sent: list[Any] = []
    sources = Sources(sent.append)
    breakers = Breakers(BreakerSettings(), Clock(0.0), lambda: 0.0)
    for number in range(700):
        breakers.hold(f"up{number}", open=True, reason="x" * 500)
    sources.add("breakers", breakers)
    sources.tell()
    assert [len(message["facts"]) for message in sent] == [256, 256, 188]


def test_large_facts_go_in_more_messages() -> None:
    large, small = {"text": "x" * 400_000}, {"text": "x"}
    cut = [[*chunk] for chunk in chunks([large, large, large, *[small] * 300])]
    assert [len(chunk) for chunk in cut] == [2, CHUNK, 303 - 2 - CHUNK]
    assert all(len(json.dumps(chunk)) < MAX_MESSAGE // 2 for chunk in cut)
    assert [[*chunk] for chunk in chunks([{"text": "x" * MAX_MESSAGE}])] == [[{"text": "x" * MAX_MESSAGE}]]  # none is lost here
    assert [*chunks([])] == []
