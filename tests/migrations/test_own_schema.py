"""Our tables move out of LiteLLM's schema while the version before goes on reading and writing by the old names."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.database_url import libpq_url, own_schema
from pointsman.decisions import Decision, new_decision_id
from pointsman.decisions.store import DecisionStore, erase, maintain
from pointsman.errors import DatabaseError
from pointsman.migrations.runner import migrate, require_current, status
from pointsman.migrations.sources import our_migrations
from pointsman.settings import DecisionSettings
from pointsman.strategies.rollout import PostgresRollout, blocked
from support.processes import wait_for

Make = Callable[[], str]
NOW = datetime.now(UTC)

# What the version before the move (0.1) sends, word for word.
BATCH = (
    "INSERT INTO pointsman_{table} ({names}) SELECT {names} FROM jsonb_to_recordset(%s::jsonb) AS r({typed}) "
    "ON CONFLICT DO NOTHING"
)
DECISION = {
    "decision_id": "text", "created_at": "timestamptz", "request_id": "text", "trace_id": "text", "key_hash": "text",
    "team_id": "text", "user_id": "text", "model_group": "text", "strategy": "text", "version": "text", "variant": "text",
    "scores": "jsonb", "dropped": "jsonb", "ranking": "jsonb", "model": "text", "policy": "text", "microseconds": "bigint",
    "fallback": "text", "prompt": "text",
}  # fmt: skip
OUTCOME = {
    "decision_id": "text", "created_at": "timestamptz", "status": "text", "deployment_id": "text", "prompt_tokens": "bigint",
    "completion_tokens": "bigint", "cost": "double precision", "latency_ms": "double precision", "feedback": "double precision",
}  # fmt: skip
ERASE = (
    "WITH gone AS (DELETE FROM pointsman_decisions WHERE key_hash = %(key)s OR user_id = %(user)s RETURNING decision_id), "
    "a AS (DELETE FROM pointsman_attempts WHERE decision_id IN (SELECT decision_id FROM gone) RETURNING 1), "
    "o AS (DELETE FROM pointsman_outcomes WHERE decision_id IN (SELECT decision_id FROM gone) RETURNING 1) "
    "SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM a) + (SELECT count(*) FROM o)"
)
UPDATE = (
    "UPDATE pointsman_rollout SET generation = %s, pinned_sha256 = %s, target_sha256 = %s, blocked_sha256 = %s,"
    " shadow_sha256 = %s, canary_share = %s, max_sequence = %s, pointer_sha256 = %s, actor = %s, reason = %s,"
    " updated_at = coalesce(nullif(%s, '')::timestamptz, updated_at) WHERE strategy = %s"
)
HISTORY = (
    "INSERT INTO pointsman_rollout_history (strategy, generation, action, sha256, actor, reason)"
    " VALUES (%s, %s, %s, %s, %s, %s)"
)
NOTE = (
    "INSERT INTO pointsman_migrations (name, sha256) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET sha256 = EXCLUDED.sha256"
)


def batch(table: str, columns: dict[str, str]) -> bytes:
    typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    return BATCH.format(table=table, names=", ".join(columns), typed=typed).encode()


def decision_row(name: str, **fields: Any) -> dict[str, Any]:
    row = dict.fromkeys(DECISION) | {
        "decision_id": name,
        "created_at": NOW.isoformat(),
        "model_group": "auto",
        "variant": "live",
    }
    return row | {"scores": {}, "dropped": [], "ranking": [], "policy": "argmax", "microseconds": 1} | fields


def outcome_row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(OUTCOME) | {"decision_id": name, "created_at": NOW.isoformat(), "status": "success"}
    return row | {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5}


class Before:
    """An instance of the version before, as the database sees it."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(libpq_url(url), autocommit=True, prepare_threshold=None)

    def write(self, **fields: Any) -> str:
        name = uuid.uuid4().hex
        with self.connection.transaction():
            for _ in range(2):  # written again, as when the first answer was lost
                self.connection.execute(batch("decisions", DECISION), (json.dumps([decision_row(name, **fields)]),))
            self.connection.execute(batch("outcomes", OUTCOME), (json.dumps([outcome_row(name)]),))
        return name

    def change(self, strategy: str) -> int:
        with self.connection.transaction():
            self.connection.execute(
                "INSERT INTO pointsman_rollout (strategy) VALUES (%s) ON CONFLICT (strategy) DO NOTHING", (strategy,)
            )
            row = self.connection.execute(
                "SELECT generation FROM (SELECT * FROM pointsman_rollout WHERE strategy = %s FOR UPDATE) r", (strategy,)
            ).fetchone()
            assert row is not None
            after = int(row[0]) + 1
            values = (after, None, None, ["a" * 64], None, 0.0, 0, None, "me", "why", NOW.isoformat(), strategy)
            self.connection.execute(UPDATE, values)
            self.connection.execute(HISTORY, (strategy, after, "block", "a" * 64, "me", "why"))
        return after

    def erase(self, key_hash: str) -> int:
        row = self.connection.execute(ERASE, {"key": key_hash, "user": None}).fetchone()
        assert row is not None
        return int(row[0])

    def start(self) -> dict[str, str]:
        """What its migrator reads and notes when an instance of it starts once more."""
        found = self.connection.execute("SELECT to_regclass(quote_ident('pointsman_migrations')) IS NOT NULL").fetchone()
        assert found == (True,)
        self.connection.execute("CREATE TABLE IF NOT EXISTS pointsman_migrations (name text PRIMARY KEY, sha256 text NOT NULL)")
        self.connection.execute(NOTE, ("request_log_indexes:0.4.0", "-"))
        return dict(self.connection.execute("SELECT name, sha256 FROM pointsman_migrations").fetchall())


@pytest.fixture
def before_the_move(fresh_database: Make, tmp_path: Path) -> str:
    """A database as the version before left it: tables in LiteLLM's schema, with a partition of today."""
    folder = tmp_path / "before"
    folder.mkdir()
    for name in ("0001_rollout", "0002_decisions"):
        shutil.copy(next(one.path for one in our_migrations() if one.name == name), folder)
    url = fresh_database()
    migrate(url, lambda _: None, our_folder=folder)
    with psycopg.connect(url, autocommit=True) as connection:
        for table in ("decisions", "attempts", "outcomes"):
            day = f"FOR VALUES FROM ('{NOW:%Y-%m-%d}T00:00Z') TO ('{NOW:%Y-%m-%d}T24:00Z')"
            connection.execute(f"CREATE TABLE pointsman_{table}_{NOW:%Y%m%d} PARTITION OF pointsman_{table} {day}".encode())
    return url


@contextmanager
def working(url: str, errors: list[Exception]) -> Iterator[dict[str, list[str]]]:
    """Instances of the version before at work until the end of the block; what they were acknowledged."""
    done: dict[str, list[str]] = {"decisions": [], "changes": []}
    stop = threading.Event()

    def work(kind: str) -> None:
        try:
            before = Before(url)
            while not stop.is_set():
                done[kind].append(before.write() if kind == "decisions" else str(before.change("s")))
        except Exception as error:  # noqa: BLE001 - the test tells it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(kind,), daemon=True) for kind in ("decisions", "decisions", "changes")]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


@pytest.mark.requirement("R-16")
def test_the_version_before_works_on_while_the_tables_move(before_the_move: str) -> None:
    url, errors = before_the_move, list[Exception]()
    first = Before(url).write(key_hash="early")
    with working(url, errors) as done:
        wait_for(lambda: min(map(len, done.values())) > 20, 30, "writes before the move")
        assert migrate(url, lambda _: None).applied == tuple(one.name for one in our_migrations()[2:])
        counts = {kind: len(those) for kind, those in done.items()}
        wait_for(lambda: all(len(done[kind]) > counts[kind] + 20 for kind in done), 30, "writes after the move")
    assert errors == []
    with psycopg.connect(url) as connection:
        for table in ("decisions", "outcomes"):
            query = f"SELECT decision_id FROM public_pointsman.pointsman_{table}"  # noqa: S608 - our own names
            names = [name for (name,) in connection.execute(query.encode())]
            assert sorted(names) == sorted([first, *done["decisions"]]), "each acknowledged one, once"
        generations = connection.execute("SELECT generation::text FROM public_pointsman.pointsman_rollout_history ORDER BY id")
        assert [one for (one,) in generations] == done["changes"] == [str(n + 1) for n in range(len(done["changes"]))]
        where = connection.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'pointsman%'").fetchall()
        assert where == [("public_pointsman",)], "nothing of ours is left in LiteLLM's schema but views"


async def test_both_versions_see_what_the_other_does(before_the_move: str) -> None:
    url = before_the_move
    before = Before(url)
    await asyncio.to_thread(migrate, url, lambda _: None)
    await maintain(url, 30)
    store = DecisionStore(url, DecisionSettings(flush_interval=0.01))
    await store.start()
    mine = new_decision_id()
    store.put(Decision(mine, None, "auto", key_hash="k"))
    await store.close(10)
    assert store.written == 1
    theirs = before.write(key_hash="k")
    seen = before.connection.execute("SELECT decision_id FROM pointsman_decisions WHERE key_hash = 'k'").fetchall()
    assert {name for (name,) in seen} == {mine, theirs}
    assert before.change("s") == 1
    assert (await PostgresRollout(url).read("s")).generation == 1
    await PostgresRollout(url).change("s", blocked("b" * 64, "c" * 64, "me", "why"))
    assert before.change("s") == 3
    assert before.erase("k") == 3  # two decisions, one outcome
    before.write(key_hash="k")
    assert await erase(url, key_hash="k") == 2
    ledger = before.start()
    assert set(ledger) == {*(one.name for one in our_migrations()), "request_log_indexes:0.4.0"}
    assert status(url).current


def test_rights_go_along(before_the_move: str) -> None:
    """A role that serves, but does not migrate, has its rights by GRANT: for the old names and the new ones."""
    url, role = before_the_move, f"app_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'w'".encode())
        owner.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}"'.encode())
    migrate(url, lambda _: None)
    theirs = url.replace(urlsplit(url).netloc, f"{role}:w@127.0.0.1:{urlsplit(url).port}")
    before = Before(theirs)
    before.write(key_hash="k")
    assert before.change("s") == 1
    assert before.erase("k") == 2
    assert asyncio.run(erase(theirs, key_hash="nobody")) == 0
    assert asyncio.run(PostgresRollout(theirs).read("s")).generation == 1
    require_current(theirs)  # what `serve --no-migrate` asks


def test_a_role_that_may_not_make_a_schema(fresh_database: Make) -> None:
    """The message holds the statement that mends it; where an administrator ran that, no right on the database is wanted."""
    url, role = fresh_database(), f"small {uuid.uuid4().hex[:8]}"
    database = urlsplit(url).path.lstrip("/")
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'w'".encode())
        owner.execute(
            f'GRANT USAGE, CREATE ON SCHEMA public TO "{role}"; REVOKE CREATE ON DATABASE "{database}" FROM PUBLIC'.encode()
        )
        theirs = url.replace(urlsplit(url).netloc, f"{quote(role)}:w@127.0.0.1:{urlsplit(url).port}")
        for _ in range(2):  # first it is missing, then it is there and may not be used
            with pytest.raises(DatabaseError) as caught:
                migrate(theirs, lambda _: None)
            assert caught.value.code == "E4501"
            assert owner.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
            statement = str(caught.value.mend).partition("run: ")[2]
            if statement.startswith("CREATE SCHEMA"):
                assert statement == f'CREATE SCHEMA public_pointsman AUTHORIZATION "{role}";'
                owner.execute("CREATE SCHEMA public_pointsman")
            else:
                owner.execute(statement.encode())
    assert len(migrate(theirs, lambda _: None).applied) > 200
    assert status(theirs).current


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=63))
def test_name_of_the_schema(theirs: str) -> None:
    """Within what Postgres keeps of a name, and never LiteLLM's own."""
    name = own_schema(f"postgresql://h/d?schema={quote(theirs, safe='')}")
    assert len(name.encode()) <= 63
    assert name.endswith("pointsman")
    assert name != theirs
