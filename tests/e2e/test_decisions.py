"""Decision, attempts and outcome of a request are in Postgres, under the id that the answer's header names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from support.calls import WAYS, Clients, errors
from support.gateway import Gateway
from support.postgres import OWN_FIRST
from support.processes import wait_for
from support.strategy import EASY, HARD, STRATEGY
from support.upstreams import Upstreams

Row = dict[str, Any]
Database = psycopg.Connection[Row]


@pytest.fixture(scope="module")
def clients(gateway: Gateway, key: str) -> Clients:
    return Clients(gateway, key)


@pytest.fixture(scope="module")
def database(gateway: Gateway) -> Iterator[Database]:
    assert gateway.database_url is not None
    with psycopg.connect(gateway.database_url, autocommit=True, row_factory=dict_row, options=OWN_FIRST) as connection:
        yield connection


def rows(database: Database, table: str, decision_id: str | None, count: int = 1) -> list[Row]:
    """The rows of one decision; they are written in the background, so they are waited for."""
    query: Any = f"SELECT * FROM pointsman_{table} WHERE decision_id = %s ORDER BY created_at"  # noqa: S608 - our own names

    def there() -> list[Row]:
        found = database.execute(query, (decision_id,)).fetchall()
        return found if len(found) >= count else []

    return wait_for(there, 15, f"{count} row(s) in pointsman_{table} for {decision_id}")


@pytest.mark.parametrize("way", WAYS)
def test_a_request_leaves_a_decision_an_attempt_and_an_outcome(
    clients: Clients, key: str, database: Database, way: str
) -> None:
    said = WAYS[way](clients, "auto", HARD)
    (decision,) = rows(database, "decisions", said.header("decision-id"))
    assert (decision["model_group"], decision["strategy"], decision["version"]) == ("auto", STRATEGY, said.header("version"))
    assert decision["ranking"] == ["auto-strong", "auto-weak"]
    assert decision["scores"]["auto-strong"] > decision["scores"]["auto-weak"]
    assert decision["model"] == said.header("model")
    assert decision["key_hash"] == hashlib.sha256(key.encode()).hexdigest()
    assert decision["fallback"] is None
    assert decision["prompt"] is None, "no prompt text unless asked"
    assert decision["microseconds"] > 0
    (attempt,) = rows(database, "attempts", said.header("decision-id"))
    assert (attempt["number"], attempt["deployment_id"], attempt["outcome"]) == (1, "auto-strong", "ok")
    (outcome,) = rows(database, "outcomes", said.header("decision-id"))
    assert (outcome["status"], outcome["deployment_id"]) == ("success", "auto-strong")
    assert outcome["completion_tokens"] == 3
    assert outcome["prompt_tokens"] >= len(HARD.split())
    assert outcome["latency_ms"] > 0


def test_a_failover_leaves_both_attempts(upstreams: Upstreams, clients: Clients, database: Database) -> None:
    upstreams.fault("twice-strong", status=500)
    said = WAYS["chat"](clients, "twice", HARD)
    assert said.served_by == "twice-weak"
    (last,) = rows(database, "decisions", said.header("decision-id"))
    query = (
        "SELECT a.* FROM pointsman_attempts a JOIN pointsman_decisions d USING (decision_id) WHERE d.request_id = %s ORDER BY 2"
    )

    def both() -> list[Row]:
        found = database.execute(query, (last["request_id"],)).fetchall()
        return found if len(found) == 2 else []

    attempts = wait_for(both, 10, "both attempts")
    assert [(a["number"], a["deployment_id"], a["outcome"]) for a in attempts] == [
        (1, "twice-strong", "error"),
        (2, "twice-weak", "ok"),
    ]
    assert attempts[0]["status"] == 500
    (first,) = rows(database, "decisions", attempts[0]["decision_id"])
    assert (first["strategy"], first["ranking"]) == (STRATEGY, ["twice-strong", "twice-weak"])
    (outcome,) = rows(database, "outcomes", said.header("decision-id"))
    assert (outcome["status"], outcome["deployment_id"]) == ("success", "twice-weak")


def test_a_failure_leaves_an_outcome_of_failure(upstreams: Upstreams, clients: Clients, database: Database) -> None:
    upstreams.fault("other", status=400)
    with pytest.raises(errors) as failed:
        WAYS["chat"](clients, "other", "hello")
    decision_id = failed.value.response.headers["x-pointsman-decision-id"]
    (outcome,) = rows(database, "outcomes", decision_id)
    assert (outcome["status"], outcome["completion_tokens"]) == ("failure", 0)
    (attempt,) = rows(database, "attempts", decision_id)
    assert (attempt["outcome"], attempt["status"]) == ("error", 400)


def test_cost_is_litellms(clients: Clients, database: Database) -> None:
    said = WAYS["chat"](clients, "priced", "hello there")
    (outcome,) = rows(database, "outcomes", said.header("decision-id"))
    assert outcome["cost"] == pytest.approx(0.05)


def test_rows_lie_in_a_partition_of_their_day(clients: Clients, database: Database) -> None:
    said = WAYS["chat"](clients, "auto", EASY)
    rows(database, "decisions", said.header("decision-id"))
    found = database.execute(
        "SELECT tableoid::regclass::text AS part, created_at FROM pointsman_decisions WHERE decision_id = %s",
        (said.header("decision-id"),),
    ).fetchone()
    assert found is not None
    assert found["part"] != "pointsman_decisions_default"
    assert found["created_at"].strftime("%Y%m%d") in found["part"].replace("_", "").replace("-", "")
