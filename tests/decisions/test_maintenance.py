"""Partitions, retention, erasure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pointsman.decisions import Attempt, Decision, Outcome, new_decision_id
from pointsman.decisions.maintenance import TABLES, erase, maintain
from pointsman.decisions.store import DecisionStore
from pointsman.errors import DatabaseError, RequestError
from pointsman.settings import DecisionSettings
from support.postgres import OWN_FIRST
from support.processes import wait_for

Make = Callable[[], str]
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, options=OWN_FIRST) as connection:
        return connection.execute(query.encode()).fetchall()


def partitions(url: str, table: str = "pointsman_decisions") -> list[str]:
    query = f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{table}'::regclass ORDER BY 1"  # noqa: S608
    return [name.removeprefix(f"{table}_") for (name,) in rows(url, query)]


async def store(url: str, *records: Decision | Attempt | Outcome) -> None:
    keeper = DecisionStore(url, DecisionSettings(flush_interval=0.01))
    await keeper.start()
    for record in records:
        keeper.put(record)
    await keeper.close(10)
    assert keeper.written == len(records)


def three(at: datetime, **fields: Any) -> list[Decision | Attempt | Outcome]:
    name, seconds = new_decision_id(), at.timestamp()
    return [
        Decision(name, None, "auto", created_at=seconds, **fields),
        Attempt(name, 1, "d", None, "ok", created_at=seconds),
        Outcome(name, "success", created_at=seconds),
    ]


async def test_partitions_are_made_ahead_and_once(database_url: str) -> None:
    for _ in range(2):
        await maintain(database_url, 30, now=NOON)
    for table in TABLES:
        assert partitions(database_url, table) == ["20261120", "20261121", "20261122", "default"]
    await maintain(database_url, 30, now=NOON + timedelta(days=1))
    assert partitions(database_url) == ["20261120", "20261121", "20261122", "20261123", "default"]


async def test_rows_of_the_default_partition_move(database_url: str) -> None:
    """Rows that came before their partition was made, with the edges of the day on the right side."""
    midnight = NOON.replace(hour=0)
    for at in (midnight - timedelta(microseconds=1), midnight, NOON, midnight + timedelta(days=1, microseconds=-1)):
        await store(database_url, *three(at))
    await maintain(database_url, 30, now=NOON)
    for table in TABLES:
        counted = rows(database_url, f"SELECT tableoid::regclass::text, count(*) FROM {table} GROUP BY 1 ORDER BY 1")  # noqa: S608
        assert counted == [(f"{table}_20261120", 3), (f"{table}_default", 1)]


async def test_every_partition_has_the_indexes(database_url: str) -> None:
    await maintain(database_url, 30, now=NOON)
    query = "SELECT count(*) FROM pg_index WHERE indrelid = 'pointsman_decisions_{}'::regclass AND indisvalid"
    assert rows(database_url, query.format("20261121")) == rows(database_url, query.format("default")) == [(5,)]
    day = "created_at >= '2026-11-21T00:00Z' AND created_at < '2026-11-22T00:00Z'"
    plan = rows(database_url, f"EXPLAIN SELECT * FROM pointsman_decisions WHERE {day}")  # noqa: S608
    assert "pointsman_decisions_20261120" not in str(plan)  # pruned


async def test_retention(database_url: str) -> None:
    for age in (0, 1, 2, 3, 4, 40):
        now = NOON - timedelta(days=age)
        if age != 3:  # one stays in the default partition
            await maintain(database_url, 100, now=now)
        await store(database_url, *three(now, user_id=f"age{age}"))
    await maintain(database_url, 2, now=NOON)
    for table in TABLES:
        assert partitions(database_url, table) == ["20261118", "20261119", "20261120", "20261121", "20261122", "default"]
        assert rows(database_url, f"SELECT count(*) FROM {table}") == [(3,)]  # noqa: S608
    assert {one for (one,) in rows(database_url, "SELECT user_id FROM pointsman_decisions")} == {"age0", "age1", "age2"}


async def test_many_instances_while_rows_come_in(database_url: str) -> None:
    keeper = DecisionStore(database_url, DecisionSettings(flush_interval=0.01, batch_size=5))
    await keeper.start()

    async def put() -> None:
        for _ in range(200):
            for record in three(NOON):
                keeper.put(record)
            await asyncio.sleep(0.002)

    await asyncio.gather(put(), *(maintain(database_url, 30, now=NOON) for _ in range(5)))
    await keeper.close(20)
    assert (keeper.written, keeper.dropped) == (600, 0)
    for table in TABLES:
        assert rows(database_url, f"SELECT count(*), count(DISTINCT decision_id) FROM {table}") == [(200, 200)]  # noqa: S608
        assert partitions(database_url, table)[0] == "20261120"


async def test_a_row_on_its_way_while_its_day_gets_a_partition(database_url: str) -> None:
    keeper = DecisionStore(database_url, DecisionSettings(flush_interval=0.01))
    await keeper.start()
    with psycopg.connect(database_url, options=OWN_FIRST) as keeping:
        keeping.execute("LOCK TABLE pointsman_decisions_default IN ACCESS EXCLUSIVE MODE")
        keeper.put(three(NOON)[0])
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pointsman_decisions_default'::regclass"
        await asyncio.to_thread(wait_for, lambda: rows(database_url, waiting) != [(0,)], 20, "the writer waits for the lock")
        keeping.execute("CREATE TABLE made (LIKE pointsman_decisions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        day = "FROM ('2026-11-20T00:00Z') TO ('2026-11-21T00:00Z')"
        keeping.execute(f"ALTER TABLE pointsman_decisions ATTACH PARTITION made FOR VALUES {day}".encode())
    await keeper.close(20)
    assert (keeper.written, keeper.dropped) == (1, 0)
    assert rows(database_url, "SELECT count(*) FROM made") == [(1,)]


async def test_busy_tables_are_left_for_next_time(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(database_url, options=OWN_FIRST) as blocker:
        blocker.execute("LOCK TABLE pointsman_decisions")
        await maintain(database_url, 30, now=NOON)
    assert "busy" in caplog.text
    await maintain(database_url, 30, now=NOON)
    assert partitions(database_url)[0] == "20261120"


async def test_erase(database_url: str) -> None:
    mine = [three(NOON, key_hash="k1"), three(NOON, user_id="u1"), three(NOON - timedelta(days=9), key_hash="k1", user_id="u2")]
    others = [three(NOON, key_hash="k2", user_id="u2"), three(NOON)]
    for records in (*mine, *others):
        await store(database_url, *records)
    await maintain(database_url, 30, now=NOON)
    assert await erase(database_url, key_hash="k1") == 6
    assert await erase(database_url, user_id="u1") == 3
    assert await erase(database_url, key_hash="k1", user_id="u1") == 0
    for table in TABLES:
        left = {name for (name,) in rows(database_url, f"SELECT decision_id FROM {table}")}  # noqa: S608
        assert left == {records[0].decision_id for records in others}
    with pytest.raises(RequestError):
        await erase(database_url)


async def test_errors(fresh_database: Make) -> None:
    for url, code in ((fresh_database(), "E4501"), ("postgresql://u:topsecret@127.0.0.1:1/d", "E4500"), ("nonsense", "E4504")):
        for work in (maintain(url, 30), erase(url, key_hash="k")):
            with pytest.raises(DatabaseError) as caught:
                await work
            assert caught.value.code == code
            assert "topsecret" not in str(caught.value)
