"""Circuit breakers in running gateways: two workers that tell each other, two instances over one Redis, Redis killed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import Gateway
from support.processes import wait_for
from support.redis import RedisServer, ha_config, start_instances
from support.topology import deployment, routed_config
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("resilience")

STALENESS = 0.5
"""Seconds after which every worker of an instance knows what one of them saw; between instances twice that."""
SLACK = 1.5
"""Seconds more, for a machine that runs other tests besides; the middle one of several has to be in time."""
BREAKER = {"recovery": 2.0, "max_recovery": 4.0, "jitter": 0.0}


def models(upstreams: Upstreams, prefix: str) -> list[dict[str, Any]]:
    """`pair` has two deployments, `solo` one and a fallback."""
    return [
        deployment(group, f"{prefix}-{name}", f"openai/{name}", upstreams.url(f"{prefix}-{name}"))
        for group, name in (("pair", "one"), ("pair", "two"), ("solo", "solo"), ("backup", "backup"), ("spare", "spare"))
    ]


class Instance:
    """One gateway, asked over a new connection each time, so that any of its workers may answer."""

    def __init__(self, gateway: Gateway, workers: int) -> None:
        self.gateway, self.workers = gateway, workers
        self.headers = {"authorization": f"Bearer {gateway.master_key}"}

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        with httpx.Client(base_url=self.gateway.url, headers=self.headers, timeout=30, trust_env=False) as client:
            return client.request(method, path, **more)

    def ask(self, group: str) -> httpx.Response:
        body = {"model": group, "messages": [{"role": "user", "content": "hello"}]}
        return self.call("POST", "/v1/chat/completions", json=body)

    def served(self, group: str) -> str:
        answer = self.ask(group)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"]).removeprefix("served by ").split()[0]

    def view(self) -> dict[str, Any]:
        answer = self.call("GET", "/pointsman/breakers")
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def rows(self, name: str) -> dict[int, dict[str, Any]]:
        """Worker -> what it says of the deployment's breaker; asks until each has answered."""
        found: dict[int, dict[str, Any]] = {}
        until = time.monotonic() + 20
        while len(found) < self.workers:
            assert time.monotonic() < until, found
            view = self.view()
            found[view["worker"]] = next(row for row in view["breakers"] if name in row["deployments"])
        return found

    def all_are(self, name: str, *states: str) -> bool:
        return {row["state"] for row in self.rows(name).values()} <= set(states)

    def hold(self, name: str, action: str, **more: Any) -> dict[str, Any]:
        said = {"upstream": name, "action": action, **({"reason": "a test"} if action != "free" else {}), **more}
        answer = self.call("POST", "/pointsman/breakers", json=said)
        assert answer.status_code == 200, answer.text
        row: dict[str, Any] = answer.json()
        return row

    def metric(self, name: str, *holds: str) -> float:
        text = self.call("GET", "/metrics/").text
        lines = (line for line in text.splitlines() if line.startswith(name) and all(part in line for part in holds))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.fixture(scope="module")
def instance(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    config = routed_config(models(upstreams, "brk"), {}, {}, resilience={"breaker": BREAKER})
    config["router_settings"] = {"num_retries": 2, "retry_after": 0, "fallbacks": [{"solo": ["backup"]}]}
    config["litellm_settings"]["callbacks"] = ["prometheus"]
    gateway = Gateway(config, tmp_path_factory.mktemp("breakers"), None, workers=2).start()
    yield Instance(gateway, 2)
    gateway.stop()


@pytest.fixture(autouse=True)
def well(upstreams: Upstreams) -> Iterator[None]:
    yield
    upstreams.clear()


@pytest.mark.requirement("F-3")
def test_a_dead_upstream_costs_a_few_attempts_and_comes_back(instance: Instance, upstreams: Upstreams) -> None:
    upstreams.fault("brk-solo", status=500)
    before, began = upstreams.count("brk-solo"), time.monotonic()
    for _ in range(60):
        assert instance.served("solo") == "brk-backup"
    rests = (time.monotonic() - began) / BREAKER["recovery"]
    # Three open it; each worker may have had two of its own before it heard; then a probe for each rest and worker.
    assert 3 <= upstreams.count("brk-solo") - before <= 5 + 2 * (rests + 1), "LiteLLM alone: 180"
    assert instance.all_are("brk-solo", "open", "half_open")
    upstreams.clear("brk-solo")

    def back() -> bool:
        instance.ask("solo")
        return instance.all_are("brk-solo", "closed")

    wait_for(back, 20, "both workers ask it again")
    assert {instance.served("solo") for _ in range(10)} == {"brk-solo"}


@pytest.mark.requirement("F-3")
def test_what_one_worker_saw_the_other_knows_in_time(instance: Instance) -> None:
    took = []
    for _ in range(5):
        for action, state in (("open", "held_open"), ("free", "closed")):
            instance.hold("brk-spare", action)
            began = time.monotonic()
            wait_for(lambda state=state: instance.all_are("brk-spare", state), STALENESS + SLACK, f"all say {state}", 0.01)
            took.append(time.monotonic() - began)
    assert statistics.median(took) <= STALENESS, took


@pytest.mark.requirement("F-3")
def test_probes_are_bounded_while_an_upstream_hangs(instance: Instance, upstreams: Upstreams) -> None:
    upstreams.fault("brk-one", status=500)
    for _ in range(12):
        assert instance.served("pair") in ("brk-one", "brk-two")
    wait_for(lambda: instance.all_are("brk-one", "open", "half_open"), 5, "it rests")
    upstreams.fault("brk-one", hang=True)
    with ThreadPoolExecutor(24) as pool:
        asked = []
        until = time.monotonic() + 2 * BREAKER["max_recovery"]
        most = 0
        while time.monotonic() < until:
            asked += [pool.submit(instance.ask, "pair") for _ in range(4)]
            most = max(most, upstreams.report("brk-one")["active"])
            time.sleep(0.2)
        upstreams.clear("brk-one")
        assert {answer.result().status_code for answer in asked} == {200}
    assert 1 <= most <= 2  # one of each worker
    wait_for(lambda: bool(instance.ask("pair")) and instance.all_are("brk-one", "closed"), 20, "it is back")


@pytest.mark.requirement("F-3")
def test_an_administrators_word_holds_everywhere_until_it_ends(instance: Instance, upstreams: Upstreams) -> None:
    row = instance.hold("brk-one", "open", reason="maintenance", seconds=600)
    assert (row["state"], row["reason"], row["cause"]) == ("held_open", "maintenance", "manual")
    wait_for(lambda: instance.all_are("brk-one", "held_open"), STALENESS + SLACK, "all know")
    assert {instance.served("pair") for _ in range(20)} == {"brk-two"}
    told = instance.rows("brk-one")
    assert all(row["held_by"] and 500 < row["seconds_left"] <= 600 for row in told.values())
    instance.hold(row["upstream"], "close", seconds=600)  # by the upstream's name
    upstreams.fault("brk-one", status=500)
    for _ in range(20):
        instance.ask("pair")
    assert instance.all_are("brk-one", "held_closed")
    upstreams.clear()
    instance.hold("brk-one", "open", seconds=1)
    wait_for(lambda: bool(instance.ask("pair")) and instance.all_are("brk-one", "closed"), 20, "the word has ended")
    log = instance.gateway.log(400)
    assert "maintenance" in log
    wait_for(lambda: instance.metric("pointsman_breaker_transitions_total", 'state="held_open"') >= 2, 10, "counted")


@pytest.mark.requirement("F-3")
def test_where_nothing_else_is_left_the_answer_says_so_and_when_to_come_again(instance: Instance, upstreams: Upstreams) -> None:
    """`spare` has no fallback: while it rests each request tries it once, and is told with the last error's class."""
    upstreams.fault("brk-spare", status=500)

    def refused() -> httpx.Response | None:
        answer = instance.ask("spare")
        return answer if answer.status_code == 503 else None

    answer = wait_for(refused, 20, "its breaker is open")
    assert '"E4702"' in answer.text, answer.text
    assert "InternalServerError" in answer.text
    assert int(answer.headers["retry-after"]) >= 1
    upstreams.clear()
    wait_for(lambda: bool(instance.ask("spare")) and instance.all_are("brk-spare", "closed"), 20, "it is back")


@pytest.mark.requirement("F-3")
def test_the_metrics_tell(instance: Instance, upstreams: Upstreams) -> None:
    instance.hold("brk-spare", "open")
    wait_for(lambda: instance.metric("pointsman_breaker_state", "openai/spare") == 3, 15, "the state")
    instance.hold("brk-spare", "free")
    wait_for(lambda: instance.metric("pointsman_breaker_state", "openai/spare") == 0, 15, "the state after")
    assert instance.metric("pointsman_breaker_transitions_total", "openai/solo", 'state="open"', 'cause="failures"') >= 1
    assert instance.metric("pointsman_breaker_ejections_total", 'group="solo"', "breaker_open") >= 1
    assert instance.metric("pointsman_sharing_failing") == 0
    assert instance.view()["sharing"]["instances"] == {"state": "off", "redis": None}


@pytest.mark.requirement("F-3")
@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "upstream"),
        ({"upstream": "brk-one", "action": "explode", "reason": "r"}, "action"),
        ({"upstream": "brk-one", "action": "open"}, "body"),
        ({"upstream": "brk-one", "action": "open", "reason": "r", "seconds": -1}, "seconds"),
        ({"upstream": "brk-one", "action": "open", "reason": "r", "more": 1}, "more"),
        ({"upstream": "nobody", "action": "open", "reason": "r"}, "upstream"),
    ],
)
def test_what_cannot_be_meant_is_refused(instance: Instance, body: Any, where: str) -> None:
    answer = instance.call("POST", "/pointsman/breakers", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("E4001", where)
    assert error["mend"]
    anyone = httpx.get(f"{instance.gateway.url}/pointsman/breakers", timeout=10, trust_env=False)
    assert anyone.status_code == 401


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("breakers-redis")).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def fleet(
    upstreams: Upstreams, redis: RedisServer, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Instance]]:
    config = ha_config(models(upstreams, "flt"))
    config["pointsman"]["resilience"] = {"breaker": {**BREAKER, "max_recovery": 120.0, "recovery": 60.0}}
    config["router_settings"] |= {"num_retries": 2, "retry_after": 0, "fallbacks": [{"solo": ["backup"]}]}
    config["litellm_settings"]["cache"] = False
    directory: Path = tmp_path_factory.mktemp("breakers-fleet")
    gateways = start_instances(config, directory, new_database(), redis.environment)
    yield [Instance(gateway, 1) for gateway in gateways]
    for gateway in gateways:
        gateway.stop()


def state(instance: Instance) -> str:
    return str(instance.view()["sharing"]["instances"]["state"])


@pytest.mark.requirement("F-3", "S-4", "L-6")
def test_instances_share_over_redis_go_on_without_it_and_meet_again(
    fleet: list[Instance], upstreams: Upstreams, redis: RedisServer
) -> None:
    one, two = fleet
    for instance in fleet:
        wait_for(lambda instance=instance: state(instance) == "shared", 10, "the instances share")
    took = []
    for _ in range(5):
        for action, expected in (("open", "held_open"), ("free", "closed")):
            one.hold("flt-spare", action)
            began = time.monotonic()
            wait_for(lambda expected=expected: two.all_are("flt-spare", expected), 2 * STALENESS + SLACK, "it knows", 0.01)
            took.append(time.monotonic() - began)
    assert statistics.median(took) <= 2 * STALENESS, took

    upstreams.fault("flt-solo", status=500)
    for _ in range(3):
        assert one.served("solo") == "flt-backup"
    wait_for(lambda: two.all_are("flt-solo", "open"), 2 * STALENESS + SLACK, "the other knows")
    count = upstreams.count("flt-solo")
    assert {two.served("solo") for _ in range(10)} == {"flt-backup"}
    assert upstreams.count("flt-solo") == count

    one.hold("flt-one", "open", reason="maintenance")
    wait_for(lambda: two.all_are("flt-one", "held_open"), 2 * STALENESS + SLACK, "the other knows")
    two.gateway.stop()
    two.gateway.start()
    wait_for(lambda: two.all_are("flt-one", "held_open") and two.all_are("flt-solo", "open"), 10, "who joins learns")

    usual = statistics.median(times(two))
    redis.kill()
    wait_for(lambda: {state(each) for each in fleet} == {"local"}, 10, "it is reported")
    slow = times(two)
    assert statistics.median(slow) <= 3 * usual + 0.2, (usual, slow)
    one.hold("flt-two", "open", reason="while Redis is away")
    two.hold("flt-backup", "close", reason="while Redis is away")
    assert one.all_are("flt-two", "held_open")
    assert two.all_are("flt-two", "closed")
    for each in fleet:
        wait_for(lambda each=each: each.metric("pointsman_sharing_failing") == 1, 15, "the metric tells")
        assert each.gateway.log(400).count("facts are not shared with other instances") == 1
    redis.start()
    wait_for(lambda: {state(each) for each in fleet} == {"shared"}, 15, "they share again")
    wait_for(lambda: two.all_are("flt-two", "held_open") and one.all_are("flt-backup", "held_closed"), 10, "they agree")
    assert two.all_are("flt-one", "held_open")


def times(instance: Instance) -> list[float]:
    """Seconds of twenty requests."""
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert instance.served("pair")
        took.append(time.monotonic() - began)
    return took
