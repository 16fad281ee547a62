"""Hedged requests over the real gateway: slow upstreams, keys of both classes, and what is on the keys' spend."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import dict_row

from pointsman.database_url import own_schema
from support.gateway import Gateway
from support.processes import wait_for
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("resilience")

FIRST = 10**9
"""Weight of the deployment that LiteLLM asks first."""
DELAY = 1.0
FLOOR = 2
ASK: Any = [{"role": "user", "content": "hello"}]
PRICE = 0.001
GROUPS = (
    "hg-slow",
    "hg-normal",
    "hg-fast",
    "hg-second",
    "hg-budget",
    "hg-dead",
    "hg-error",
    "hg-left",
    "hg-late",
    "hg-tools",
    "hg-last",
)


def deployment(upstreams: Upstreams, group: str, name: str, **params: Any) -> dict[str, Any]:
    prices = {"input_cost_per_token": PRICE, "output_cost_per_token": PRICE}
    at = {"model": "openai/m", "api_base": upstreams.url(name), "api_key": "sk-up"}
    return {"model_name": group, "litellm_params": {**at, **prices, **params}, "model_info": {"id": name}}


@pytest.fixture(scope="module")
def gateway(
    upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    models = [deployment(upstreams, group, f"{group}-a", weight=FIRST) for group in GROUPS]
    models += [deployment(upstreams, group, f"{group}-b", weight=1) for group in GROUPS]
    models += [deployment(upstreams, name, name) for name in ("hg-dead-fallback", "hg-warm")]
    config = {
        "model_list": models,
        "router_settings": {"fallbacks": [{"hg-dead": ["hg-dead-fallback"]}], "timeout": 20},
        "litellm_settings": {"callbacks": ["prometheus"]},
        "general_settings": {},
        "pointsman": {
            "resilience": {
                "hedging": {"enabled": True, "delay": DELAY, "share": 0, "floor": FLOOR},
                "breaker": {"consecutive_failures": 1_000, "minimum_volume": 100_000},
            }
        },
    }
    instance = Gateway(config, tmp_path_factory.mktemp("hedging"), new_database(), workers=1)
    instance.start()
    instance.openai().chat.completions.create(model="hg-warm", messages=ASK)  # the first one of a worker takes longer
    yield instance
    instance.stop()


@pytest.fixture
def high(gateway: Gateway) -> str:
    return gateway.new_key(metadata={"pointsman_priority": "high"})


@pytest.fixture
def metric(gateway: Gateway) -> Any:
    def value(name: str, **labels: str) -> float:
        text = gateway.admin.get("/metrics/").raise_for_status().text
        found = (one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name)
        return sum(one.value for one in found if labels.items() <= one.labels.items())

    return value


def chat(gateway: Gateway, key: str, group: str, **asked: Any) -> tuple[Any, float]:
    began = time.monotonic()
    answer = gateway.openai(key).chat.completions.create(model=group, messages=ASK, **asked)
    return answer, time.monotonic() - began


def counts(upstreams: Upstreams, group: str) -> list[int]:
    return [upstreams.count(f"{group}-{name}") for name in ("a", "b")]


def spend(gateway: Gateway, key: str) -> list[dict[str, Any]]:
    query = """select spend, model_id, model_group, total_tokens from "LiteLLM_SpendLogs" where api_key = %s"""
    assert gateway.database_url is not None
    with psycopg.connect(gateway.database_url, row_factory=dict_row) as connection:
        return connection.execute(query, (hashlib.sha256(key.encode()).hexdigest(),)).fetchall()


def attempts(gateway: Gateway, *deployments: str) -> list[tuple[Any, ...]]:
    assert gateway.database_url is not None
    with psycopg.connect(gateway.database_url) as connection:
        connection.execute(f"set search_path to {own_schema(gateway.database_url)}")
        query = """select deployment_id, outcome from pointsman_attempts where deployment_id = any(%s) order by deployment_id"""
        return connection.execute(query, (list(deployments),)).fetchall()


def test_the_second_answers_for_a_first_that_hangs_and_is_let_go(
    gateway: Gateway, upstreams: Upstreams, high: str, metric: Any
) -> None:
    upstreams.fault("hg-slow-a", hang=True)
    answer, seconds = chat(gateway, high, "hg-slow")
    assert answer.choices[0].message.content == "served by hg-slow-b"
    assert DELAY <= seconds < DELAY + 5  # and not the 20 of the time-out
    assert counts(upstreams, "hg-slow") == [1, 1]
    wait_for(lambda: upstreams.report("hg-slow-a")["active"] == 0, 3, "the first one's connection is closed")
    wait_for(lambda: len(spend(gateway, high)) == 2, 30, "the answer, and that it was given")
    rows = {row["model_id"]: (row["spend"], row["total_tokens"]) for row in spend(gateway, high)}
    tokens = answer.usage.total_tokens
    cost = pytest.approx(tokens * PRICE)
    assert tokens > 0
    assert rows == {"hg-slow-b": (cost, tokens), "pointsman-replay-hg-slow": (0.0, 0)}
    wait_for(lambda: gateway.key_info(high)["spend"] > 0, 30, "it is on the key's spend")
    assert gateway.key_info(high)["spend"] == cost
    wait_for(lambda: len(attempts(gateway, "hg-slow-a", "hg-slow-b")) == 2, 15, "both are recorded")
    assert attempts(gateway, "hg-slow-a", "hg-slow-b") == [("hg-slow-a", "cancelled"), ("hg-slow-b", "ok")]
    assert attempts(gateway, "pointsman-replay-hg-slow") == []
    assert metric("pointsman_hedges_total", group="hg-slow", outcome="won") == 1
    # That it was let go says nothing of it.
    told = gateway.admin.get("/pointsman/providers").raise_for_status().json()
    known = {name: one for one in told["providers"] for name in one["deployments"]}
    assert known["hg-slow-a"]["success_rate"] is None
    assert known["hg-slow-b"]["success_rate"]["value"] == 1


def test_the_first_answers_after_all(gateway: Gateway, upstreams: Upstreams, high: str, metric: Any) -> None:
    upstreams.fault("hg-second-a", delay=DELAY + 0.5)
    upstreams.fault("hg-second-b", hang=True)
    answer, _ = chat(gateway, high, "hg-second")
    assert answer.choices[0].message.content == "served by hg-second-a"
    assert counts(upstreams, "hg-second") == [1, 1]
    wait_for(lambda: upstreams.report("hg-second-b")["active"] == 0, 3, "the second one's connection is closed")
    assert metric("pointsman_hedges_total", group="hg-second", outcome="lost") == 1


def test_other_classes_wait_for_the_first(gateway: Gateway, upstreams: Upstreams) -> None:
    upstreams.fault("hg-normal-a", delay=DELAY + 1)
    key = gateway.new_key()
    answer, _ = chat(gateway, key, "hg-normal")
    assert answer.choices[0].message.content == "served by hg-normal-a"
    assert counts(upstreams, "hg-normal") == [1, 0]
    with pytest.raises(openai.PermissionDeniedError, match="E4110"):
        chat(gateway, key, "hg-normal", extra_headers={"x-pointsman-priority": "high"})


def test_a_fast_answer_is_the_only_one(gateway: Gateway, upstreams: Upstreams, high: str) -> None:
    answer, seconds = chat(gateway, high, "hg-fast")
    assert answer.choices[0].message.content == "served by hg-fast-a"
    assert seconds < DELAY
    time.sleep(DELAY)  # a second call would be made by now
    assert counts(upstreams, "hg-fast") == [1, 0]


def test_a_fast_failure_is_ordinary_failover(gateway: Gateway, upstreams: Upstreams, high: str, metric: Any) -> None:
    upstreams.fault("hg-error-a", status=500)
    answer, _ = chat(gateway, high, "hg-error")
    assert answer.choices[0].message.content == "served by hg-error-b"
    assert counts(upstreams, "hg-error") == [1, 1]
    assert metric("pointsman_hedges_total", group="hg-error") == 0


def test_the_budget_bounds_them(gateway: Gateway, upstreams: Upstreams, high: str, metric: Any) -> None:
    upstreams.fault("hg-budget-a", delay=DELAY + 0.5)
    said = [chat(gateway, high, "hg-budget")[0].choices[0].message.content for _ in range(FLOOR + 2)]
    assert said == ["served by hg-budget-b"] * FLOOR + ["served by hg-budget-a"] * 2
    assert counts(upstreams, "hg-budget") == [FLOOR + 2, FLOOR]
    assert metric("pointsman_hedges_total", group="hg-budget", outcome="refused") == 2


def test_where_both_fail_the_request_goes_on_to_its_fallback(
    gateway: Gateway, upstreams: Upstreams, high: str, metric: Any
) -> None:
    upstreams.fault("hg-dead-a", delay=DELAY + 0.5, status=500)
    upstreams.fault("hg-dead-b", status=500)
    answer, _ = chat(gateway, high, "hg-dead")
    assert answer.choices[0].message.content == "served by hg-dead-fallback"
    assert counts(upstreams, "hg-dead") == [1, 1]
    assert metric("pointsman_hedges_total", group="hg-dead", outcome="failed") == 1


@pytest.mark.requirement("R-14.5")
def test_where_nothing_helps_the_error_names_both(gateway: Gateway, upstreams: Upstreams, high: str) -> None:
    upstreams.fault("hg-last-a", delay=DELAY + 0.5, status=503)
    upstreams.fault("hg-last-b", status=503)
    with pytest.raises(openai.InternalServerError) as failed:
        chat(gateway, high, "hg-last")
    assert failed.value.status_code == 503
    for name in ("a", "b"):
        assert f"hg-last-{name} (ServiceUnavailableError, 503)" in str(failed.value)
    assert sum(counts(upstreams, "hg-last")) == 2 + 2, "the two, and LiteLLM's `num_retries`"


@pytest.mark.parametrize("group", ["hg-left", "hg-late"])
def test_the_end_of_the_request_ends_both(gateway: Gateway, upstreams: Upstreams, high: str, group: str) -> None:
    for name in ("a", "b"):
        upstreams.fault(f"{group}-{name}", hang=True)
    if group == "hg-left":  # the client leaves
        with pytest.raises(openai.APITimeoutError):
            gateway.openai(high, timeout=DELAY + 1.0).chat.completions.create(model=group, messages=ASK)
    else:
        with pytest.raises(openai.APIStatusError):
            chat(gateway, high, group, extra_headers={"x-pointsman-deadline-ms": str(int(DELAY * 1000) + 1000)})
    assert counts(upstreams, group) == [1, 1]
    told = gateway.admin.get("/pointsman/providers").raise_for_status().json()
    known = {name: one["success_rate"] for one in told["providers"] for name in one["deployments"]}
    assert [known[f"{group}-{name}"] for name in ("a", "b")] == [None, None], "it says nothing of them"
    for name in ("a", "b"):
        wait_for(lambda name=name: upstreams.report(f"{group}-{name}")["active"] == 0, 5, f"{name} is let go")  # type: ignore[misc]


def test_parameters_reach_whoever_answers(gateway: Gateway, upstreams: Upstreams, high: str) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    asked: dict[str, Any] = {"tools": tools, "tool_choice": "auto", "temperature": 0.5, "seed": 7}
    upstreams.fault("hg-tools-a", hang=True)
    chat(gateway, high, "hg-tools", **asked)
    for name in ("hg-tools-a", "hg-tools-b"):
        body = upstreams.requests(name)[0]["body"]
        assert {key: body.get(key) for key in asked} == asked
