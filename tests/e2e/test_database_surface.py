"""Zero engine errors over LiteLLM's management surface: every route is visited, or left out for a stated reason.

The calls are data, in `tests/support/surface/*.yaml`. A new version of LiteLLM shows here what it added, dropped or broke.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from support.gateway import Gateway
from support.processes import wait_for
from support.surface import probe
from support.surface.probe import EngineError, Route
from support.surface.tour import Answer, Call, Tour, calls, exclusions, tables
from support.topology import priced, routed_config, single
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("persistence")

# What the engine answers with an error and must: (code, the function of LiteLLM that asked) -> why.
# (P2025: there is no such row; the client makes None of it.)
EXPECTED = {
    ("P2010", "create_views.create_missing_views"): "asks for a view that it is about to make",
    ("P2010", "proxy_server.model_metrics_exceptions"): "LiteLLM: its query has three parameters and is given four values",
    (
        "P2025",
        "model_access_group_management_endpoints.delete_access_group",
    ): "its budget is deleted once more",
    ("P2025", "config_override_endpoints.delete_cyberark_config"): "nothing was stored",
    ("P2025", "config_override_endpoints.delete_hashicorp_vault_config"): "nothing was stored",
}
GONE = "GET /v1/skills/{skill_id}"  # the tour has deleted it; LiteLLM answers 500 then
TROUBLE = re.compile(
    r"prisma|\bP[1-6]0\d\d\b|RawQueryError|DataError|query engine|inside the engine|Database unavailable", re.IGNORECASE
)
# What holds such a word and means no trouble: the query with too many values, for one (see EXPECTED).
HARMLESS = re.compile(r"^query engine ready|✓ query engine|RawQueryError")


@dataclass(frozen=True)
class Stand:
    """The gateway after the tour, with what the tour brought home."""

    gateway: Gateway
    tour: Tour
    answers: list[Answer]
    directory: Path

    @property
    def routes(self) -> list[Route]:
        return probe.routes(self.directory)

    @property
    def errors(self) -> list[EngineError]:
        return probe.engine_errors(self.directory)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        assert self.gateway.database_url is not None
        with psycopg.connect(self.gateway.database_url) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def write(self, statement: str) -> int:
        assert self.gateway.database_url is not None
        with psycopg.connect(self.gateway.database_url) as connection:
            return connection.execute(statement.encode()).rowcount


@pytest.fixture(scope="module")
def stand(upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A gateway of one worker, so that what a call leaves in memory the next one meets; its background jobs run often."""
    models = [single(upstreams, "plain", "openai/plain-model"), priced(upstreams)]
    models.append(single(upstreams, "embed", "openai/text-embedding-3-small", {"mode": "embedding"}))
    config = routed_config(models, {}, {}, telemetry={"logs": {"provider_messages": True}})  # what is told of errors is read
    config["general_settings"] |= {
        "proxy_budget_rescheduler_min_time": 1,
        "proxy_budget_rescheduler_max_time": 1,
        "background_health_checks": True,
        "health_check_interval": 2,
        "maximum_spend_logs_retention_period": "7d",
        "maximum_spend_logs_retention_interval": "2s",
    }
    directory = tmp_path_factory.mktemp("surface")
    gateway = Gateway(config, directory / "gateway", new_database(), env=probe.hook_environment(directory), workers=1)
    gateway.start()
    try:
        limits = httpx.Limits(max_keepalive_connections=0)  # after an answer of 500 the server closes the connection
        with httpx.Client(base_url=gateway.url, trust_env=False, timeout=60, limits=limits) as client:
            known = {"master_key": gateway.master_key, "upstream_url": upstreams.url("plain")}
            tour = Tour(client, gateway.master_key, known)
            yield Stand(gateway, tour, list(tour.run(calls())), directory)
    finally:
        gateway.stop()


def unexpected(errors: list[EngineError]) -> list[str]:
    return [str(error) for error in errors if not any((error.code, caller) in EXPECTED for caller in error.callers)]


@pytest.mark.requirement("R-1.1", "R-4.1")
def test_every_call_is_answered_as_it_should_be(stand: Stand) -> None:
    wrong = [str(answer) for answer in stand.answers if not answer.as_expected]
    assert not wrong, "\n".join(wrong)


@pytest.mark.requirement("R-1.1")
def test_every_route_is_visited_or_left_out_for_a_reason(stand: Stand) -> None:
    routes, made = stand.routes, {call.call for call in calls()}
    assert len(routes) > 1000, "the whole table, lazily loaded features too"
    assert not made - {str(route) for route in routes}, "the tour calls what is not there"
    # A path may have other names (/end_user for /customer): what counts is the handler. Daily activity has one for all paths.
    handlers = {(r.method, r.handler) for r in routes if str(r) in made and "daily_activity_routes" not in r.handler}
    left = [r for r in routes if str(r) not in made and (r.method, r.handler) not in handlers]
    reasons = exclusions()
    shown = {f"{route} {route.handler}" for route in left}
    new = [route for route in sorted(shown) if not any(fnmatchcase(route, glob) for glob in reasons)]
    assert not new, "give each a call in tests/support/surface/*.yaml, or a reason in exclusions.yaml:\n" + "\n".join(new)
    stale = [glob for glob in reasons if not any(fnmatchcase(route, glob) for route in shown)]
    assert not stale, f"these exclusions exclude nothing: {stale}"


@pytest.mark.requirement("R-4.1")
def test_a_plain_key_reads_without_an_error_too(stand: Stand) -> None:
    before = len(stand.errors)
    key = stand.tour.known["plain_key"]
    reads = [call for call in calls() if call.method == "GET" and call.key is None and call.call != GONE]
    failed = [
        str(answer) for answer in (read(stand, call, key) for call in reads) if answer.status >= 500 and not answer.as_expected
    ]
    assert not failed, "\n".join(failed)
    assert not unexpected(stand.errors[before:]), "\n".join(unexpected(stand.errors[before:]))


def read(stand: Stand, call: Call, key: str) -> Answer:
    """One call of the tour again, as somebody else."""
    return stand.tour.send(call.model_copy(update={"save": {}, "until": None}), key)


@pytest.mark.requirement("R-1.1")
def test_every_name_of_a_handler_is_asked_for_at_least_once(stand: Stand) -> None:
    """Alias paths (/end_user for /customer, /models for /v1/models) that are read by GET and take no parameter."""
    made = {call.call for call in calls()}
    named = {str(route): route for route in stand.routes if "{" not in route.path}
    handlers = {(c.method, named[c.call].handler): c for c in calls() if c.call in named and c.expect is None}
    aliases = [r for r in named.values() if r.method == "GET" and str(r) not in made and (r.method, r.handler) in handlers]
    same = [handlers[route.method, route.handler].model_copy(update={"call": str(route), "until": None}) for route in aliases]
    answers = list(stand.tour.run(same))
    assert len(answers) > 10
    assert not [str(answer) for answer in answers if not answer.as_expected]


@pytest.mark.requirement("R-4.1")
def test_what_was_acknowledged_is_in_the_tables(stand: Stand) -> None:
    asked = tables()
    wanted = [{"query": each["query"], "row": [each["row"]]} for each in asked["written"]]

    def found() -> list[dict[str, object]]:
        return [{"query": each["query"], "row": [list(row) for row in stand.rows(each["query"])]} for each in asked["written"]]

    with suppress(AssertionError):  # spend is written by jobs; the comparison below says what differs
        wait_for(lambda: found() == wanted, 90, "every table has what was acknowledged")
    assert found() == wanted
    left = {table: stand.rows(f'SELECT * FROM "{table}" WHERE {where}') for table, where in asked["deleted"].items()}  # noqa: S608
    assert not {table: rows for table, rows in left.items() if rows}


@pytest.mark.requirement("R-4.1")
def test_the_job_that_resets_budgets_does(stand: Stand) -> None:
    # In LiteLLM's own interval a budget is reset once in minutes; here each second. The time of the reset is put into the past.
    due = "spend = 5, budget_reset_at = now() at time zone 'utc' - interval '1 hour', budget_duration = '30d'"
    tables = {
        "LiteLLM_VerificationToken": "key_alias = 'k 1'",
        "LiteLLM_UserTable": "user_id = 'u-1'",
        "LiteLLM_TeamTable": "team_id = 't-1'",
    }
    for table, where in tables.items():
        assert stand.write(f'UPDATE "{table}" SET {due} WHERE {where}') == 1  # noqa: S608
    past = "budget_reset_at = now() at time zone 'utc' - interval '1 hour'"
    assert stand.write(f"""UPDATE "LiteLLM_BudgetTable" SET {past} WHERE budget_id = 'b-1'""") == 1  # noqa: S608
    assert stand.write("""UPDATE "LiteLLM_EndUserTable" SET spend = 5 WHERE user_id = 'c-1'""") == 1

    def reset() -> bool:
        rows = [
            row
            for table, where in tables.items()
            for row in stand.rows(f'SELECT spend = 0 AND budget_reset_at > now() FROM "{table}" WHERE {where}')  # noqa: S608
        ]
        rows += stand.rows("""SELECT budget_reset_at > now() FROM "LiteLLM_BudgetTable" WHERE budget_id = 'b-1'""")
        rows += stand.rows("""SELECT spend = 0 FROM "LiteLLM_EndUserTable" WHERE user_id = 'c-1'""")
        return all(row[0] for row in rows)

    wait_for(reset, 30, "every budget that was due is reset", interval=0.3)


@pytest.mark.requirement("R-4.1")
def test_the_engine_answered_no_error_but_these(stand: Stand) -> None:
    errors = stand.errors
    assert not unexpected(errors), "\n".join(unexpected(errors))
    seen = {(error.code, caller) for error in errors for caller in error.callers}
    assert not EXPECTED.keys() - seen, "no error any more; take them off the list"


@pytest.mark.requirement("R-4.1")
def test_the_log_tells_of_no_trouble_with_the_database(stand: Stand) -> None:
    lines = stand.gateway.log_path.read_text(errors="replace").splitlines()
    told = [json.loads(line) for line in lines]
    # Not the frames of a stack trace, which say where and not what; its words are.
    said = [f"{row['message']} {row.get('error_type', '')} {row.get('error_message', '')}" for row in told]
    trouble = [text[:400] for text in said if TROUBLE.search(text) and not HARMLESS.search(text)]
    assert not trouble, "\n".join(trouble[:20])
