"""The store of decision records on a real Postgres: what is put and not dropped is found, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pointsman.decisions import Attempt, Decision, Dropped, Outcome, new_decision_id
from pointsman.decisions.rows import Record
from pointsman.decisions.store import DecisionStore
from pointsman.embedded_postgres.postmaster import survivors
from pointsman.migrations.runner import migrate
from pointsman.settings import DecisionSettings
from support.postgres import UNSAFE_AND_FAST, PostgresServer

Make = Callable[[], str]
FAST = DecisionSettings(flush_interval=0.05)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def ids(url: str) -> list[str]:
    query = "UNION ALL ".join(f"SELECT decision_id FROM pointsman_{t} " for t in ("decisions", "attempts", "outcomes"))  # noqa: S608
    return [one for (one,) in rows(url, query)]


def decision(**fields: Any) -> Decision:
    return Decision(**{"decision_id": new_decision_id(), "request_id": None, "group": "auto", **fields})


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


async def test_each_kind_comes_back_as_it_went(database_url: str) -> None:
    at = 1_790_000_000.123456
    store = DecisionStore(database_url, FAST)
    await store.start()
    first = decision(
        request_id="r",
        trace_id="0" * 32,
        key_hash="k",
        team_id="t",
        user_id="u",
        group="auto",
        strategy="knn",
        version="7",
        scores={"a": 0.25, "b": float("nan")},
        dropped=(Dropped("c", "tried"),),
        order=("a", "b"),
        model="openai/a",
        microseconds=120,
        created_at=at,
    )
    store.put(first)
    store.put(Attempt(first.decision_id, 1, "a", "openai/a", "error", "Timeout", 408, 12.5, at))
    store.put(Outcome(first.decision_id, "success", "b", 3, 4, 0.125, 99.5, None, at))
    await store.close(10)
    assert (store.written, store.dropped, store.pending) == (3, 0, 0)
    when = datetime.fromtimestamp(at, UTC)
    assert rows(database_url, "SELECT * FROM pointsman_decisions") == [
        (first.decision_id, when, "r", "0" * 32, "k", "t", "u", "auto", "knn", "7", "live", {"a": 0.25, "b": None},
         [{"deployment_id": "c", "reason": "tried"}], ["a", "b"], "openai/a", "argmax", 120, None, None)
    ]  # fmt: skip
    assert rows(database_url, "SELECT * FROM pointsman_attempts") == [
        (first.decision_id, 1, when, "a", "openai/a", "error", "Timeout", 408, 12.5)
    ]
    assert rows(database_url, "SELECT * FROM pointsman_outcomes") == [
        (first.decision_id, when, "success", "b", 3, 4, 0.125, 99.5, None)
    ]


text = st.text(st.characters(codec=None), max_size=20)  # NUL and lone surrogates too
number = st.floats(width=64)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        Decision,
        decision_id=st.builds(new_decision_id),
        request_id=st.none() | text,
        group=text,
        strategy=st.none() | text,
        scores=st.dictionaries(text, number, max_size=3),
        dropped=st.lists(st.builds(Dropped, text, text), max_size=2).map(tuple),
        order=st.lists(text, max_size=3).map(tuple),
        microseconds=st.integers(),
        user_id=st.none() | text,
        prompt=st.none() | text,
        created_at=number,
    ),
    st.builds(
        Attempt,
        decision_id=st.builds(new_decision_id),
        number=st.integers(),
        deployment_id=text,
        model=st.none() | text,
        outcome=text,
        status=st.none() | st.integers(),
        latency_ms=st.none() | number,
        created_at=number,
    ),
    st.builds(
        Outcome,
        decision_id=st.builds(new_decision_id),
        status=text,
        prompt_tokens=st.integers(),
        completion_tokens=st.integers(),
        cost=number,
        feedback=st.none() | number,
        created_at=number,
    ),
)


def test_whatever_is_put_is_found_once(new_database: Make) -> None:
    url = new_database()

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(records, max_size=12), st.integers(1, 5))
    def check(put: list[Record], batch: int) -> None:
        async def go() -> DecisionStore:
            store = DecisionStore(url, DecisionSettings(batch_size=batch, flush_interval=0.01))
            await store.start()
            for record in put:
                store.put(record)
            await store.close(30)
            return store

        store = asyncio.run(go())
        assert (store.written, store.dropped, store.pending) == (len(put), 0, 0)
        with psycopg.connect(url, autocommit=True) as connection:
            found = []
            for table in ("decisions", "attempts", "outcomes"):
                found += connection.execute(f"DELETE FROM pointsman_{table} RETURNING decision_id").fetchall()  # noqa: S608
        assert sorted(one for (one,) in found) == sorted(record.decision_id for record in put)

    check()


@pytest.mark.alone
async def test_the_bound_holds_and_counts(fresh_database: Make) -> None:
    store = DecisionStore("postgresql://u:p@127.0.0.1:1/d", DecisionSettings(queue_size=10, flush_interval=0.01))
    await store.start()
    slowest = 0.0
    for _ in range(1000):
        started = time.perf_counter()
        store.put(decision())
        slowest = max(slowest, time.perf_counter() - started)
    assert (store.pending, store.dropped, store.written) == (10, 990, 0)
    assert slowest < 0.05
    started = time.monotonic()
    await store.close(0.5)
    assert time.monotonic() - started < 3
    assert (store.pending, store.dropped) == (0, 1000)
    store.put(decision())  # after the end: counted, not raised
    assert store.dropped == 1001
    await store.close(0.5)


async def test_prompts_are_bounded_by_size_too() -> None:
    store = DecisionStore("postgresql://u:p@127.0.0.1:1/d", DecisionSettings())
    for _ in range(10):
        store.put(decision(prompt="x" * 2**23))
    assert (store.pending, store.dropped) == (8, 2)
    store.put(decision())
    assert store.pending == 9


@pytest.mark.parametrize(("url", "enabled"), [(None, True), ("postgresql://u:p@127.0.0.1:1/d", False)])
async def test_off_keeps_nothing(url: str | None, enabled: bool) -> None:
    store = DecisionStore(url, DecisionSettings(enabled=enabled))
    await store.start()
    store.put(decision())
    await store.close(1)
    assert (store.enabled, store.pending, store.dropped, store.written) == (False, 0, 0, 0)


async def test_put_from_threads(database_url: str) -> None:
    """LiteLLM calls some of its hooks in threads."""
    store = DecisionStore(database_url, DecisionSettings(batch_size=50, flush_interval=60))  # only a full batch wakes it
    await store.start()
    put = [[decision() for _ in range(200)] for _ in range(4)]
    threads = [threading.Thread(target=lambda some=some: [store.put(one) for one in some]) for some in put]
    for thread in threads:
        thread.start()
    await until(lambda: store.written >= 750)
    await store.close(10)
    assert sorted(ids(database_url)) == sorted(one.decision_id for some in put for one in some)


async def test_same_record_twice_is_one_row(database_url: str) -> None:
    """As after a connection that broke between the commit and its answer, and from two workers."""
    same: list[Record] = [decision(), Attempt(new_decision_id(), 1, "d", None, "ok"), Outcome(new_decision_id(), "success")]
    for _ in range(2):
        store = DecisionStore(database_url, FAST)
        await store.start()
        for record in [*same, *same]:
            store.put(record)
        await store.close(10)
        assert store.dropped == 0
    assert sorted(ids(database_url)) == sorted(record.decision_id for record in same)


async def test_one_bad_record_does_not_hold_up_the_others(database_url: str) -> None:
    good = [decision() for _ in range(20)]
    bad: list[Any] = [
        decision(group=None),  # refused by the database
        Attempt(new_decision_id(), "three", "d", None, "ok"),  # type: ignore[arg-type]  # no number
        decision(scores={"a": "high"}),
        decision(order=5),
    ]
    store = DecisionStore(database_url, DecisionSettings(batch_size=7, flush_interval=0.05))
    await store.start()
    for number, record in enumerate(good):
        store.put(record)
        if number % 5 == 0:
            store.put(bad[number // 5])
    await until(lambda: store.pending == 0)
    await store.close(10)
    assert (store.written, store.dropped) == (len(good), len(bad))
    assert sorted(ids(database_url)) == sorted(one.decision_id for one in good)


async def test_waits_for_the_migrations(fresh_database: Make) -> None:
    url = fresh_database()
    store = DecisionStore(url, FAST)
    await store.start()
    record = decision()
    store.put(record)
    await asyncio.sleep(0.3)
    assert (store.written, store.pending, store.dropped) == (0, 1, 0)
    await asyncio.to_thread(migrate, url, lambda _: None)
    await until(lambda: store.written == 1)
    await store.close(5)
    assert ids(url) == [record.decision_id]


async def test_prisma_schema_parameter(fresh_database: Make) -> None:
    url = fresh_database() + "?schema=Side&connection_limit=3"
    await asyncio.to_thread(migrate, url, lambda _: None)
    store = DecisionStore(url, FAST)
    await store.start()
    store.put(decision())
    await store.close(10)
    assert store.written == 1
    assert rows(url.partition("?")[0], 'SELECT count(*) FROM "Side_pointsman".pointsman_decisions') == [(1,)]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A server that may be killed."""
    server = PostgresServer(tmp_path / "data", UNSAFE_AND_FAST)
    server.start()
    yield server
    server.close()


async def test_postgres_restarts_under_load(own_server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    url = own_server.new_database()
    own_server.watch()
    store = DecisionStore(url, DecisionSettings(batch_size=20, flush_interval=0.01))
    await store.start()
    put: list[str] = []
    for kill in (False, True, False, True, False):
        if kill:
            await until(lambda: own_server.embedded.pid is not None)
            victim = own_server.embedded.pid
            assert victim
            os.kill(victim, signal.SIGKILL)
        for _ in range(100):
            record = decision()
            put.append(record.decision_id)
            store.put(record)
            await asyncio.sleep(0.002)
    await until(lambda: store.pending == 0)
    await store.close(10)
    assert (store.written, store.dropped) == (len(put), 0)
    assert sorted(ids(url)) == sorted(put)
    assert "cannot write" in caplog.text
    assert "writes again" in caplog.text
    assert own_server.embedded.status()["restarts"] >= 2
    assert str(urlsplit(url).password) not in caplog.text


async def test_a_database_that_hangs_does_not_hold_up_the_end(own_server: PostgresServer) -> None:
    url = own_server.new_database()
    store = DecisionStore(url, FAST)
    await store.start()
    store.put(decision())
    await until(lambda: store.written == 1)
    with psycopg.connect(url) as blocker:
        blocker.execute("LOCK TABLE pointsman_decisions")
        for _ in range(5):
            store.put(decision())
        await asyncio.sleep(0.3)  # the write is under way now
        started = time.monotonic()
        await store.close(0.5)
        assert time.monotonic() - started < 3
    assert (store.written, store.dropped, store.pending) == (1, 5, 0)


async def test_a_server_that_stands_still_does_not_hold_up_the_end(own_server: PostgresServer) -> None:
    """Not even the cancellation of the query is answered."""
    store = DecisionStore(own_server.new_database(), FAST)
    await store.start()
    store.put(decision())
    await until(lambda: store.written == 1)
    stopped = survivors(own_server.data_dir / "postgres")
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        store.put(decision())
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await store.close(0.5)
        assert time.monotonic() - started < 3
        assert (store.written, store.dropped, store.pending) == (1, 1, 0)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


class Background:
    """An event loop in a thread, for tests that are not coroutines."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


def test_stateful(new_database: Make) -> None:
    """Puts, cut connections, locked tables, new workers in any order: each record put and not dropped is there once."""
    url = new_database()
    background = Background()
    bound = 30

    class Store(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.put: list[str] = []
            self.dropped = 0
            self.written = 0
            self.blocker: psycopg.Connection[Any] | None = None
            with psycopg.connect(url, autocommit=True) as connection:
                for table in ("decisions", "attempts", "outcomes"):
                    connection.execute(f"DELETE FROM pointsman_{table}".encode())  # noqa: S608
            self.open()

        def open(self) -> None:
            self.store = DecisionStore(url, DecisionSettings(queue_size=bound, batch_size=4, flush_interval=0.01))
            background.call(self.store.start())

        @rule(count=st.integers(1, 40))
        def put_some(self, count: int) -> None:
            for _ in range(count):
                record = decision()
                self.put.append(record.decision_id)
                self.store.put(record)

        @rule()
        def cut_connections(self) -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'pointsman decisions' AND datname = current_database()"
                )

        @precondition(lambda self: self.blocker is None)
        @rule()
        def lock(self) -> None:
            self.blocker = psycopg.connect(url)
            self.blocker.execute("LOCK TABLE pointsman_decisions IN SHARE MODE")

        @precondition(lambda self: self.blocker is not None)
        @rule()
        def unlock(self) -> None:
            assert self.blocker is not None
            self.blocker.close()
            self.blocker = None

        @precondition(lambda self: self.blocker is None)
        @rule()
        def drain(self) -> None:
            background.call(until(lambda: self.store.pending == 0))

        @rule(timeout=st.sampled_from([0.0, 0.05]))
        def replace_worker(self, timeout: float) -> None:
            background.call(self.store.close(timeout))
            self.count()
            self.open()

        def count(self) -> None:
            assert self.store.pending == 0
            self.dropped += self.store.dropped
            self.written += self.store.written

        @invariant()
        def bounded(self) -> None:
            assert self.store.pending <= bound

        def teardown(self) -> None:
            with contextlib.suppress(AttributeError):
                if self.blocker is not None:
                    self.blocker.close()
                background.call(self.store.close(30))
                self.count()
                found = ids(url)
                assert len(found) == len(set(found))
                assert set(found) <= set(self.put)
                assert self.written + self.dropped == len(self.put)
                # A batch cut off at the end may have been committed without its answer: found, and counted as dropped.
                assert self.written <= len(found) <= self.written + self.dropped

    try:
        run_state_machine_as_test(Store, settings=settings(max_examples=12, stateful_step_count=15, deadline=None))
    finally:
        background.close()
