"""Questions of the gateway's own: who is asked, when, and what comes of it. By LiteLLM's health check and its mock answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.local import is_local
from pointsman.custom_router.probes import Prober, targets
from pointsman.custom_router.request import candidate_of
from pointsman.custom_router.scores import Scores
from pointsman.decisions import Attempt
from pointsman.resilience_settings import BreakerSettings, ProbeSettings, ScoreSettings, WarmUpSettings

NEAR, FAR = "http://127.0.0.1:9/v1", "https://models.example/v1"


def deployment(name: str, base: str = NEAR, group: str = "group", **more: Any) -> dict[str, Any]:
    params = {
        "model": f"openai/{name}",
        "api_base": base,
        "api_key": "sk-x",
        "mock_response": "hello",
        **more.pop("params", {}),
    }
    return {"model_name": group, "litellm_params": params, "model_info": {"id": name, **more}}


class Bench:
    """A prober with a clock of its own."""

    def __init__(self, *deployments: dict[str, Any], probes: dict[str, Any] | None = None, **warm_up: Any) -> None:
        self.now = 1_000.0
        self.told: list[tuple[str, str]] = []
        self.deployments = list(deployments)
        self.breakers = Breakers(BreakerSettings(jitter=0.0, consecutive_failures=2), self.clock, lambda: 0.0)
        self.scores = Scores(ScoreSettings(), self.clock)
        self.prober = Prober(
            ProbeSettings(**{"enabled": True, "interval": 10, "jitter": 0.0, "timeout": 5, **(probes or {})}),
            WarmUpSettings(**{"enabled": True, "timeout": 5, **warm_up}),
            self.breakers,
            self.scores,
            lambda: self.deployments,
            lambda kind, result: self.told.append((kind, result)),
            self.clock,
            lambda: 0.0,
        )

    def clock(self) -> float:
        return self.now

    async def look(self) -> list[tuple[str, str]]:
        """What came of one look."""
        before = len(self.told)
        self.prober.look()
        await asyncio.gather(*self.prober._asking.values())
        return self.told[before:]


def broken(name: str) -> dict[str, Any]:
    return deployment(name, params={"mock_response": "litellm.InternalServerError"})


@pytest.mark.requirement("S-11")
async def test_who_is_idle_is_asked_once_in_an_interval() -> None:
    bench = Bench(deployment("a", FAR))
    assert await bench.look() == []
    bench.now += 9.9
    assert await bench.look() == []
    bench.now += 0.2
    assert await bench.look() == [("probe", "answered")]
    assert await bench.look() == []
    bench.now += 9
    upstream = bench.scores.upstream("a")
    assert upstream is not None
    found = bench.scores.score(upstream)
    assert found.success is not None
    assert found.latency is None, "a small question says nothing of how long real ones take"
    bench.now += 1.5
    assert await bench.look() == [("probe", "answered")]


@pytest.mark.requirement("S-11")
async def test_who_was_asked_by_somebody_is_not_asked() -> None:
    bench = Bench(deployment("a", FAR))
    await bench.look()
    bench.scores.know(bench.deployments)
    for _ in range(5):
        bench.now += 8
        bench.scores.record(Attempt("dec_1", 1, "a", "openai/a", "ok", latency_ms=1.0))
        assert await bench.look() == []


@pytest.mark.requirement("S-11")
async def test_a_breaker_opens_and_closes_by_probes_alone() -> None:
    bench = Bench(broken("a"), probes={"interval": 1}, enabled=False)
    for _ in range(4):
        bench.now += 1.1
        await bench.look()
    upstream = bench.scores.upstream("a")
    assert upstream is not None
    assert bench.breakers.states()[upstream] == "open"
    assert bench.told == [("probe", "failed")] * 2
    bench.now += 1.1
    assert await bench.look() == [], "while it rests it is let alone"
    bench.deployments = [deployment("a")]
    bench.now += 5.0
    assert await bench.look() == [("probe", "answered")]
    assert await bench.look() == [("probe", "answered")], "half open: at once"
    assert bench.breakers.states()[upstream] == "closed"


@pytest.mark.requirement("S-9")
async def test_a_local_backend_whose_breaker_closed_is_warmed_up() -> None:
    bench = Bench(deployment("near"), deployment("far", FAR), probes={"enabled": False})
    both = [candidate_of(one) for one in bench.deployments]
    for one in both:
        bench.breakers.admit([one], [one], "first")
        for _ in range(2):
            bench.breakers.record(one.deployment_id, "bad")
    assert set(bench.breakers.states().values()) == {"open"}
    assert await bench.look() == []
    bench.now += 5.0
    for one in both:  # users' requests find out that they are back
        for token in ("second", "third"):
            assert not bench.breakers.admit([one], [one], token).dropped
            bench.breakers.record(one.deployment_id, "good", token)
    assert set(bench.breakers.states().values()) == {"closed"}
    assert await bench.look() == [("warm_up", "answered")]
    assert bench.scores.upstream("near") is not None, "the local one"
    assert bench.scores.upstream("far") is None
    assert await bench.look() == [], "once"


@pytest.mark.requirement("S-9")
async def test_all_local_backends_are_asked_and_no_other() -> None:
    bench = Bench(deployment("a"), deployment("b", FAR), deployment("c", FAR, pointsman={"local": True}), broken("d"))
    state = await bench.prober.warm()
    assert state["state"] == "incomplete"
    assert {name.partition("@")[0]: result for name, result in state["upstreams"].items()} == {
        "openai/a": "answered",
        "openai/c": "answered",
        "openai/d": "failed",
    }


@pytest.mark.requirement("S-9")
async def test_it_is_ready_anyway_when_the_time_is_over() -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    bench = Bench(deployment("a"), timeout=0.2)
    bench.prober.ask = never  # type: ignore[method-assign,assignment] # a backend that never answers, and no time-out of its own
    state = await asyncio.wait_for(bench.prober.warm(), 5)
    assert state["state"] == "incomplete"
    assert list(state["upstreams"].values()) == ["late"]


async def test_what_runs_ends_with_it() -> None:
    bench = Bench(deployment("a"), probes={"interval": 1})
    warm: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(bench.prober.run(warm.set_result))
    assert (await asyncio.wait_for(warm, 10))["state"] == "warm"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not [one for one in asyncio.all_tasks() if one.get_name().startswith("pointsman-")]


def test_what_cannot_be_asked_cheaply_is_not_asked() -> None:
    found = targets([
        deployment("a"),
        {**deployment("a"), "model_name": "twin", "model_info": {"id": "a2"}},
        deployment("pictures", mode="image_generation"),
        deployment("off", disable_background_health_check=True),
        deployment("any", params={"model": "openai/*"}),
        deployment("vectors", mode="embedding"),
    ])  # fmt: skip
    assert [(target.deployment_id, target.groups) for target in found] == [
        ("a", {"group", "twin"}),
        ("vectors", {"group"}),
    ]


@pytest.mark.parametrize(
    ("params", "info", "local"),
    [
        ({"model": "hosted_vllm/m", "api_base": FAR}, {}, True),
        ({"model": "ollama/m"}, {}, True),
        ({"model": "openai/m", "api_base": "http://10.1.2.3:8080/v1"}, {}, True),
        ({"model": "openai/m", "api_base": "http://[::1]:8080"}, {}, True),
        ({"model": "openai/m", "api_base": "http://llama:8080/v1"}, {}, True),
        ({"model": "openai/m", "api_base": "http://llama.models.svc.cluster.local/v1"}, {}, True),
        ({"model": "m", "custom_llm_provider": "openai", "base_url": "http://localhost:1"}, {}, True),
        ({"model": "openai/m", "api_base": FAR}, {}, False),
        ({"model": "openai/m"}, {}, False),
        ({"model": "anthropic/m", "api_base": "http://127.0.0.1"}, {}, False),
        ({"model": "openai/m", "api_base": "http://[oops"}, {}, False),
        ({"model": "openai/m", "api_base": FAR}, {"pointsman": {"local": True}}, True),
        ({"model": "ollama/m"}, {"pointsman": {"local": False}}, False),
        ({"model": "ollama/m"}, {"pointsman": "yes"}, True),
    ],
)
@pytest.mark.requirement("S-9")
def test_which_backends_are_local(params: dict[str, Any], info: dict[str, Any], local: bool) -> None:
    assert is_local(params, info) is local
