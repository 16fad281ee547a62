"""Two instances with the profile `ha` on one Postgres and one Redis act as one: cache, limits, budgets, keys, models.

What LiteLLM does here is native; these tests hold our profile to it. Outages, Sentinel and other versions of Redis are in
tests/slow/test_redis_versions.py.
"""

from __future__ import annotations

import hashlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
import redis

from support.forward import Balancer
from support.gateway import Gateway
from support.processes import wait_for
from support.redis import RedisServer, ha_config, start_instances
from support.strategy import HARD, FilePublisher
from support.topology import pair, priced, single
from support.upstreams import Upstreams

KEY_TTL = 4
"""Seconds; the profile leaves LiteLLM's 60."""
PRICE = 0.04
"""Of `text()` and its answer, in dollars."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The two instances, what is before them, and behind."""

    instances: tuple[Gateway, Gateway]
    balancer: Balancer
    redis: RedisServer
    publisher: FilePublisher

    def each(self) -> Iterator[Gateway]:
        """The instances in turns, without end."""
        return itertools.cycle(self.instances)

    def through_the_balancer(self, key: str, text: str, model: str) -> httpx.Response:
        """A chat over a connection of its own."""
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{self.balancer.port}", trust_env=False, timeout=30) as http:
            return http.post("/v1/chat/completions", json=chat_body(text, model), headers=headers)


def text() -> str:
    """Something that nobody has asked yet; one word."""
    return uuid.uuid4().hex


def chat_body(said: str, model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": said}], **fields}


def ask(instance: Gateway, key: str, said: str, model: str = "plain", **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(
        f"{instance.url}/v1/chat/completions",
        json=chat_body(said, model, **fields),
        headers=headers,
        timeout=30,
        trust_env=False,
    )


def together(fleet: Fleet, key: str, count: int, model: str, clients: int = 8) -> list[int]:
    """The statuses of `count` requests, sent to both instances in turns by `clients` at a time."""
    with ThreadPoolExecutor(clients) as pool:
        turns = zip(range(count), fleet.each(), strict=False)
        return list(pool.map(lambda turn: ask(turn[1], key, text(), model).status_code, turns))


@pytest.fixture(scope="module")
def database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture(scope="module")
def fleet(
    upstreams: Upstreams, redis_server: RedisServer, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    publisher = FilePublisher(tmp_path_factory.mktemp("published"), "shared")
    publisher.publish("1.0.0")
    models = [
        *pair(upstreams, "fleet"),
        *pair(upstreams, "half"),
        priced(upstreams),
        single(upstreams, "plain", "openai/plain-model"),
    ]
    config = ha_config(
        models,
        general_settings={"user_api_key_cache_ttl": KEY_TTL},
        pointsman={
            "strategies": {"shared": publisher.settings(reload_interval=1.0)},
            "routing": {"groups": {"fleet": "shared"}, "deadline_ms": 2_000},
        },
    )
    first, second = start_instances(config, tmp_path_factory.mktemp("fleet"), database, redis_server.environment)
    balancer = Balancer([first.port, second.port])
    yield Fleet((first, second), balancer, redis_server, publisher)
    balancer.close()
    for instance in (first, second):
        instance.stop()


@pytest.mark.requirement("R-4.2")
def test_an_answer_is_kept_in_redis_for_its_time_and_serves_both_instances(fleet: Fleet, upstreams: Upstreams) -> None:
    first, second = fleet.instances
    key, said, before = first.new_key(), text(), upstreams.count("plain")
    answer = ask(first, key, said)
    with fleet.redis.client() as client:
        name = wait_for(lambda: entry(client, answer), 5, "the answer is in Redis")
        assert 500 < client.ttl(name) <= 600, "the profile's ten minutes"
    answers = [answer, *(ask(instance, key, said) for instance in (second, second, first))]
    assert [each.status_code for each in answers] == [200] * 4
    assert len({each.json()["id"] for each in answers}) == 1
    assert upstreams.count("plain") == before + 1, "one call for four answers"
    other = ask(second, key, said, temperature=0.5)
    assert other.json()["id"] != answer.json()["id"], "other parameters, another answer"


@pytest.mark.requirement("R-4.2")
def test_an_answer_that_is_too_old_is_asked_for_anew(fleet: Fleet, upstreams: Upstreams) -> None:
    first, second = fleet.instances
    key, said, before = first.new_key(), text(), upstreams.count("plain")
    short = {"cache": {"ttl": 3}}
    answer = ask(first, key, said, **short)
    with fleet.redis.client() as client:
        name = wait_for(lambda: entry(client, answer), 3, "the answer is in Redis")
        assert 0 < client.pttl(name) <= 3_000
        assert ask(second, key, said, **short).json()["id"] == answer.json()["id"]
        wait_for(lambda: not client.exists(name), 6, "Redis dropped it")

    def anew() -> bool:
        return ask(second, key, said, **short).json()["id"] != answer.json()["id"]

    # It had it from Redis, and keeps what it had for `default_in_memory_ttl`.
    wait_for(anew, 6, "the second instance asks anew")
    assert upstreams.count("plain") == before + 2


def entry(client: redis.Redis, answer: httpx.Response) -> str | None:
    """Name of the cache entry that holds an answer."""
    assert answer.status_code == 200, answer.text
    for name in client.scan_iter(count=1000, _type="string"):
        if answer.json()["id"] in str(client.get(name)):
            return str(name)
    return None


@pytest.mark.requirement("R-4.3")
def test_a_limit_on_requests_holds_over_both_instances(fleet: Fleet) -> None:
    key = fleet.instances[0].new_key(rpm_limit=10)
    statuses = together(fleet, key, 40, "plain")
    assert (statuses.count(200), statuses.count(429)) == (10, 30)


@pytest.mark.requirement("R-4.3")
def test_a_limit_on_tokens_holds_over_both_instances(fleet: Fleet) -> None:
    key = fleet.instances[0].new_key(tpm_limit=40)
    answers = [
        ask(instance, key, "word", "plain", max_tokens=3, temperature=n / 100)
        for n, instance in zip(range(24), fleet.each(), strict=False)
    ]
    served = [answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 429}
    # A request is let in while there is room; one more than fits may pass.
    assert 40 - max(served) <= sum(served) <= 40 + max(served)


@pytest.mark.requirement("R-4.3")
def test_a_deployment_that_rests_in_one_instance_rests_in_the_other(fleet: Fleet, upstreams: Upstreams) -> None:
    first, second = fleet.instances
    key = first.new_key()
    upstreams.fault("half-weak", status=500)
    untried = upstreams.count("half-weak")

    def rests() -> bool:
        before = upstreams.count("half-weak")
        statuses = {ask(first, key, text(), "half").status_code for _ in range(8)}
        return statuses == {200} and upstreams.count("half-weak") == before > untried

    wait_for(rests, 20, "the broken deployment rests in the first instance")
    time.sleep(1)  # LiteLLM reads the others' cool-downs once a second
    before = upstreams.count("half-weak")
    assert {ask(second, key, text(), "half").status_code for _ in range(6)} == {200}
    assert upstreams.count("half-weak") == before, "the second instance never tried it"


@pytest.mark.requirement("R-4.3", "R-4.5")
@pytest.mark.parametrize("clients", [1, 8])
def test_a_budget_holds_over_both_instances(fleet: Fleet, clients: int) -> None:
    key = fleet.instances[0].new_key(max_budget=0.5)
    statuses = together(fleet, key, 40, "priced", clients)
    assert set(statuses) == {200, 429}

    # LiteLLM sets the estimated cost of what is under way aside, so with many at once some are refused too early.
    def used_up() -> bool:
        statuses.append(ask(fleet.instances[0], key, text(), "priced").status_code)
        return statuses.count(200) * PRICE >= 0.5

    wait_for(used_up, 20, "all of the budget can be used")
    statuses += together(fleet, key, 4, "priced", clients)
    spent = statuses.count(200) * PRICE
    assert 0.5 <= spent <= 0.5 + clients * PRICE, "the request that reaches the limit is the last, with those under way"
    for instance in fleet.instances:
        wait_for(lambda: instance.key_info(key)["spend"] == pytest.approx(spent), 20, "what was spent is seen")  # noqa: B023


@pytest.mark.requirement("R-4.5")
def test_a_key_made_on_one_instance_works_on_the_other_at_once(fleet: Fleet) -> None:
    first, second = fleet.instances
    for maker, user in ((first, second), (second, first)):
        assert ask(user, maker.new_key(), text()).status_code == 200


@pytest.mark.requirement("R-4.5")
def test_a_key_that_is_blocked_on_one_instance_stops_on_the_other_within_a_second(fleet: Fleet) -> None:
    first, second = fleet.instances
    key = first.new_key()
    assert ask(second, key, text()).status_code == 200
    first.admin.post("/key/block", json={"key": key}).raise_for_status()
    wait_for(lambda: ask(second, key, text()).status_code == 401, 1, "the other instance was told")


@pytest.mark.requirement("R-4.5")
def test_a_key_that_is_deleted_on_one_instance_stops_on_the_other_within_its_caches_time(fleet: Fleet) -> None:
    """LiteLLM tells the others of a blocked key, not of a deleted one (`user_api_key_cache_ttl`)."""
    first, second = fleet.instances
    key = first.new_key()
    assert ask(second, key, text()).status_code == 200
    first.admin.post("/key/delete", json={"keys": [key]}).raise_for_status()
    assert ask(first, key, text()).status_code == 401
    wait_for(lambda: ask(second, key, text()).status_code == 401, KEY_TTL + 2, "it is forgotten", interval=0.2)


@pytest.mark.requirement("R-4.5")
def test_a_model_that_is_added_on_one_instance_is_served_by_the_other(fleet: Fleet, upstreams: Upstreams) -> None:
    first, second = fleet.instances
    name = f"added-{uuid.uuid4().hex[:8]}"
    params = {"model": "openai/added-model", "api_base": upstreams.url("added"), "api_key": "sk-anything"}
    first.admin.post("/model/new", json={"model_name": name, "litellm_params": params}).raise_for_status()
    key = first.new_key()
    for instance in (first, second):
        # The others hear of it through Redis, and read after 1 to 6 s, at most every 10 s.
        answer = wait_for(lambda: _served(ask(instance, key, text(), name)), 20, "it is served", interval=0.3)  # noqa: B023
        assert answer["choices"][0]["message"]["content"] == "served by added"


def _served(answer: httpx.Response) -> dict[str, Any] | None:
    return answer.json() if answer.status_code == 200 else None


@pytest.mark.requirement("R-4.5")
def test_a_rollback_on_one_instance_reaches_the_other(fleet: Fleet) -> None:
    first, second = fleet.instances

    def in_service(version: str) -> bool:
        return {instance.strategy("shared")["version"] for instance in fleet.instances} == {version}

    fleet.publisher.publish("2.0.0", inverted=True)
    wait_for(lambda: in_service("2.0.0"), 10, "both took the new version up")
    key = first.new_key()
    assert ask(second, key, f"{HARD} {text()}", "fleet").headers["x-pointsman-model"] == "openai/weak-model"
    first.admin.post("/pointsman/strategies/shared/rollback", json={"reason": "test"}).raise_for_status()
    wait_for(lambda: in_service("1.0.0"), 5, "both went back")
    assert ask(second, key, f"{HARD} {text()}", "fleet").headers["x-pointsman-model"] == "openai/strong-model"


@pytest.mark.requirement("R-4.5")
def test_behind_a_balancer_they_are_one(fleet: Fleet, database: str) -> None:
    """Requests go to both; what was decided and what was spent is there once, in one place."""
    key, before = fleet.instances[0].new_key(), dict(fleet.balancer.served)
    answers = [fleet.through_the_balancer(key, text(), "priced") for _ in range(12)]
    assert {answer.status_code for answer in answers} == {200}
    assert [fleet.balancer.served[port] - count for port, count in before.items()] == [6, 6]
    decisions = [answer.headers["x-pointsman-decision-id"] for answer in answers]
    assert len(set(decisions)) == 12
    with psycopg.connect(database, autocommit=True) as connection:
        query = "SELECT count(*) FROM pointsman_outcomes WHERE decision_id = ANY(%s) AND status = 'success'"
        wait_for(lambda: connection.execute(query, (decisions,)).fetchone() == (12,), 15, "every outcome was kept, once")
        query = 'SELECT count(*), coalesce(sum(spend), 0) FROM "LiteLLM_SpendLogs" WHERE api_key = %s'
        hashed = hashlib.sha256(key.encode()).hexdigest()

        def paid() -> bool:
            row = connection.execute(query, (hashed,)).fetchone()  # type: ignore[arg-type]
            spent = connection.execute('SELECT spend FROM "LiteLLM_VerificationToken" WHERE token = %s', (hashed,)).fetchone()
            return row == (12, pytest.approx(12 * PRICE)) and spent == (pytest.approx(12 * PRICE),)

        wait_for(paid, 30, "every request is in the log and in the key's spend, once")
