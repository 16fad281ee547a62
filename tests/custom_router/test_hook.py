"""The hook inside LiteLLM's real router, with a scorer made for the test in place of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import litellm
import pytest
from litellm.proxy import proxy_server

from pointsman.custom_router.hook import RouterHook
from pointsman.decisions import Attempt, Decision, Outcome
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.settings import PointsmanSettings

MESSAGES = [{"role": "user", "content": "hello"}]


class Records(list[Any]):
    """A sink of leaf records."""

    def of(self, kind: type) -> list[Any]:
        return [record for record in self if isinstance(record, kind)]


class Stand:
    """A router with a hook that prefers `strong`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **router: Any) -> None:
        self.hook = RouterHook()
        self.records = Records()
        scorer = SimpleNamespace(
            version="1",
            models=("weak", "strong"),
            scale="quality",
            score_timed=lambda *_: ({"weak": 0.1, "strong": 0.9}, 0, 0),
        )
        strategies = SimpleNamespace(get=lambda name: scorer if name == "s" else None)
        routing = {"default": "s", "deadline_ms": 5000}
        settings = PointsmanSettings.load({"routing": routing, "resilience": router.pop("resilience", {})})
        self.hook.bind(
            SimpleNamespace(  # type: ignore[arg-type]
                settings=settings, strategies=strategies, aliases={}, sinks=(self.records.append,), spans=None, scores=None
            )
        )
        monkeypatch.setattr(litellm, "callbacks", [self.hook])
        self.router = litellm.Router(
            model_list=[self.deployment("weak", max_input_tokens=100_000), self.deployment("strong", max_input_tokens=50)],
            num_retries=router.pop("num_retries", 0),
            retry_after=0,
            **router,
        )
        monkeypatch.setattr(proxy_server, "llm_router", self.router)
        self.ticket = Ticket()

    @staticmethod
    def deployment(name: str, **info: Any) -> dict[str, Any]:
        params = {"model": f"openai/{name}", "api_key": "sk-test", "mock_response": f"by {name}"}
        return {"model_name": "auto", "litellm_params": params, "model_info": {"id": name, **info}}

    async def ask(self, messages: list[dict[str, Any]] = MESSAGES, **extra: Any) -> str:
        token = CURRENT.set(self.ticket)
        try:
            answer = await self.router.acompletion("auto", messages, **extra)
        finally:
            CURRENT.reset(token)
        return str(answer.choices[0].message.content)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    made = Stand(monkeypatch)
    yield made
    made.router.reset()


async def test_the_preferred_one_answers_and_the_ticket_knows(stand: Stand) -> None:
    assert [await stand.ask() for _ in range(5)] == ["by strong"] * 5
    assert stand.ticket.decision is not None
    assert stand.ticket.decision.order == ("strong", "weak")
    assert len(stand.records.of(Decision)) == 5


async def test_a_failed_attempt_is_recorded_and_another_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch, num_retries=2)
    stand.router.get_deployment(model_id="strong")
    for item in stand.router.model_list:
        if item["model_info"]["id"] == "strong":
            item["litellm_params"]["mock_response"] = "litellm.InternalServerError"
    assert await stand.ask() == "by weak"
    attempts = stand.records.of(Attempt)
    assert [(item.number, item.deployment_id, item.outcome, item.status) for item in attempts[:1]] == [
        (1, "strong", "error", 500)
    ]
    assert [item for item in stand.records.of(Outcome) if item.status == "failure"] == []


async def test_a_session_stays_where_it_went_when_its_deployment_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Breakers off: they would keep it from `strong` as well.
    stand = Stand(
        monkeypatch,
        num_retries=2,
        resilience={"sticky": {"enabled": True}, "breaker": {"enabled": False}},
        disable_cooldowns=True,
    )

    async def ask(session: str, key: str = "one") -> str:
        stand.ticket = Ticket(asked={"x-pointsman-session": session})
        return await stand.ask(metadata={"user_api_key_hash": key})

    def strong(answer: str) -> None:
        for item in stand.router.model_list:
            if item["model_info"]["id"] == "strong":
                item["litellm_params"]["mock_response"] = answer

    assert await ask("first") == "by strong"
    strong("litellm.InternalServerError")
    assert await ask("first") == "by weak"
    strong("by strong")
    assert await ask("first") == "by weak"
    assert stand.ticket.decision is not None
    assert (stand.ticket.decision.policy, stand.ticket.decision.chosen_by) == ("sticky", "session")
    assert [await ask("second"), await ask("first", key="another")] == ["by strong"] * 2


async def test_a_prompt_that_does_not_fit_the_preferred_one_goes_to_one_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch, enable_pre_call_checks=True)
    assert await stand.ask() == "by strong"
    assert await stand.ask([{"role": "user", "content": "word " * 500}]) == "by weak"


async def test_what_the_routers_own_filters_drop_is_gone_before_the_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)

    class DropsStrong(RouterHook):
        async def async_filter_deployments(self, model: str, healthy_deployments: Any, *_: Any, **__: Any) -> Any:
            return [item for item in healthy_deployments if item["model_info"]["id"] != "strong"]

    litellm.callbacks.append(DropsStrong())  # as the router appends its budget limiter, behind us
    stand.hook.come_last()
    assert await stand.ask() == "by weak"


async def test_an_error_of_ours_is_not_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    stand.hook._decider = object()  # type: ignore[assignment] # anything without `decide`
    assert (await stand.ask()).startswith("by ")


async def test_outside_of_a_request_it_stands_aside(stand: Stand) -> None:
    deployments = list(stand.router.model_list)
    assert await stand.hook.async_filter_deployments("auto", deployments, MESSAGES, {}) is deployments
    assert await stand.hook.async_filter_deployments("auto", [], MESSAGES, {}) == []


async def test_a_failure_is_recorded_once_under_the_last_decision(stand: Stand) -> None:
    await stand.ask()
    assert stand.ticket.decision is not None
    stand.ticket.closed = False
    stand.records.clear()
    token = CURRENT.set(stand.ticket)
    try:
        for _ in range(2):
            await stand.hook.async_post_call_failure_hook({}, ValueError("x"), None)
    finally:
        CURRENT.reset(token)
    assert [(item.decision_id, item.status) for item in stand.records.of(Outcome)] == [
        (stand.ticket.decision.decision_id, "failure")
    ]
