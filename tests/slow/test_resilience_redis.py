"""The store that instances share, in a real Redis: what joins reads it, what is malformed does no harm, nothing grows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from pointsman.process.facts import Exchange
from pointsman.process.mirror import Mirror
from pointsman.process.redis_store import RedisStore
from pointsman.process.redis_target import find
from pointsman.process.sharing import shelves
from support.processes import wait_for
from support.redis import RedisServer
from support.redis_versions import Sentinels

pytestmark = pytest.mark.slow("resilience")
KEY = "{pointsman}:facts:breakers"
FACT = {"upstream": "u", "state": "open", "age": 1.0, "left": 60.0, "generation": 1}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    one = RedisServer(tmp_path).start()
    yield one
    one.kill()


def store(server: RedisServer, clock: Any = None, **retention: float) -> RedisStore:
    target = find({}, server.environment)
    assert target is not None
    more = {"clock": clock} if clock is not None else {}
    return RedisStore(target, retention or {"breakers": 180.0, "affinity": 3600.0}, **more)


@pytest.mark.requirement("F-3")
async def test_who_joins_reads_what_was_told_and_each_entry_once(server: RedisServer) -> None:
    one, two = store(server), store(server)
    await one.collect()
    await one.publish("breakers", [FACT])
    await one.publish("affinity", [{"session": "s"}] * 3)
    assert await one.collect() == []  # its own
    await asyncio.sleep(0.3)
    told = await two.collect()
    assert sorted((item.topic, len(item.facts)) for item in told) == [("affinity", 3), ("breakers", 1)]
    assert all(0.2 < item.age < 5 for item in told)  # by Redis' clock
    assert await two.collect() == []
    with server.client() as client:
        assert 0 < client.ttl(KEY) <= 180
    await one.close()
    await two.close()


async def test_what_is_malformed_is_counted_and_passed_over(server: RedisServer) -> None:
    one, exchange = store(server), Exchange(shelves(), lambda: [])
    mirror = Mirror(one, exchange)
    with server.client() as client:
        for text in ("", "{", "{}", "7", "null", "[" * 20_000, "x" * 1_000_001):
            client.xadd(KEY, {"by": "another", "facts": text})
        client.xadd(KEY, {"no": "fields"})
        client.xadd(KEY, {"by": "another", "facts": json.dumps([None, 7, {"upstream": 3}, {**FACT, "left": "soon"}, FACT])})
    assert await mirror.round()
    assert one.refused == 8
    assert exchange.status()["topics"]["breakers"] == {"facts": 1, "refused": 4, "forgotten": 0}
    with server.client() as client:
        client.delete(KEY)
        client.set(KEY, "no stream")  # somebody else's
    assert not await mirror.round()
    assert mirror.status()["state"] == "local"
    await one.close()


async def test_another_server_whose_clock_is_behind_is_read_from_its_beginning(server: RedisServer) -> None:
    now = [0.0]
    one = store(server, lambda: now[0], breakers=1e9)
    with server.client() as client:
        client.xadd(KEY, {"by": "another", "facts": "[1]"}, id="9000000000000-1")
        assert len(await one.collect()) == 1
        client.delete(KEY)
        client.xadd(KEY, {"by": "another", "facts": "[2]"}, id="5-1")
    assert await one.collect() == []
    now[0] = 31.0
    assert [told.facts for told in await one.collect()] in ([[2]], [])  # its age is beyond what is kept
    assert one._read[KEY.encode()] == b"5-1"
    await one.close()


async def test_a_stream_does_not_grow_for_ever(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.process.redis_store.MAX_ENTRIES", 200)
    one = store(server)
    for number in range(1_000):
        await one.publish("breakers", [{**FACT, "generation": number}])
    with server.client() as client:
        assert client.xlen(KEY) <= 400
    monkeypatch.setattr("pointsman.process.redis_store.MAX_STREAM", 1_000_000)
    for number in range(300):
        await one.publish("breakers", [{**FACT, "reason": "x" * 20_000, "generation": number}])
    with server.client() as client:
        assert client.memory_usage(KEY) < 4_000_000
    await one.trim()
    await one.close()


async def test_a_server_that_stands_still_or_refuses_costs_a_second_and_nothing_else(server: RedisServer) -> None:
    one = store(server)
    await one.collect()
    server.stand_still()
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises((RedisError, OSError, TimeoutError)):
        await one.collect()
    assert loop.time() - began < 3
    server.go_on()
    await one.reset()
    await one.collect()
    wrong = find({}, {**server.environment, "REDIS_PASSWORD": "wrong"})
    assert wrong is not None
    other = RedisStore(wrong, {"breakers": 60.0})
    with pytest.raises(RedisError):
        await other.collect()
    await one.close()
    await other.close()


async def test_by_sentinel_the_store_follows_the_master(tmp_path: Path) -> None:
    group = Sentinels(tmp_path, None)
    try:
        target = find({}, group.environment)
        assert target is not None
        one, two = (RedisStore(target, dict.fromkeys(shelves(), 180.0)) for _ in range(2))
        await one.publish("breakers", [FACT])
        assert [told.facts for told in await two.collect()] == [[FACT]]
        group.master.kill()
        await asyncio.to_thread(wait_for, group.promoted, 30, "the replica is the master")
        board = Exchange(shelves(), lambda: [])
        board.deliver("breakers", [FACT], 0.0)
        mirror = Mirror(one, board)
        for _ in range(60):  # the Sentinels agree a little later; the mirror asks until they do
            if await mirror.round() and await mirror.round():
                break
            await asyncio.sleep(0.5)
        await two.reset()
        assert [told.topic for told in await two.collect()][-1:] == ["breakers"]
        await one.close()
        await two.close()
    finally:
        group.kill()
