"""Each query on our tables finds its rows by an index, and only in the days that it asks about.

What our own code does (the store, upkeep, erasure) is not written down again here: it runs, and the server's counters tell that
no day was read from end to end. What operators ask is listed, and EXPLAIN tells which days are read, and how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from bench.database_data import add_decisions, settle, token

from pointsman.decisions import Attempt, Decision, Outcome
from pointsman.decisions.maintenance import TABLES, erase, maintain
from pointsman.decisions.store import DecisionStore
from pointsman.settings import DecisionSettings
from support.postgres import OWN_FIRST
from support.processes import wait_for

ROWS, KEYS, DAYS = 100_000, 2_000, 10
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)

Plan = dict[str, Any]


@pytest.fixture(scope="module")
def large(new_database: Callable[[], str]) -> str:
    """Decisions, attempts and outcomes over ten days, and what autovacuum would have noted of them."""
    url = new_database()
    days = [NOW - timedelta(days=age) for age in range(DAYS)]
    for day in days:
        asyncio.run(maintain(url, 100, now=day))
    add_decisions(url, ROWS, KEYS, [day.date() for day in days])
    settle(url)
    return url


def explain(url: str, query: str, *values: object) -> Plan:
    with psycopg.connect(url, options=OWN_FIRST) as connection:
        row = connection.execute(f"EXPLAIN (FORMAT JSON) {query}".encode(), values or None).fetchone()
        assert row is not None
        connection.rollback()
        plan: Plan = row[0][0]["Plan"]
        return plan


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def scanned(plan: Plan) -> dict[str, str]:
    """Partition -> how it is read."""
    return {
        node["Relation Name"]: node["Node Type"]
        for node in nodes(plan)
        if "Relation Name" in node and "Scan" in node["Node Type"]
    }


def by_index(plan: Plan) -> set[str]:
    """The partitions that are read; all of them by an index, unless they are empty."""
    found = scanned(plan)
    assert found, plan
    # Empty ones (the default, tomorrow's) are a page or none: the planner need not look into an index for that.
    empty = {name for name in found if name.endswith(("_default", "20261121", "20261122"))}
    sequential = {name for name, how in found.items() if how == "Seq Scan"} - empty
    assert not sequential, f"read from end to end: {sorted(sequential)}"
    return set(found) - empty


# What operators and the console ask: table, the rest, values, the days that may be read of ten.
FIVE_MINUTES = (NOW, NOW + timedelta(minutes=5))
QUERIES: list[tuple[str, str, tuple[object, ...], int]] = [
    ("decisions", "WHERE decision_id = %s", ("d-1",), DAYS),
    ("decisions", "WHERE request_id = %s", ("chatcmpl-1",), DAYS),
    ("decisions", "WHERE key_hash = %s ORDER BY created_at DESC LIMIT 50", (token(7),), DAYS),
    ("decisions", "WHERE user_id = %s AND created_at >= %s ORDER BY created_at", ("user-7", NOW - timedelta(days=1)), 2),
    ("decisions", "WHERE created_at >= %s AND created_at < %s", FIVE_MINUTES, 1),
    ("decisions", "ORDER BY created_at DESC LIMIT 50", (), DAYS),
    ("attempts", "WHERE decision_id = %s ORDER BY number", ("d-1",), DAYS),
    ("attempts", "WHERE deployment_id = 'b' AND created_at >= %s AND created_at < %s", FIVE_MINUTES, 1),
    ("outcomes", "WHERE decision_id = %s", ("d-1",), DAYS),
    ("outcomes", "WHERE created_at >= %s AND created_at < %s", FIVE_MINUTES, 1),
]


@pytest.mark.parametrize(("table", "rest", "values", "days"), QUERIES)
def test_what_operators_ask(large: str, table: str, rest: str, values: tuple[object, ...], days: int) -> None:
    plan = explain(large, f"SELECT * FROM pointsman_{table} {rest}", *values)  # noqa: S608 - the table above
    assert len(by_index(plan)) <= days


def ended(url: str) -> bool:
    """Whether our code has no session any more: a session's figures are counted when it has ended, at the latest."""
    with psycopg.connect(url, application_name="test") as connection:
        query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pointsman%'"
        return connection.execute(query.encode()).fetchone() is None


def read_whole(url: str) -> dict[str, int]:
    """Rows read from end to end of each partition that is not empty, since the server counts."""
    wait_for(lambda: ended(url), 20, "our sessions have ended")
    query = """
        SELECT s.relname, s.seq_tup_read FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
        WHERE s.schemaname = 'public_pointsman' AND c.relkind = 'r' AND c.reltuples > 1000
    """
    with psycopg.connect(url) as connection:
        return {name: int(rows) for name, rows in connection.execute(query.encode()).fetchall()}


async def quietly(large: str, work: Awaitable[object]) -> None:
    """Do `work`, which must read no partition from end to end."""
    before = await asyncio.to_thread(read_whole, large)
    assert len(before) == DAYS * len(TABLES)
    await work
    after = await asyncio.to_thread(read_whole, large)
    assert {name: after[name] for name in before} == before


async def test_a_whole_read_would_be_seen(large: str) -> None:
    async def read() -> None:
        with psycopg.connect(large, options=OWN_FIRST, application_name="pointsman") as connection:
            connection.execute("SELECT count(*) FROM pointsman_decisions WHERE model_group = 'none'")

    with pytest.raises(AssertionError):
        await quietly(large, read())


async def test_erasure(large: str) -> None:
    async def work() -> None:
        assert await erase(large, key_hash=token(9)) > 100
        assert await erase(large, user_id="user-10") > 100

    await quietly(large, work())


async def test_the_store(large: str) -> None:
    """A batch that is written twice, as after a lost connection: the second time it is found by the primary key."""
    seconds = NOW.timestamp()
    records = [Decision("twice", None, "auto", created_at=seconds), Attempt("twice", 1, "d", None, "ok", created_at=seconds)]

    async def write() -> None:
        for _ in range(2):
            keeper = DecisionStore(large, DecisionSettings(flush_interval=0.01))
            await keeper.start()
            for record in (*records, Outcome("twice", "success", created_at=seconds)):
                keeper.put(record)
            await keeper.close(10)
            assert keeper.written == 3

    await quietly(large, write())
    with psycopg.connect(large, options=OWN_FIRST) as connection:
        found = connection.execute("SELECT count(*) FROM pointsman_decisions WHERE decision_id = 'twice'").fetchone()
    assert found == (1,)


async def test_upkeep(large: str) -> None:
    """The next day's partition, and what is too old in the default one; the days between are not touched."""
    await quietly(large, maintain(large, 100, now=NOW + timedelta(days=1)))


def test_the_fleets_desired_state_is_read_by_key(large: str) -> None:
    """Small tables; what counts is that an index fits."""
    for query in (
        "SELECT * FROM pointsman_rollout WHERE strategy = 'a' FOR UPDATE",
        "SELECT * FROM pointsman_rollout_history WHERE strategy = 'a' ORDER BY id DESC LIMIT 20",
    ):
        with psycopg.connect(large, options=OWN_FIRST) as connection:
            connection.execute("SET enable_seqscan = off")
            row = connection.execute(f"EXPLAIN (FORMAT JSON) {query}".encode()).fetchone()
            assert row is not None
            assert any("Index" in node["Node Type"] for node in nodes(row[0][0]["Plan"]))


def test_no_index_is_the_beginning_of_another(large: str) -> None:
    query = """
        SELECT indrelid::regclass::text, indexrelid::regclass::text, indkey::text FROM pg_index
        JOIN pg_class c ON c.oid = indrelid WHERE c.relname = ANY(%s)
    """
    with psycopg.connect(large, options=OWN_FIRST) as connection:
        indexes = connection.execute(query.encode(), ([*TABLES, "pointsman_rollout", "pointsman_rollout_history"],)).fetchall()
    assert len(indexes) >= 10
    for table, index, columns in indexes:
        for other_table, other, more in indexes:
            doubled = table == other_table and index != other and f"{more} ".startswith(f"{columns} ")
            assert not doubled, f"{index} is the beginning of {other}"
