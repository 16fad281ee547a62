"""Cascades inside LiteLLM's real router, without a gateway: what its cache, its retries and its fallbacks make of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import litellm
import pytest
from litellm.caching.caching import Cache
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy import proxy_server
from litellm.proxy._types import UserAPIKeyAuth

from pointsman.cascade_settings import CascadeSettings
from pointsman.custom_router.cascades import replay
from pointsman.custom_router.cascades.limits import Limits, Step
from pointsman.custom_router.cascades.service import State
from pointsman.custom_router.cascades.types import Ending, Level, Said
from pointsman.custom_router.hook import RouterHook
from pointsman.custom_router.kwargs import DECISION_KEY
from pointsman.decisions import Decision, Outcome
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.settings import PointsmanSettings
from pointsman.strategies.base import AsyncScorer, Query, UnavailableError
from support.upstreams import Upstreams

PRICES = {"cheap": 0.001, "strong": 0.1, "twin": 0.1, "back": 0.01}


def deployment(group: str, name: str, model: str, answer: str) -> dict[str, Any]:
    params = {"model": f"openai/{model}", "api_key": "sk-test", "mock_response": answer}
    prices = {"input_cost_per_token": PRICES[name], "output_cost_per_token": PRICES[name]}
    return {"model_name": group, "litellm_params": params, "model_info": {"id": name, **prices}}


class Stand:
    """A router whose group `auto` is an `automix`, of models that say one thing each, so that no verifier ever approves."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        strong: str = "by strong",
        num_retries: int = 0,
        upstreams: Upstreams | None = None,
        kind: str = "automix",
        scorer: AsyncScorer | None = None,
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.hook = RouterHook()
        self.records: list[Any] = []
        settings = PointsmanSettings.load(
            {
                "strategies": {"a": {"kind": kind, "cascade": {}, **({"source": "file:///none"} if scorer else {})}},
                "routing": {"groups": {"auto": "a"}},
            }
        )
        self.hook.bind(
            SimpleNamespace(  # type: ignore[arg-type] # what `bind` reads of it
                settings=settings,
                strategies=SimpleNamespace(get=lambda _: scorer),
                aliases={},
                sinks=(self.records.append,),
                spans=None,
                scores=None,
            )
        )
        monkeypatch.setattr(litellm, "callbacks", [self.hook])
        monkeypatch.setattr(litellm, "custom_provider_map", [{"provider": replay.PROVIDER, "custom_handler": replay.handler}])
        monkeypatch.setattr(litellm, "_custom_providers", [replay.PROVIDER])
        monkeypatch.setattr(litellm, "provider_list", [*litellm.provider_list, replay.PROVIDER])
        self.router = litellm.Router(
            model_list=[
                deployment("auto", "cheap", "cheap-model", "by cheap"),
                deployment("auto", "strong", "strong-model", strong),
                deployment("auto", "twin", "strong-model", "by twin"),
                deployment("back", "back", "back-model", "by back"),
            ],
            fallbacks=[{"auto": ["back"]}],
            num_retries=num_retries,
            retry_after=0,
            disable_cooldowns=True,
            cache_responses=upstreams is not None,
            enable_tag_filtering=bool(tags),
        )
        for item in self.router.model_list:
            if (tag := tags.get(item["model_info"]["id"])) is not None:
                item["litellm_params"]["tags"] = [tag]
        for item in self.router.model_list if upstreams is not None else ():  # LiteLLM keeps no mocked answer
            del item["litellm_params"]["mock_response"]
            item["litellm_params"]["api_base"] = upstreams.url(f"kept-{item['model_info']['id']}")
        monkeypatch.setattr(proxy_server, "llm_router", self.router)
        self.ticket = Ticket()

    async def ask(self, params: Mapping[str, Any] = MappingProxyType({}), **metadata: Any) -> str:
        token = CURRENT.set(self.ticket)
        try:
            told = {"user_api_key": "k", "user_api_key_request_route": "/v1/chat/completions", **metadata}
            messages = [{"role": "user", "content": "two and two"}]
            answer = await self.router.acompletion("auto", messages, metadata=told, **params)
        finally:
            CURRENT.reset(token)
        return str(answer.choices[0].message.content)

    def of(self, kind: type) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


class Waits:
    """A bundle whose encoder is asked over the network: every part is the cheap model's."""

    version, kind, models, scale = "7", "knn", ("cheap-model", "strong-model"), "quality"

    def __init__(self, fails: str | None = None) -> None:
        self.fails, self.asked = fails, list[str]()

    async def score_async(self, query: Query) -> Mapping[str, float]:
        await asyncio.sleep(0)
        self.asked.append(query.text)
        if self.fails is not None:
            raise UnavailableError(self.fails, "away")
        return {"cheap-model": 0.9, "strong-model": 0.1}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stand]]:
    made: list[Stand] = []

    def make(**options: Any) -> Stand:
        made.append(Stand(monkeypatch, **options))
        return made[-1]

    yield make
    for one in made:
        one.router.reset()


async def test_a_doubted_answer_is_not_taken_from_the_cache_in_place_of_the_stronger_models(
    stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch, upstreams: Upstreams
) -> None:
    for callbacks in ("input_callback", "success_callback", "_async_success_callback"):
        monkeypatch.setattr(litellm, callbacks, [])  # the cache puts itself into them
    monkeypatch.setattr(litellm, "cache", Cache(type="local"))
    made = stand(upstreams=upstreams)
    assert await made.ask() in ("served by kept-strong", "served by kept-twin")
    (decision,) = made.of(Decision)
    assert (decision.model, decision.fallback) == ("openai/strong-model", "verifier")


async def test_who_serves_the_same_model_is_tried_before_the_doubted_answer_is_given(
    stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stand(strong="litellm.InternalServerError", num_retries=2)
    monkeypatch.setattr("random.shuffle", lambda ids: ids.sort())  # `strong` comes before `twin`
    assert await made.ask() == "by twin"
    assert [one.order[0] for one in made.of(Decision)] == ["strong", "twin"]


async def test_the_last_attempt_is_for_the_doubted_answer(stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand(strong="litellm.InternalServerError", num_retries=1)
    monkeypatch.setattr("random.shuffle", lambda ids: ids.sort())
    assert await made.ask() == "by cheap"
    assert [(one.model, one.fallback) for one in made.of(Decision)][-1] == ("openai/cheap-model", "escalation")


async def test_a_spent_budget_is_no_reason_to_fall_back_to_another_group(stand: Callable[..., Stand]) -> None:
    made = stand(num_retries=1)
    auth = UserAPIKeyAuth(token="t", team_id="team", team_max_budget=1.0, team_spend=2.0)
    with pytest.raises(litellm.BudgetExceededError):
        await made.ask(user_api_key_auth=auth)
    (decision,) = made.of(Decision)
    assert (decision.group, decision.fallback, decision.detail["steps"]) == ("auto", "budget", [])
    assert isinstance(made.ticket.cascade, State)
    assert made.ticket.cascade.summary is None  # no call was made, and none is told


async def test_nor_is_a_client_that_left(stand: Callable[..., Stand]) -> None:
    made = stand(num_retries=1)

    async def gone() -> None:
        await asyncio.sleep(0)

    made.ticket.gone = gone
    with pytest.raises(litellm.BadRequestError, match="has gone"):
        await made.ask()
    assert [one.group for one in made.of(Decision)] == ["auto"]


async def test_who_may_not_use_one_of_the_models_gets_a_cascade_of_the_others(stand: Callable[..., Stand]) -> None:
    made = stand(tags={"cheap": "free", "strong": "paid", "twin": "free"})
    for _ in range(3):
        made.ticket = Ticket()
        assert await made.ask(tags=["free"]) == "by twin"
    assert {name for one in made.of(Decision) for name in one.order} == {"twin", "cheap"}
    made.ticket = Ticket()
    assert await made.ask(tags=["paid"]) == "by strong"  # one model is no cascade
    assert made.of(Decision)[-1].order == ("strong",)


@pytest.mark.parametrize("fails", [None, "remote_timeout"])
async def test_a_bundle_that_waits_for_its_encoder_chooses_for_parts(
    stand: Callable[..., Stand], upstreams: Upstreams, fails: str | None
) -> None:
    scorer = Waits(fails)
    made = stand(upstreams=upstreams, kind="knn-multiround", scorer=scorer)
    planned = r'\\"id\\": \\"([0-9a-f]{16})\\", \\"parts'
    for name in ("strong", "twin"):
        upstreams.script(f"kept-{name}", (planned, '{"id": "{1}", "parts": [{"task": "one"}, {"task": "two"}]}'))
    try:
        assert (await made.ask()).startswith("served by kept-")
    finally:
        upstreams.clear()
    (decision,) = made.of(Decision)
    assert (decision.version, decision.fallback) == ("7", fails)
    steps = [(step["role"], step["model"]) for step in decision.detail["steps"]]
    parts = [("part", "openai/cheap-model")] * 2 if fails is None else []
    assert steps == [("plan", "openai/strong-model"), *parts]
    assert scorer.asked == (["one", "two"] if fails is None else ["one"])


async def test_what_key_and_team_say_of_logging_holds_for_every_call(stand: Callable[..., Stand]) -> None:
    made, seen = stand(), []

    class Recorder(CustomLogger):  # type: ignore[misc] # LiteLLM is not typed
        async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> None:
            seen.append({name: kwargs.get(name) for name in wanted})

    wanted = {"litellm_disabled_callbacks": ["one"], "langfuse_public_key": "pk-of-the-team", "turn_off_message_logging": True}
    litellm.callbacks.append(Recorder())
    await made.ask(params=wanted)
    assert seen == [wanted] * 3  # an answer, a verdict, the strong model's


async def test_what_a_refused_request_had_spent_is_on_its_record() -> None:
    hook, records = RouterHook(), []
    hook.outcomes.sinks = (records.append,)
    limits = Limits(CascadeSettings())
    limits.steps.append(Step("plan", "m", 1.0, said=Said("x", Level("m", ("m",), ("m",)), cost=0.25)))
    ticket = Ticket(decision=Decision("dec_1", None, "auto"), cascade=State("auto", Ending(), limits))
    token = CURRENT.set(ticket)
    try:
        await hook.async_post_call_failure_hook({}, ValueError("x"), None)
    finally:
        CURRENT.reset(token)
    assert [(type(one), one.cost) for one in records] == [(Outcome, 0.25)]


async def test_only_the_call_that_answers_is_asked_what_the_cascade_made_of_the_request() -> None:
    composed = [{"role": "user", "content": "notes"}]
    state = State("auto", Ending(messages=composed), Limits(CascadeSettings()), decisions={"dec_own"})
    token = CURRENT.set(Ticket(cascade=state))
    try:
        for decision_id, expected in (("dec_own", composed), ("dec_of_another_call", None)):
            kwargs = {"model": "openai/x", "messages": [], "metadata": {DECISION_KEY: decision_id}}
            changed = await RouterHook().async_pre_call_deployment_hook(kwargs, None)
            assert (changed or {}).get("messages") == expected
    finally:
        CURRENT.reset(token)


async def test_a_client_cannot_name_the_decision_that_its_outcome_is_told_of() -> None:
    data = {"metadata": {DECISION_KEY: "dec_of_another", "mine": 1}, "litellm_metadata": {DECISION_KEY: "dec_of_another"}}
    await RouterHook().async_pre_call_hook(None, None, data, "acompletion")
    assert data == {"metadata": {"mine": 1}, "litellm_metadata": {}}
