"""Feedback beside the outcomes on a real Postgres: found, changed, refused."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest
from psycopg import sql

from pointsman.database_url import own_schema
from pointsman.decisions import Decision, Outcome, new_decision_id
from pointsman.decisions.feedback import MAX_WAITING, Feedback, Given
from pointsman.decisions.store import DecisionStore
from pointsman.errors import DatabaseError, RequestError
from pointsman.settings import DecisionSettings
from support.gateway import free_port

FAST = DecisionSettings(flush_interval=0.05)


def made(key: str | None = "key", status: str = "success") -> tuple[Decision, Outcome]:
    decision = Decision(new_decision_id(), None, "auto", key_hash=key)
    return decision, Outcome(decision.decision_id, status, "d", created_at=time.time() - 60)


def stored(url: str, decision: Decision) -> list[float | None]:
    table = sql.Identifier(own_schema(url), "pointsman_outcomes")
    with psycopg.connect(url) as connection:
        query = sql.SQL("SELECT feedback FROM {} WHERE decision_id = %s").format(table)
        return [one for (one,) in connection.execute(query, (decision.decision_id,)).fetchall()]


@pytest.mark.requirement("F-6")
async def test_the_last_feedback_of_who_asked_is_kept(database_url: str) -> None:
    store, feedback = DecisionStore(database_url, FAST), Feedback(database_url, FAST)
    await store.start()
    decision, outcome = made()
    failed, ended = made(status="failure")
    early = asyncio.create_task(feedback.give(decision.decision_id, "key", 1.0))  # before it is written
    await asyncio.sleep(0)
    for record in (decision, outcome, failed, ended):
        store.put(record)
    first = await early
    assert (first.deployment_id, first.answered, first.before) == ("d", True, None)
    assert 59 < first.age < 120
    given = await asyncio.gather(*(feedback.give(decision.decision_id, "key", score) for score in (0.25, 0.25)))
    assert {one.before for one in given} == {1.0, 0.25}, "each knows what it takes the place of"
    assert stored(database_url, decision) == [0.25]
    assert isinstance(await feedback.give(failed.decision_id, "key", 0.0), Given)
    await store.close(5)


@pytest.mark.requirement("F-6")
async def test_nobody_learns_of_anothers_decision(database_url: str) -> None:
    store, feedback = DecisionStore(database_url, FAST), Feedback(database_url, FAST)
    await store.start()
    (mine, outcome), (nobodys, other) = made(), made(key=None)
    for record in (mine, outcome, nobodys, other):
        store.put(record)
    await store.close(5)
    asked = ((mine.decision_id, "other"), (mine.decision_id, ""), (nobodys.decision_id, ""), (new_decision_id(), "key"))
    refused = await asyncio.gather(*(feedback.give(*one, 0.0) for one in asked), return_exceptions=True)
    assert all(isinstance(one, RequestError) and one.code == "E4004" for one in refused)
    assert len(set(map(str, refused))) == 1, "one and the same"
    assert stored(database_url, mine) == [None]


async def test_without_a_database_it_says_so() -> None:
    away = f"postgresql://u:secret@127.0.0.1:{free_port()}/d"
    for feedback in (
        Feedback(None, FAST),
        Feedback("postgresql://u@h/d", DecisionSettings(enabled=False)),
        Feedback(away, FAST),
    ):
        with pytest.raises(DatabaseError) as refused:
            await feedback.give(new_decision_id(), "key", 1.0)
        assert refused.value.code == "E4510"
        assert "127.0.0.1" not in str(refused.value)


async def test_what_waits_is_bounded(database_url: str) -> None:
    feedback = Feedback(database_url, FAST)
    tasks = [asyncio.create_task(feedback.give(new_decision_id(), "key", 1.0)) for _ in range(MAX_WAITING + 5)]
    await asyncio.sleep(0)
    over = [task for task in tasks if task.done()]
    assert len(over) == 5
    assert {getattr(task.exception(), "code", None) for task in over} == {"E4510"}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
