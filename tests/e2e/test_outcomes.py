"""One request, one outcome, under the decision that its answer names."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from support.calls import WAYS, Clients, errors
from support.gateway import Gateway
from support.processes import wait_for
from support.strategy import HARD
from support.upstreams import Upstreams

QUERY = """
    SELECT o.decision_id, o.status FROM pointsman_outcomes o JOIN pointsman_decisions d USING (decision_id)
    WHERE d.request_id = (SELECT request_id FROM pointsman_decisions WHERE decision_id = %s)
"""


def outcomes(gateway: Gateway, decision_id: str) -> list[dict[str, Any]]:
    """All outcomes of the request that a decision belongs to, once there is one."""
    assert gateway.database_url is not None
    with psycopg.connect(gateway.database_url, autocommit=True, row_factory=dict_row) as connection:
        wait_for(lambda: connection.execute(QUERY, (decision_id,)).fetchall(), 15, "an outcome is written")
        # Records are written in the order in which they were made: when a later request's is there, no earlier one is missing.
        said = WAYS["chat"](Clients(gateway, gateway.master_key), "auto", HARD)
        marker = said.header("decision-id")
        wait_for(lambda: connection.execute(QUERY, (marker,)).fetchall(), 15, "a later outcome is written")
        return connection.execute(QUERY, (decision_id,)).fetchall()


def test_a_request_that_fails_everywhere_has_one_failure(gateway: Gateway, upstreams: Upstreams, key: str) -> None:
    upstreams.fault("twice-strong", status=500)
    upstreams.fault("twice-weak", status=500)
    with pytest.raises(errors) as failed:
        WAYS["chat"](Clients(gateway, key), "twice", HARD)
    decision_id = failed.value.response.headers["x-pointsman-decision-id"]
    assert outcomes(gateway, decision_id) == [{"decision_id": decision_id, "status": "failure"}]


def test_a_request_that_was_retried_has_one_success(gateway: Gateway, upstreams: Upstreams, key: str) -> None:
    upstreams.fault("twice-strong", status=500)
    said = WAYS["chat"](Clients(gateway, key), "twice", HARD)
    decision_id = said.header("decision-id")
    assert decision_id is not None
    assert outcomes(gateway, decision_id) == [{"decision_id": decision_id, "status": "success"}]
