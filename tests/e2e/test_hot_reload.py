"""A published strategy is in service everywhere within its interval and a second; a bad one never is; one can go back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.calls import WAYS, Clients
from support.gateway import Gateway
from support.processes import wait_for
from support.s3 import S3Server
from support.strategy import EASY, FILE_STRATEGY, HARD, STRATEGY, FilePublisher, Published, Publisher, S3Publisher

INTERVAL = 1.0  # as in the shared configuration
# Beyond the interval and the second that are promised: what a busy machine may take to answer the question itself.
SLACK = 1.0
numbers = itertools.count(2)


def new_version() -> str:
    return f"{next(numbers)}.0.0"


def versions(gateway: Gateway, key: str, group: str = "auto", requests: int = 24) -> set[str]:
    """The versions that answers name, over connections of their own, so that every worker is asked."""
    body = {"model": group, "messages": [{"role": "user", "content": HARD}]}

    def ask(_: int) -> str:
        headers = {"authorization": f"Bearer {key}", "connection": "close"}
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=30)
        assert answer.status_code == 200, answer.text
        said = {name: value for name, value in answer.headers.items() if name.startswith("x-pointsman-")}
        return said.get("x-pointsman-version") or f"none: {said}"

    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(ask, range(requests)))


def in_service(gateway: Gateway, published: Published, strategy: str = STRATEGY) -> bool:
    """Whether every worker has acknowledged it."""
    row = gateway.strategy(strategy)
    everywhere = all(worker["generation"] == row["desired_generation"] for worker in row["workers"])
    return bool(row["version"] == published.version and row["sha256"] == published.sha256 and everywhere)


def settle(gateway: Gateway, publisher: Publisher, **kwargs: Any) -> Published:
    """Publish a good bundle and wait until every worker serves it."""
    published = publisher.publish(new_version(), **kwargs)
    gateway.admin.post(f"/pointsman/strategies/{publisher.strategy}/reload").raise_for_status()
    wait_for(lambda: in_service(gateway, published, publisher.strategy), 10, f"{published.version} is in service")
    return published


@pytest.fixture(autouse=True)
def _as_it_was(gateway: Gateway, publisher: S3Publisher, file_publisher: FilePublisher) -> Iterator[None]:
    """Leave a good bundle in service that sends prompts where the other tests expect them."""
    yield
    for each in (publisher, file_publisher):
        settle(gateway, each)


@pytest.mark.requirement("R-3.1", "R-3.2", "R-3.4", "R-2.3", "P-5")
@pytest.mark.parametrize(("group", "strategy"), [("auto", STRATEGY), ("filed", FILE_STRATEGY)])
def test_a_new_version_decides_in_every_worker_within_the_interval(
    gateway: Gateway, key: str, publisher: S3Publisher, file_publisher: FilePublisher, group: str, strategy: str
) -> None:
    maker: Publisher = publisher if strategy == STRATEGY else file_publisher
    clients = Clients(gateway, key)
    assert WAYS["chat"](clients, group, HARD).served_by == f"{group}-strong"
    published = maker.publish(new_version(), inverted=True)
    start = time.monotonic()
    wait_for(lambda: in_service(gateway, published, strategy), 20, "every worker serves the new version")
    took = time.monotonic() - start
    assert took <= INTERVAL + 1 + SLACK
    assert versions(gateway, key, group) == {published.version}
    assert WAYS["chat"](clients, group, HARD).served_by == f"{group}-weak", "the new bundle prefers the other one"
    assert WAYS["chat"](clients, group, EASY).served_by == f"{group}-strong"


@pytest.mark.requirement("R-3.6", "R-3.4")
def test_status_tells_what_is_in_service(gateway: Gateway, publisher: S3Publisher) -> None:
    published = settle(gateway, publisher)
    row = gateway.strategy(STRATEGY)
    assert (row["name"], row["kind"], row["version"], row["sha256"]) == (STRATEGY, "knn", published.version, published.sha256)
    assert row["etag"].strip('"') == published.etag.strip('"')
    assert row["sequence"] == published.sequence
    assert "auto" in row["in_use_by"]
    assert "plain" not in row["in_use_by"]
    assert row["last_error"] is None
    assert row["degraded"] is False
    assert row["loaded_at"]
    assert row["last_check"]
    assert [worker["worker"] for worker in row["workers"]] == [0, 1]
    assert len({worker["pid"] for worker in row["workers"]}) == 2
    listed = gateway.admin.get("/pointsman/strategies").raise_for_status().json()["strategies"]
    assert {entry["name"] for entry in listed} == {STRATEGY, FILE_STRATEGY}
    assert "config" in gateway.status()


@pytest.mark.requirement("R-3.2")
def test_what_is_unchanged_is_not_loaded_again(gateway: Gateway, publisher: S3Publisher, s3: S3Server) -> None:
    settle(gateway, publisher)
    before = gateway.strategy(STRATEGY)
    seen = len(s3.requests)

    def polls() -> list[tuple[str, int]]:
        """What was asked of our object since: the pointer and nothing else."""
        return [(r.method, r.status) for r in s3.requests[seen:] if f"{publisher.bucket}/" in r.path]

    wait_for(lambda: len(polls()) >= 3, 10, "three more polls")
    after = gateway.strategy(STRATEGY)
    assert after["counters"]["swaps"] == before["counters"]["swaps"]
    assert set(polls()) == {("GET", 304)}, "a poll is one conditional request"
    assert after["desired_generation"] == before["desired_generation"]
    assert after["loaded_at"] == before["loaded_at"]


CODES = {
    "truncated": "E43",
    "flipped": "E4302",
    "unsigned": "E4303",
    "stranger": "E4303",
    "replayed": "E4304",
    "foreign": "E4305",
    "missing": "E4404",
    "garbage": "E4312",
}


@pytest.mark.requirement("P-22")
@pytest.mark.parametrize("kind", Publisher.CORRUPTIONS)
def test_a_corrupt_one_is_refused_told_and_counted_and_the_good_one_stays(
    gateway: Gateway, key: str, publisher: S3Publisher, kind: str
) -> None:
    good = settle(gateway, publisher)
    before = gateway.strategy(STRATEGY)["counters"]
    publisher.corrupt(kind, new_version())
    row = wait_for(lambda: row if (row := gateway.strategy(STRATEGY))["last_error"] else {}, 10, f"{kind} is refused")
    assert CODES[kind] in str(row["last_error"])
    assert (row["version"], row["sha256"]) == (good.version, good.sha256)
    counter = "failures" if kind == "missing" else "rejected"
    assert row["counters"][counter] > before[counter]
    assert row["counters"]["swaps"] == before["swaps"]
    assert versions(gateway, key, requests=8) == {good.version}
    settle(gateway, publisher)
    assert gateway.strategy(STRATEGY)["last_error"] is None


def test_reload_looks_at_once(gateway: Gateway, publisher: S3Publisher) -> None:
    published = publisher.publish(new_version())
    row = gateway.admin.post(f"/pointsman/strategies/{STRATEGY}/reload").raise_for_status().json()
    assert row["version"] == published.version


@pytest.mark.requirement("P-5")
def test_a_rollback_holds_against_the_next_poll_and_a_newer_one_ends_it(
    gateway: Gateway, key: str, publisher: S3Publisher
) -> None:
    first = settle(gateway, publisher)
    second = settle(gateway, publisher, inverted=True)
    answer = gateway.admin.post(f"/pointsman/strategies/{STRATEGY}/rollback", json={"reason": "answers got worse"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == first.version
    wait_for(lambda: in_service(gateway, first), 5, "the first version is back in every worker")
    polls = gateway.strategy(STRATEGY)["counters"]["polls"]
    wait_for(lambda: gateway.strategy(STRATEGY)["counters"]["polls"] >= polls + 3, 10, "three more polls")
    assert versions(gateway, key) == {first.version}
    assert second.sha256 in str(gateway.strategy(STRATEGY)["blocked"])
    # What was decided, by whom and why, stands in one table for the whole fleet.
    assert gateway.database_url is not None
    with psycopg.connect(gateway.database_url) as connection:
        row = connection.execute(
            "SELECT blocked_sha256, reason, actor FROM pointsman_rollout WHERE strategy = %s", (STRATEGY,)
        ).fetchone()
    assert row is not None
    assert second.sha256 in row[0]
    assert row[1] == "answers got worse"
    assert row[2]
    third = settle(gateway, publisher)
    assert versions(gateway, key) == {third.version}


ADMIN_ONLY = [
    ("GET", "/hot-reload/status"),
    ("GET", "/pointsman/strategies"),
    ("POST", f"/pointsman/strategies/{STRATEGY}/reload"),
    ("POST", f"/pointsman/strategies/{STRATEGY}/rollback"),
]


@pytest.mark.requirement("R-3.6", "R-11.1")
@pytest.mark.parametrize(("method", "path"), ADMIN_ONLY)
def test_endpoints_are_for_admins_only(gateway: Gateway, key: str, method: str, path: str) -> None:
    before = gateway.strategy(STRATEGY)["desired_generation"]
    allowed = gateway.new_key(allowed_routes=[path])  # which still makes nobody an admin
    for each, statuses in ((None, {401}), ("sk-garbage", {401}), (key, {401, 403}), (allowed, {403})):
        refused = gateway.http(each).request(method, path)
        assert refused.status_code in statuses, refused.text
        assert "sha256" not in refused.text
    assert refused.json()["error"]["code"] == "E4103"
    assert gateway.strategy(STRATEGY)["desired_generation"] == before


def test_an_unknown_strategy_is_a_404_that_names_the_known(gateway: Gateway) -> None:
    answer = gateway.admin.post("/pointsman/strategies/nobody/reload")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "E4004"
    assert STRATEGY in error["mend"]


def test_a_malformed_rollback_is_refused(gateway: Gateway) -> None:
    before = gateway.strategy(STRATEGY)["desired_generation"]
    answer = gateway.admin.post(f"/pointsman/strategies/{STRATEGY}/rollback", json={"raison": "typo"})
    assert answer.status_code in (400, 422)
    assert gateway.strategy(STRATEGY)["desired_generation"] == before


@pytest.mark.requirement("R-3.4", "R-3.3", "P-22")
@pytest.mark.parametrize(
    ("fault", "code"), [("refuse", "E4400"), ("hang", "E4400"), ("broken", "E4400"), ("forbidden", "E4401")]
)
def test_s3_away_is_told_counted_and_noticed_by_nobody_else(
    gateway: Gateway, key: str, publisher: S3Publisher, s3: S3Server, fault: str, code: str
) -> None:
    good = settle(gateway, publisher)
    before = gateway.strategy(STRATEGY)["counters"]["failures"]
    with s3.fault(fault):
        row = wait_for(lambda: row if (row := gateway.strategy(STRATEGY))["last_error"] else {}, 15, "the outage is told")
        assert code in str(row["last_error"])
        assert row["counters"]["failures"] > before
        assert versions(gateway, key) == {good.version}
        start = time.monotonic()
        WAYS["chat"](Clients(gateway, key), "auto", HARD)
        assert time.monotonic() - start < 2, "a request does not wait for S3"
    published = publisher.publish(new_version())
    wait_for(lambda: in_service(gateway, published), 15, "it goes on where it was")
    assert gateway.strategy(STRATEGY)["last_error"] is None


@pytest.mark.requirement("P-22", "P-5")
@settings(max_examples=5, deadline=None)
@given(actions=st.lists(st.sampled_from(["good", "inverted", "again", *Publisher.CORRUPTIONS]), min_size=1, max_size=5))
def test_property_what_is_in_service_is_the_last_good_one(
    gateway: Gateway, key: str, publisher: S3Publisher, actions: list[str]
) -> None:
    good = settle(gateway, publisher)
    for action in actions:
        if action in ("good", "inverted"):
            good = publisher.publish(new_version(), inverted=action == "inverted")
        elif action != "again":
            publisher.corrupt(action, new_version())
        gateway.admin.post(f"/pointsman/strategies/{STRATEGY}/reload")
        wait_for(lambda good=good: in_service(gateway, good), 10, f"after {action}: {good.version}")  # type: ignore[misc]
    assert versions(gateway, key, requests=8) == {good.version}
