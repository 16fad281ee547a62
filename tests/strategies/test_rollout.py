"""The desired state: the same rules in Postgres and in a file, atomic among instances, and away when the database is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pointsman.errors import BundleError, DatabaseError, ProcessError
from pointsman.strategies.rollout import (
    DesiredState,
    FileRollout,
    PostgresRollout,
    Rollout,
    accepted,
    blocked,
    open_rollout,
    pinned,
    unblocked,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture(params=["file", "postgres"])
def keeper(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Rollout]:
    """Factory of keepers of one and the same state."""
    if request.param == "file":
        return lambda: FileRollout(tmp_path / "sub" / "rollout.json")
    url = request.getfixturevalue("database_url")
    return lambda: PostgresRollout(url)


async def test_what_nobody_touched(keeper: Callable[[], Rollout]) -> None:
    assert await keeper().read("knn") == DesiredState(strategy="knn")


async def test_block_pin_unblock(keeper: Callable[[], Rollout]) -> None:
    rollout = keeper()
    state = await rollout.change("knn", blocked(B, A, "ops", "worse answers"))
    assert state.blocked_sha256 == {B}
    assert (state.target_sha256, state.generation, state.actor, state.reason) == (A, 1, "ops", "worse answers")
    assert await keeper().read("knn") == state, "another instance sees the same"
    assert await keeper().read("other") == DesiredState(strategy="other")
    assert (await rollout.change("knn", blocked(B, C, "late", "me too"))) == state, "blocked once; the first one's choice holds"
    with pytest.raises(BundleError) as caught:
        await rollout.change("knn", pinned(B, "ops", "try"))
    assert caught.value.code == "E4311"
    with pytest.raises(BundleError) as caught:
        await rollout.change("knn", blocked(A, B, "ops", "to a blocked one"))
    assert caught.value.code == "E4313"
    assert await keeper().read("knn") == state, "what was refused changed nothing"
    state = await rollout.change("knn", pinned(C, "ops", "known good"))
    assert (state.pinned_sha256, state.generation) == (C, 2)
    state = await rollout.change("knn", blocked(C, A, "ops", "not so good"))
    assert (state.pinned_sha256, state.blocked_sha256, state.generation) == (None, {B, C}, 3)
    state = await rollout.change("knn", unblocked(B, "ops", "was innocent"))
    assert (state.blocked_sha256, state.generation) == ({C}, 4)


async def test_the_newest_pointer_only_rises(keeper: Callable[[], Rollout]) -> None:
    rollout = keeper()
    for sequence, expected in ((3, 3), (2, 3), (7, 7), (7, 7)):
        state = await rollout.change("knn", accepted(sequence, f"{sequence}" * 64, "instance"))
        assert (state.max_sequence, state.generation) == (expected, 0)
    assert (await keeper().read("knn")).pointer_sha256 == "7" * 64


async def test_many_at_once_lose_nothing(keeper: Callable[[], Rollout]) -> None:
    rollout = keeper()
    digests = [f"{number:064x}" for number in range(1, 9)]
    await asyncio.gather(*(rollout.change("knn", blocked(digest, A, "ops", "all of them")) for digest in digests))
    state = await keeper().read("knn")
    assert state.blocked_sha256 == set(digests)
    assert state.generation == len(digests)


async def test_the_history_tells_who_and_why(database_url: str) -> None:
    rollout = PostgresRollout(database_url)
    await rollout.change("knn", accepted(1, A, "instance"))
    await rollout.change("knn", accepted(1, A, "another"))
    await rollout.change("knn", blocked(B, A, "ops", "worse"))
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT action, sha256, actor, reason, generation FROM pointsman_rollout_history ORDER BY id"
        ).fetchall()
    assert rows == [("accept", None, "instance", "sequence 1", 0), ("block", B, "ops", "worse", 1)]


@pytest.mark.requirement("R-4.1")
async def test_a_database_that_is_away(database_url: str) -> None:
    parts = database_url.rsplit("@", 1)
    away = PostgresRollout(f"{parts[0]}@127.0.0.1:1/none")
    with pytest.raises(DatabaseError) as caught:
        await away.read("knn")
    assert caught.value.code == "E4500"
    password = parts[0].rsplit(":", 1)[1]
    assert password not in str(caught.value)


async def test_prismas_parameters_do_not_matter(database_url: str) -> None:
    separator = "&" if "?" in database_url else "?"
    rollout = PostgresRollout(f"{database_url}{separator}connection_limit=5&pool_timeout=10&schema=public&pgbouncer=true")
    assert await rollout.read("knn") == DesiredState(strategy="knn")


async def test_a_schema_that_is_not_there(fresh_database: Callable[[], str]) -> None:
    with pytest.raises(DatabaseError, match="pointsman db migrate"):
        await PostgresRollout(fresh_database()).read("knn")


async def test_a_locked_row_is_not_waited_for_for_ever(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.strategies.rollout.TIMEOUT", 0.5)
    rollout = PostgresRollout(database_url)
    await rollout.change("knn", accepted(1, A, "x"))
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT * FROM pointsman_rollout FOR UPDATE")
        with pytest.raises(DatabaseError):
            await rollout.change("knn", accepted(2, B, "x"))
    assert (await rollout.change("knn", accepted(2, B, "x"))).max_sequence == 2


async def test_a_damaged_file_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    rollout = FileRollout(tmp_path / "rollout.json")
    await rollout.change("knn", blocked(B, A, "ops", "bad"))
    (tmp_path / "rollout.json").write_bytes(b'[{"strategy": "knn"')
    with pytest.raises(ProcessError) as caught:
        await rollout.read("knn")
    assert caught.value.code == "E4602"


async def test_which_keeper(tmp_path: Path) -> None:
    assert isinstance(open_rollout(None, tmp_path), FileRollout)
    assert isinstance(open_rollout("postgresql://u:p@127.0.0.1/db", tmp_path), PostgresRollout)
