"""LiteLLM's own strategies: each of them, driven live, chooses by what its name says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from support.gateway import Gateway
from support.processes import wait_for
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("startup")

# In a row, to count as no accident: chance gives it once in 16,384 tries.
ROW = 14


def deployments(group: str, upstreams: Upstreams, first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Two deployments of a group, `GROUP-1` and `GROUP-2`."""
    return [
        {
            "model_name": group,
            "litellm_params": {
                "model": "openai/native-model",
                "api_base": upstreams.url(f"{group}-{number}"),
                "api_key": "sk-upstream",
                **extra,
            },
        }
        for number, extra in enumerate((first, second), start=1)
    ]


@pytest.fixture(scope="module")
def client(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One worker, because LiteLLM counts in each of them, and no database, because nothing is stored."""
    cheap, dear = ({"input_cost_per_token": price, "output_cost_per_token": price} for price in (0.000_001, 0.000_1))
    config = {
        "model_list": [
            *deployments("by-cost", upstreams, dear, cheap),
            *deployments("by-latency", upstreams, {}, {}),
            *deployments("by-usage", upstreams, {}, {}),
            *deployments("by-usage-2", upstreams, {}, {}),
            *deployments("by-load", upstreams, {}, {}),
        ],
        "router_settings": {
            "routing_strategy": "latency-based-routing",
            "num_retries": 0,
            "routing_groups": [
                {"group_name": "one", "models": ["by-cost"], "routing_strategy": "cost-based-routing"},
                {"group_name": "two", "models": ["by-usage"], "routing_strategy": "usage-based-routing"},
                {"group_name": "three", "models": ["by-usage-2"], "routing_strategy": "usage-based-routing-v2"},
                {"group_name": "four", "models": ["by-load"], "routing_strategy": "least-busy"},
            ],
        },
    }
    gateway = Gateway(config, tmp_path_factory.mktemp("native"), None, workers=1)
    gateway.start()
    try:
        yield gateway.http(gateway.master_key)
        gateway.stop()
    finally:
        gateway.kill()


def ask(client: httpx.Client, group: str) -> str:
    """One request; the text of its answer."""
    answer = client.post("/v1/chat/completions", json={"model": group, "messages": [{"role": "user", "content": "hello"}]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def settled(upstreams: Upstreams, client: httpx.Client, group: str, tries: int) -> Sequence[int]:
    """Requests of each upstream after at most `tries`, or as soon as the second had `ROW` in a row and the first one."""
    row = 0
    counts = [upstreams.count(f"{group}-1"), upstreams.count(f"{group}-2")]
    for _ in range(tries):
        before = upstreams.count(f"{group}-2")
        ask(client, group)
        row = row + 1 if upstreams.count(f"{group}-2") > before else 0
        if row == ROW and upstreams.count(f"{group}-1") > counts[0]:
            break
    assert row == ROW, "it never stayed with the second"
    return [upstreams.count(f"{group}-{number}") - counts[number - 1] for number in (1, 2)]


@pytest.mark.requirement("R-2.6")
def test_by_cost_the_cheaper_one_has_it_all(client: httpx.Client, upstreams: Upstreams) -> None:
    for _ in range(ROW):
        ask(client, "by-cost")
    assert (upstreams.count("by-cost-1"), upstreams.count("by-cost-2")) == (0, ROW)


@pytest.mark.requirement("R-2.6")
def test_by_latency_the_slow_one_is_tried_and_left(client: httpx.Client, upstreams: Upstreams) -> None:
    """As `router_settings.routing_strategy`, for whatever is in no group."""
    upstreams.fault("by-latency-1", delay=0.5)
    first, second = settled(upstreams, client, "by-latency", 40)
    assert first < second


@pytest.mark.requirement("R-2.6")
@pytest.mark.parametrize("group", ["by-usage", "by-usage-2"])
def test_by_usage_the_one_with_fewer_tokens_is_next(client: httpx.Client, upstreams: Upstreams, group: str) -> None:
    upstreams.script(f"{group}-1", ("", "word " * 3000))
    first, second = settled(upstreams, client, group, 60)
    assert first < second


@pytest.mark.requirement("R-2.6")
def test_by_load_nobody_waits_behind_another(client: httpx.Client, upstreams: Upstreams) -> None:
    names = ("by-load-1", "by-load-2")
    for name in names:
        upstreams.fault(name, hang=True, times=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client, "by-load")
        try:
            wait_for(lambda: any(upstreams.count(name) for name in names), 10, "the first request has arrived")
            (busy,) = [name for name in names if upstreams.count(name)]
            (idle,) = set(names) - {busy}
            upstreams.clear(idle)
            for _ in range(ROW):
                assert ask(client, "by-load") == f"served by {idle}"
        finally:
            for name in names:
                upstreams.clear(name)
        assert waiting.result(20) == f"served by {busy}"
