"""Scores, feedback, probes and warm-up in a running gateway: two workers, real upstreams, a database, a restart."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql

from pointsman.database_url import own_schema
from support.gateway import Gateway
from support.processes import wait_for
from support.redis import RedisServer, ha_config, start_instances
from support.topology import deployment, routed_config
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("resilience")

STALENESS = 3.0
"""Seconds after which every worker knows the scores of the others: a second that they are held back, and the ways."""
INTERVAL = 2.0
"""Of probes."""
FAR = {"pointsman": {"local": False}}
"""Not to be warmed up, though all upstreams of the tests are at a private address."""


def config(upstreams: Upstreams) -> dict[str, Any]:
    models = [
        deployment("talk", "score-talk", "openai/talk-model", upstreams.url("score-talk"), FAR),
        deployment("flawed", "score-flawed", "openai/flawed-model", upstreams.url("score-flawed"), FAR),
        deployment("idle", "score-idle", "openai/idle-model", upstreams.url("score-idle"), FAR),
        deployment("down", "score-down", "openai/down-model", upstreams.url("score-down"), FAR),
        deployment("near", "score-near", "hosted_vllm/near-model", upstreams.url("score-near")),
    ]
    resilience = {
        "breaker": {"recovery": 1.0},
        "probes": {"enabled": True, "interval": INTERVAL, "groups": ["idle", "down"]},
        "warm_up": {"enabled": True, "timeout": 60.0},
    }
    made = routed_config(models, {}, {}, resilience=resilience)
    made["litellm_settings"] |= {"callbacks": ["prometheus"]}
    return made


@dataclass
class Stand:
    gateway: Gateway
    upstreams: Upstreams
    warming: httpx.Response
    """What readiness said while the local backend had not answered."""
    warmed: float
    """Seconds from its answer until the gateway was ready."""

    def providers(self, worker: int) -> dict[str, dict[str, Any]]:
        """Upstreams by their first deployment, as that worker knows them; each call is a connection of its own."""

        def told() -> dict[str, Any] | None:
            headers = {"authorization": f"Bearer {self.gateway.master_key}"}
            url = f"{self.gateway.url}/pointsman/providers"
            found: dict[str, Any] = httpx.get(url, headers=headers, trust_env=False).raise_for_status().json()
            return found if found["worker"] == worker else None

        rows = wait_for(told, 20, f"worker {worker} is asked", 0.01)["providers"]
        return {row["deployments"][0]: row for row in rows}

    def ask(self, key: str, **fields: Any) -> str:
        """A question by the OpenAI client; the id of its decision."""
        said = [{"role": "user", "content": uuid.uuid4().hex}]
        asked = {"model": "talk", "messages": said, **fields}
        answer = self.gateway.openai(key).chat.completions.with_raw_response.create(**asked)
        if fields.get("stream"):
            assert any(chunk.choices for chunk in answer.parse())
        return str(answer.headers["x-pointsman-decision-id"])

    def feedback(self, key: str | None, **body: Any) -> httpx.Response:
        """One connection each, so that any worker may get it."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.post(f"{self.gateway.url}/pointsman/feedback", json=body, headers=headers, timeout=30, trust_env=False)

    def stored(self, decision_id: str) -> list[float | None]:
        assert self.gateway.database_url is not None
        with psycopg.connect(self.gateway.database_url) as connection:
            table = sql.Identifier(own_schema(self.gateway.database_url), "pointsman_outcomes")
            query = sql.SQL("SELECT feedback FROM {} WHERE decision_id = %s").format(table)
            return [row[0] for row in connection.execute(query, (decision_id,)).fetchall()]


@pytest.fixture(scope="module")
def stand(upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    upstreams.fault("score-near", hang=True)
    gateway = Gateway(config(upstreams), tmp_path_factory.mktemp("scores"), new_database())
    process = gateway.spawn()

    def asked() -> bool:
        assert process.poll() is None, gateway.log()
        return bool(upstreams.report("score-near")["active"])

    try:
        wait_for(asked, 120, "the local backend is asked")
        warming = [httpx.get(f"{gateway.url}/health/readiness", trust_env=False) for _ in range(20)]
        upstreams.clear("score-near")
        began = time.monotonic()
        gateway.wait_ready()
        warmed = time.monotonic() - began
        assert {answer.status_code for answer in warming} == {503}, "each worker waits"
        yield Stand(gateway, upstreams, warming[0], warmed)
        gateway.stop()
    finally:
        gateway.kill()


@pytest.mark.requirement("S-9")
def test_the_gateway_is_ready_only_when_its_local_backends_are_warm(stand: Stand) -> None:
    error = stand.warming.json()["error"]
    assert error["code"] == "E4605"
    assert "warms up" in error["message"]
    assert stand.warmed < 10
    near = stand.upstreams.requests("score-near")
    assert len(near) == 1, "asked once, by one worker, without retries"
    assert near[0]["body"]["max_tokens"] <= 16
    for worker in (0, 1):
        assert stand.providers(worker)["score-near"]["success_rate"] is not None
    status = stand.gateway.admin.get("/pointsman/providers").json()["warm_up"]
    assert status["state"] == "warm"
    assert list(status["upstreams"].values()) == ["answered"]
    assert stand.upstreams.count("score-talk") == 0, "what is far away is not warmed up"


@pytest.mark.requirement("F-6", "S-11")
def test_every_worker_tells_how_well_each_upstream_does(stand: Stand) -> None:
    key = stand.gateway.new_key()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: stand.ask(key, stream=number % 2 == 0), range(24)))

    def agree() -> dict[str, Any] | None:
        rows = [stand.providers(worker)["score-talk"] for worker in (0, 1)]
        whole = all(row["success_rate"] is not None and row["success_rate"]["weight"] > 22 for row in rows)
        return rows[0] if whole else None

    row = wait_for(agree, STALENESS + 10, "both workers know all that was asked")
    assert row["success_rate"]["value"] == 1.0
    assert row["success_rate"]["low"] > 0.8
    for name in ("latency_ms", "first_token_ms"):
        for quantile in ("p50", "p95"):
            estimate = row[name][quantile]
            assert 0 < estimate["low"] <= estimate["value"] <= estimate["high"]
    assert row["first_token_ms"]["p50"]["weight"] < row["latency_ms"]["p50"]["weight"], "of streams alone"
    assert row["first_token_ms"]["p50"]["value"] <= row["latency_ms"]["p95"]["high"]
    assert row["tokens_per_second"]["p50"]["value"] > 0
    assert row["breaker"] == "closed"
    assert row["parity_violations"]["value"] == 0.0
    assert row["idle_seconds"] < 30


@pytest.mark.requirement("F-6")
def test_scores_are_in_the_metrics(stand: Stand) -> None:
    label = f'upstream="openai/talk-model@{stand.upstreams.url("score-talk")}'[:100]

    def told() -> bool:
        text = stand.gateway.admin.get("/metrics", follow_redirects=True).text
        return f"pointsman_upstream_success_ratio{{{label}" in text and 'pointsman_probes_total{kind="warm_up",' in text

    wait_for(told, 20, "the scrape has the success rate and the probes")


@pytest.mark.requirement("F-6", "S-11")
def test_answers_that_are_none_are_counted(stand: Stand) -> None:
    key = stand.gateway.new_key()
    stand.ask(key, model="flawed")
    stand.ask(key, model="flawed", response_format={"type": "json_object"})  # it answers `served by ...`
    stand.upstreams.fault("score-flawed", garbage=True, times=1)
    client = stand.gateway.http(key)
    body = {"model": "flawed", "messages": [{"role": "user", "content": "x"}], "num_retries": 0}
    client.post("/v1/chat/completions", json=body)

    def counted() -> bool:
        found = stand.providers(0)["score-flawed"]["parity_violations"]
        return found is not None and found["weight"] > 2.9 and 0.6 < found["value"] < 0.7

    wait_for(counted, STALENESS + 10, "one is no JSON and one cannot be read, of three or so")


@pytest.mark.requirement("F-6")
def test_feedback_counts_for_who_answered_and_only_from_who_asked(stand: Stand) -> None:
    mine, other = stand.gateway.new_key(), stand.gateway.new_key()
    decision = stand.ask(mine)
    given = stand.feedback(mine, decision_id=decision, thumbs="up")  # before the decision can be in the database
    assert given.status_code == 200, given.text
    assert given.json() == {"decision_id": decision, "score": 1.0}
    unknown = stand.feedback(mine, decision_id=f"dec_{uuid.uuid4().hex}", thumbs="up")
    foreign = stand.feedback(other, decision_id=decision, thumbs="down")
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json() == unknown.json(), "who may not know cannot tell whether it exists"
    assert stand.stored(decision) == [1.0]
    for _ in range(3):  # by whichever worker
        assert stand.feedback(mine, decision_id=decision, score=0.25, comment="meh").status_code == 200
    assert stand.stored(decision) == [0.25], "the last one counts"

    def felt(worker: int) -> bool:
        found = stand.providers(worker)["score-talk"]["feedback"]
        return found is not None and abs(found["value"] - 0.25) < 0.02 and 0.9 < found["weight"] < 1.1

    for worker in (0, 1):
        wait_for(lambda worker=worker: felt(worker), STALENESS + 10, f"worker {worker} knows it, as one vote")
    assert "meh" not in stand.gateway.log_path.read_text(), "a comment is a client's text"


def test_feedback_that_is_none_is_refused(stand: Stand) -> None:
    key = stand.gateway.new_key()
    decision = f"dec_{uuid.uuid4().hex}"
    bad: list[dict[str, Any]] = [
        {},
        {"decision_id": decision},
        {"decision_id": "dec_x", "score": 1},
        {"decision_id": decision, "score": 1.5},
        {"decision_id": decision, "score": 1, "thumbs": "up"},
        {"decision_id": decision, "score": 1, "comment": "x" * 2_001},
    ]
    for body in bad:
        answer = stand.feedback(key, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "E4001"), (body, answer.text)
    large = stand.feedback(key, decision_id=decision, score=1, comment="x" * 20_000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "E4011")
    assert stand.feedback(None, decision_id=decision, score=1).status_code == 401
    assert stand.feedback("sk-nobody", decision_id=decision, score=1).status_code == 401


def test_who_may_give_feedback_is_who_may_ask_for_the_list_of_models(stand: Stand) -> None:
    unknown = {"decision_id": f"dec_{uuid.uuid4().hex}", "score": 1}
    master = stand.gateway.master_key
    assert stand.feedback(master, decision_id=stand.ask(master), score=1).status_code == 200, "its own, the master key too"
    spent = stand.gateway.new_key(max_budget=0)
    assert stand.feedback(spent, **unknown).status_code in (422, 429), "as for an answer"
    bound = stand.gateway.new_key(allowed_routes=["/v1/chat/completions"])
    assert stand.feedback(bound, **unknown).status_code in (401, 403)
    assert stand.feedback(stand.gateway.new_key(allowed_routes=["llm_api_routes"]), **unknown).status_code == 404


def test_providers_are_the_administrators_to_see(stand: Stand) -> None:
    key = stand.gateway.new_key()
    assert stand.gateway.http(key).get("/pointsman/providers").status_code in (401, 403)
    assert stand.gateway.http(None).get("/pointsman/providers").status_code == 401


@pytest.mark.requirement("S-11")
def test_an_idle_upstream_is_asked_by_one_worker_and_its_breaker_opens_and_closes_without_users(stand: Stand) -> None:
    before, began = stand.upstreams.count("score-idle"), time.monotonic()
    wait_for(lambda: stand.upstreams.count("score-idle") >= before + 3, 30, "it is asked though nobody asks")
    elapsed = time.monotonic() - began
    assert stand.upstreams.count("score-idle") - before <= elapsed / INTERVAL + 1.5, "by one worker, once in an interval"

    stand.upstreams.fault("score-down", status=500)
    for worker in (0, 1):
        what = f"worker {worker} knows that it is down"
        wait_for(lambda worker=worker: stand.providers(worker)["score-down"]["breaker"] in ("open", "half_open"), 40, what)
    assert stand.providers(0)["score-down"]["success_rate"]["value"] < 1
    stand.upstreams.clear("score-down")
    for worker in (0, 1):
        what = f"worker {worker} knows that it is back"
        wait_for(lambda worker=worker: stand.providers(worker)["score-down"]["breaker"] == "closed", 30, what)
    assert stand.gateway.database_url is not None

    def payers() -> set[str]:
        with psycopg.connect(str(stand.gateway.database_url)) as connection:
            rows = connection.execute("""SELECT api_key FROM "LiteLLM_SpendLogs" WHERE model LIKE '%idle-model%'""").fetchall()
        return {row[0] for row in rows}

    assert wait_for(payers, 20, "what it cost is booked") == {"litellm-internal-health-check"}, "on no key's bill"


@pytest.mark.requirement("F-6", "S-9")
def test_a_worker_that_dies_takes_no_score_along_and_warms_up_nothing_again(stand: Stand) -> None:
    gateway, near = stand.gateway, stand.upstreams.count("score-near")
    before = stand.providers(0)["score-talk"]["success_rate"]["weight"]

    def owner() -> int | None:
        """The process of worker 0, by a connection that it accepted."""
        with httpx.Client(trust_env=False, headers={"authorization": f"Bearer {gateway.master_key}"}) as client:
            answer = client.get(f"{gateway.url}/pointsman/providers")
            if answer.json()["worker"] != 0:
                return None
            port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
            for child in psutil.Process(gateway.pid).children(recursive=True):
                if any(one.raddr and one.raddr.port == port for one in child.net_connections("tcp")):
                    return child.pid
        return None

    first = wait_for(owner, 20, "worker 0 is found", 0.01)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: owner() not in (None, first), 60, "another is worker 0")
    row = stand.providers(0)["score-talk"]
    assert row["success_rate"]["weight"] > before / 2, "what the supervisor keeps of the dead one"
    assert stand.upstreams.count("score-near") == near
    assert all(gateway.ready() for _ in range(10))


@pytest.mark.requirement("F-6")
def test_feedback_finds_its_decision_after_a_restart(stand: Stand) -> None:
    key = stand.gateway.new_key()
    decision = stand.ask(key)
    assert stand.feedback(key, decision_id=decision, thumbs="down").status_code == 200
    near = stand.upstreams.count("score-near")
    stand.gateway.restart()
    assert stand.upstreams.count("score-near") == near + 1, "warm again before it is ready again"
    answer = stand.feedback(key, decision_id=decision, score=0.75)
    assert answer.status_code == 200, answer.text
    assert stand.stored(decision) == [0.75]

    def felt() -> bool:
        found = stand.providers(0)["score-talk"]["feedback"]
        return found is not None and abs(found["value"] - 0.75) < 0.02

    wait_for(felt, STALENESS + 10, "it counts for who answered before the restart")


@pytest.mark.requirement("F-6")
def test_instances_know_of_each_others_upstreams_by_redis(
    upstreams: Upstreams, redis_server: RedisServer, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    models = [deployment("talk", "fleet-talk", "openai/talk-model", upstreams.url("fleet-talk"), FAR)]
    fleet = start_instances(ha_config(models), tmp_path_factory.mktemp("score-fleet"), new_database(), redis_server.environment)
    try:
        asks, hears = (Stand(one, upstreams, httpx.Response(503), 0.0) for one in fleet)
        key = asks.gateway.new_key()
        decisions = [asks.ask(key) for _ in range(10)]
        assert hears.feedback(key, decision_id=decisions[0], thumbs="down").status_code == 200, "given to the other one"

        def known(stand: Stand) -> bool:
            row = stand.providers(0)["fleet-talk"]
            whole = row["success_rate"] is not None and row["success_rate"]["weight"] > 9.5
            return whole and row["feedback"] is not None and row["feedback"]["value"] == 0.0

        for stand in (asks, hears):
            wait_for(lambda stand=stand: known(stand), STALENESS + 5, "both know what came to either")
        for one in fleet:
            one.stop()
    finally:
        for one in fleet:
            one.kill()
