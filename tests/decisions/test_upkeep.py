"""Upkeep of the decision tables on unusual days: clocks, crashes, busy tables, many rows; and as a state machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pointsman.decisions import Attempt, Decision, Outcome, maintenance
from pointsman.decisions.maintenance import TABLES, erase, maintain
from pointsman.decisions.rows import encode, inserts
from support.postgres import OWN_FIRST

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def ask(url: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of a query; written and committed where it is a change."""
    with psycopg.connect(url, options=OWN_FIRST, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def partitions(url: str) -> list[str]:
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'pointsman_decisions'::regclass ORDER BY 1"
    return [name.removeprefix("pointsman_decisions_") for (name,) in ask(url, query)]


def put(url: str, name: str, at: datetime, **fields: Any) -> None:
    """A decision with its attempt and outcome, as the store writes them."""
    with psycopg.connect(url, autocommit=True) as connection:
        write(connection, name, at, **fields)


def write(connection: psycopg.Connection[Any], name: str, at: datetime, **fields: Any) -> None:
    """The same on a connection."""
    seconds = at.timestamp()
    records = [
        Decision(name, None, "auto", created_at=seconds, **fields),
        Attempt(name, 1, "d", None, "ok", created_at=seconds),
        Outcome(name, "success", created_at=seconds),
    ]
    for record in records:
        connection.execute(inserts("public_pointsman")[type(record)], (encode([record]),))


async def test_the_databases_clock_decides(database_url: str) -> None:
    """An instance whose own clock is a year ahead must not drop what the others keep."""
    for age in (0, 1, 2, 3):
        await maintain(database_url, 100, now=datetime(2024, 3, 9, 12, tzinfo=UTC) - age * DAY)
    ask(database_url, "CREATE SCHEMA fake")
    body = "SELECT '2024-03-09 23:30:00-02'::timestamptz"
    ask(database_url, f"CREATE FUNCTION fake.now() RETURNS timestamptz LANGUAGE sql AS $${body}$$")
    name = database_url.rpartition("/")[2]
    ask(database_url, f'ALTER DATABASE "{name}" SET search_path = fake, pg_catalog, public')
    await maintain(database_url, 1)  # 2024-03-10 01:30 UTC
    assert partitions(database_url) == ["20240309", "20240310", "20240311", "20240312", "default"]


@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati", "Europe/Berlin"])
async def test_days_are_utc_whatever_the_session_says(database_url: str, zone: str) -> None:
    """Clocks change on 2026-03-08 in New York and on 2026-03-29 in Berlin; neither day has 24 hours there."""
    name = database_url.rpartition("/")[2]
    ask(database_url, f"ALTER DATABASE \"{name}\" SET timezone = '{zone}'")
    for today in (datetime(2026, 3, 8, 12, tzinfo=UTC), datetime(2026, 3, 29, 12, tzinfo=UTC)):
        midnight = today.replace(hour=0)
        put(database_url, f"first-{today}", midnight)
        await maintain(database_url, 100, now=today.astimezone())
        put(database_url, f"last-{today}", midnight + DAY - timedelta(microseconds=1))
        found = ask(
            database_url, "SELECT DISTINCT tableoid::regclass::text FROM pointsman_decisions WHERE created_at >= %s", midnight
        )
        assert found == [(f"pointsman_decisions_{today:%Y%m%d}",)]


async def test_what_a_crash_left_detached_is_dropped(database_url: str) -> None:
    await maintain(database_url, 100, now=NOON - 9 * DAY)
    ask(database_url, "ALTER TABLE pointsman_decisions DETACH PARTITION pointsman_decisions_20261111")
    ask(database_url, "CREATE TABLE public_pointsman.pointsman_decisions_kept (one int)")
    await maintain(database_url, 2, now=NOON)
    left = ask(
        database_url,
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^pointsman_decisions_(2026111|kept)' ORDER BY 1",
    )
    assert left == [("pointsman_decisions_kept",)]


async def test_a_long_report_does_not_stop_the_writers(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Retention wants the whole table for a moment; a reader has it. Writers wait behind it for about a second, no more."""
    await maintain(database_url, 100, now=NOON - 9 * DAY)
    await maintain(database_url, 100, now=NOON)
    with psycopg.connect(database_url, options=OWN_FIRST) as report:
        report.execute("SELECT count(*) FROM pointsman_decisions")
        upkeep = asyncio.create_task(maintain(database_url, 2, now=NOON))
        begun = time.monotonic()
        while not upkeep.done():
            await asyncio.to_thread(put, database_url, f"d{time.monotonic()}", NOON)
        took = time.monotonic() - begun
    await upkeep
    assert "busy" in caplog.text
    assert took < 10  # one wait of a second for the lock, and what a loaded machine adds
    assert "20261111" in partitions(database_url)
    await maintain(database_url, 2, now=NOON)
    assert partitions(database_url)[0] == "20261120"


async def test_many_rows_in_the_default_partition(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when nobody maintained for a day: they stay where they are, found by queries, and go when they are too old."""
    monkeypatch.setattr(maintenance, "_MOVABLE", 3)
    monkeypatch.setattr(maintenance, "_BATCH", 2)
    for number in range(5):
        put(database_url, f"d{number}", NOON)
    await maintain(database_url, 2, now=NOON)
    assert "too many" in caplog.text
    assert partitions(database_url) == ["20261121", "20261122", "default"]
    for table in TABLES:
        assert ask(database_url, f"SELECT count(*) FROM {table}") == [(5,)]  # noqa: S608
    await maintain(database_url, 2, now=NOON + 3 * DAY)
    for table in TABLES:
        assert ask(database_url, f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608


async def test_erasure_in_batches(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", 2)
    await maintain(database_url, 100, now=NOON)
    for number in range(7):
        put(database_url, f"mine{number}", NOON + (number - 3) * DAY, key_hash="k", user_id="u")
        put(database_url, f"other{number}", NOON + (number - 3) * DAY, key_hash="l", user_id="v")
    put(database_url, "same time", NOON, key_hash="l", user_id="v")
    assert await erase(database_url, key_hash="k", user_id="u") == 21
    for table in TABLES:
        assert ask(database_url, f"SELECT count(*) FROM {table} WHERE decision_id NOT LIKE 'mine%'") == [(8,)]  # noqa: S608
        assert ask(database_url, f"SELECT count(*) FROM {table}") == [(8,)]  # noqa: S608


class Upkeep(RuleBasedStateMachine):
    """Records at any time, upkeep by clocks that jump, changed retention, erasure: nothing is lost, left or doubled."""

    new_database: Callable[[], str]

    @initialize()
    def begin(self) -> None:
        self.url = type(self).new_database()
        self.connection = psycopg.connect(self.url, options=OWN_FIRST, autocommit=True)
        self.now = NOON
        self.kept: dict[str, tuple[datetime, str]] = {}
        self.number = 0
        asyncio.run(maintain(self.url, 1, now=self.now))

    def teardown(self) -> None:
        self.connection.close()

    @rule(hours=st.lists(st.integers(-24 * 3, 24 * 3), min_size=1, max_size=6), key=st.sampled_from(["k", "l"]))
    def record(self, hours: list[int], key: str) -> None:
        for one in hours:
            self.number += 1
            at = self.now + timedelta(hours=one)
            write(self.connection, f"d{self.number}", at, key_hash=key)
            self.kept[f"d{self.number}"] = (at, key)

    @rule(days=st.integers(-1, 2), retention=st.integers(1, 3), instances=st.integers(1, 2))
    def upkeep(self, days: int, retention: int, instances: int) -> None:
        self.now += days * DAY

        async def run() -> None:
            if instances == 2:  # one of them stops for the other
                await asyncio.gather(*(maintain(self.url, retention, now=self.now) for _ in range(instances)))
            await maintain(self.url, retention, now=self.now)

        asyncio.run(run())
        oldest = (self.now - retention * DAY).replace(hour=0)
        self.kept = {name: one for name, one in self.kept.items() if one[0] >= oldest}
        present = partitions(self.url)
        assert {f"{self.now + ahead * DAY:%Y%m%d}" for ahead in range(3)} <= set(present)
        assert all(name == "default" or name >= f"{oldest:%Y%m%d}" for name in present)

    @rule(key=st.sampled_from(["k", "l"]))
    def forget(self, key: str) -> None:
        gone = [name for name, one in self.kept.items() if one[1] == key]
        assert asyncio.run(erase(self.url, key_hash=key)) == 3 * len(gone)
        for name in gone:
            del self.kept[name]

    @invariant()
    def all_are_there_once(self) -> None:
        for table in TABLES:
            query = f"SELECT decision_id, tableoid::regclass::text, created_at FROM {table}"  # noqa: S608
            found = self.connection.execute(query.encode()).fetchall()
            assert sorted(name for name, _, _ in found) == sorted(self.kept)
            for _, where, at in found:
                assert where in (f"{table}_default", f"{table}_{at.astimezone(UTC):%Y%m%d}")


def test_as_a_state_machine(new_database: Callable[[], str]) -> None:
    machine = type("Machine", (Upkeep,), {"new_database": staticmethod(new_database)})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=10,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
