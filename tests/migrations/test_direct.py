"""Migrations want one session of the server; a pooler that takes turns is noticed before anything is changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pointsman.errors import DatabaseError
from pointsman.migrations.direct import takes_turns
from pointsman.migrations.runner import migrate, status
from support.gateway import pointsman
from support.pooler import pooler

Make = Callable[[], str]


def silent(_: str) -> None:
    """No progress."""


@pytest.fixture(params=[(1, True), (2, True), (2, False), (5, False)], ids=lambda p: f"{p[0]}-{'last' if p[1] else 'round'}")
def pooled(fresh_database: Make, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A database's URL, and the one through a pooler in transaction mode."""
    url = fresh_database()
    size, newest_first = request.param
    with pooler(url, size=size, newest_first=newest_first) as through:
        yield url, through


@pytest.mark.requirement("R-16")
def test_a_pooler_that_takes_turns_is_refused_before_anything_is_changed(pooled: tuple[str, str]) -> None:
    url, through = pooled
    for _ in range(3):
        with pytest.raises(DatabaseError) as caught:
            migrate(through, silent)
        assert caught.value.code == "E4508"
        assert "DIRECT_URL" in str(caught.value.mend)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_noticed_under_the_traffic_of_others(fresh_database: Make) -> None:
    stop = threading.Event()
    with pooler(fresh_database(), size=3) as through:

        def work() -> None:
            with psycopg.connect(through, autocommit=True, prepare_threshold=None) as connection:
                while not stop.is_set():
                    connection.execute("SELECT pg_sleep(0.001)")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                with psycopg.connect(through, autocommit=True, prepare_threshold=None) as connection:
                    assert takes_turns(connection, through)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_direct_connections_and_poolers_in_session_mode_are_right(fresh_database: Make) -> None:
    url = fresh_database()
    with psycopg.connect(url, autocommit=True) as connection:
        assert not takes_turns(connection, url)
    with pooler(url, size=1, mode="session") as through:  # and full with one client
        assert len(migrate(through, silent).applied) > 200
    assert status(url).current


def test_direct_url_is_the_way_past_and_status_needs_none(fresh_database: Make) -> None:
    """Instances that only look whether the schema is current reach the database through the pooler alone."""
    url = fresh_database()
    with pooler(url) as through:
        refused = pointsman("db", "migrate", env={"DATABASE_URL": through})
        assert refused.returncode == 1
        assert "DIRECT_URL" in refused.stderr
        assert pointsman("db", "migrate", env={"DATABASE_URL": through, "DIRECT_URL": url}).returncode == 0
        for _ in range(3):
            assert status(through).current
        assert pointsman("db", "status", env={"DATABASE_URL": through}).returncode == 0
