"""Decisions: fallback reasons, the deadline, and never an id already tried."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.decide import Decider
from pointsman.custom_router.request import Candidate, Prices, RoutingRequest
from pointsman.decisions.ticket import Ticket
from pointsman.settings import RoutingSettings, StrategySettings
from pointsman.strategies.base import Query


class Shelf:
    """The registry's one method, with scorers made for the test."""

    def __init__(self, **scorers: Callable[..., dict[str, float]]) -> None:
        self._scorers = scorers

    def get(self, name: str) -> Any:
        scorer = self._scorers.get(name)
        if scorer is None:
            return None

        def score_timed(*asked: Any) -> tuple[dict[str, float], int, int]:
            return scorer(*asked), 0, 0

        return SimpleNamespace(version="7", models=("weak", "strong"), scale="quality", score_timed=score_timed)


def request(*names: str, text: str = "hello") -> RoutingRequest:
    candidates = tuple(Candidate(name, f"openai/{name}", (name,), None) for name in names)
    return RoutingRequest("auto", text, candidates, "r", None, None, None, None, (0, 0), frozenset())


def decider(shelf: Shelf, **settings: Any) -> Decider:
    return Decider(RoutingSettings(default="s", **settings), shelf, {}, capture_prompts=False)  # type: ignore[arg-type]


async def test_the_best_comes_first_and_the_version_is_told() -> None:
    decision = await decider(Shelf(s=lambda *_: {"weak": 0.2, "strong": 0.9})).decide(request("weak", "strong"), Ticket())
    assert decision.order == ("strong", "weak")
    assert (decision.strategy, decision.version, decision.model, decision.fallback) == ("s", "7", "openai/strong", None)


async def test_what_failed_in_this_request_is_not_picked_again() -> None:
    ticket = Ticket(failed={"strong"})
    decision = await decider(Shelf(s=lambda *_: {"weak": 0.2, "strong": 0.9})).decide(request("weak", "strong"), ticket)
    assert decision.order == ("weak",)
    assert [(item.deployment_id, item.reason) for item in decision.dropped] == [("strong", "tried")]


async def test_what_goes_on_from_a_response_goes_where_that_is_kept() -> None:
    good = decider(Shelf(s=lambda *_: {"weak": 0.2, "strong": 0.9}))
    asked = replace(request("weak", "strong"), continues="weak")
    decision = await good.decide(asked, Ticket())
    assert (decision.order, decision.strategy, decision.fallback) == (("weak",), None, "continued")
    assert [(item.deployment_id, item.reason) for item in decision.dropped] == [("strong", "continued")]
    # One that failed, or is away, is no place to go on.
    assert (await good.decide(asked, Ticket(failed={"weak"}))).order == ("strong",)
    away = await good.decide(replace(asked, continues="gone"), Ticket())
    assert (away.order, away.fallback) == (("strong", "weak"), None)


async def test_the_only_one_left_is_the_order_and_the_answer_says_why() -> None:
    asked = request("weak")  # the other one has failed, and LiteLLM lets it rest
    decision = await decider(Shelf(s=lambda *_: {"weak": 0.2, "strong": 0.9})).decide(asked, Ticket(failed={"strong"}))
    assert (decision.order, decision.model, decision.fallback) == (("weak",), "openai/weak", "only_candidate")


async def test_when_all_have_failed_all_are_candidates_again() -> None:
    ticket = Ticket(failed={"strong", "weak"})
    decision = await decider(Shelf(s=lambda *_: {"weak": 0.2, "strong": 0.9})).decide(request("weak", "strong"), ticket)
    assert decision.order == ("strong", "weak")


async def test_an_unknown_deployment_serves_last() -> None:
    decision = await decider(Shelf(s=lambda *_: {"weak": 0.2, "strong": 0.9})).decide(request("new", "weak"), Ticket())
    assert decision.order == ("weak", "new")
    assert [(item.deployment_id, item.reason) for item in decision.dropped] == [("new", "no_score")]


def boom(_: str, user: str | None = None) -> dict[str, float]:
    raise ValueError("broken strategy")


@pytest.mark.parametrize(
    ("shelf", "asked", "reason"),
    [
        (Shelf(), request("weak", "strong"), "no_bundle"),
        (Shelf(s=lambda *_: {}), request("weak", "strong", text=""), "no_text"),
        (Shelf(s=lambda *_: {"weak": 1.0}), request("a", "b"), "no_candidate"),
        (Shelf(s=boom), request("weak", "strong"), "error"),
    ],
)
async def test_fallback_reasons(shelf: Shelf, asked: RoutingRequest, reason: str) -> None:
    decision = await decider(shelf).decide(asked, Ticket())
    assert (decision.fallback, decision.order, decision.strategy) == (reason, (), None)


async def test_a_slow_strategy_costs_its_deadline_and_no_more() -> None:
    release = threading.Event()

    def slow(_: str, user: str | None) -> dict[str, float]:
        release.wait(30)
        return {"weak": 1.0}

    deciding = decider(Shelf(s=slow), deadline_ms=20)
    try:
        decision = await asyncio.wait_for(deciding.decide(request("weak", "strong"), Ticket()), 10)
        assert decision.fallback == "deadline"
        assert decision.microseconds >= 20_000
    finally:
        release.set()
        deciding.close()


async def test_a_group_of_one_and_a_group_without_strategy_are_not_scored() -> None:
    one = await decider(Shelf(s=boom)).decide(request("weak"), Ticket())
    assert (one.fallback, one.strategy) == (None, None)
    other = await decider(Shelf(s=boom), groups={"auto": None}).decide(request("weak", "strong"), Ticket())
    assert (other.fallback, other.strategy) == (None, None)


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd"), min_size=1))
def test_never_an_id_already_tried_while_another_remains(failed: set[str], present: set[str]) -> None:
    async def run() -> None:
        shelf = Shelf(s=lambda *_: {"weak": 0.5, "strong": 0.6})
        deciding = decider(shelf, candidates={"weak": "a", "strong": "b"})
        try:
            decision = await deciding.decide(request(*sorted(present)), Ticket(failed=set(failed)))
        finally:
            deciding.close()
        if present - failed and decision.order:
            assert decision.order[0] not in failed

    asyncio.run(run())


async def test_exploration_is_for_first_attempts_alone() -> None:
    settings = RoutingSettings.model_validate({"default": "s", "policy": {"explore": {"share": 1.0, "among": "all"}}})
    shelf = Shelf(s=lambda *_: {"weak": 0.2, "strong": 0.9})
    deciding = Decider(settings, shelf, {}, capture_prompts=False, chance=random.Random(1))  # type: ignore[arg-type]
    three = request("weak", "strong", "new")
    picks = {(await deciding.decide(three, Ticket())).order[0] for _ in range(40)}
    assert picks == {"weak", "strong", "new"}  # the one without a score is learned of in no other way
    for retry, ticket in ((replace(three, retries=(1, 0)), Ticket()), (three, Ticket(failed={"new"}))):
        for _ in range(20):
            decision = await deciding.decide(retry, ticket)
            assert (decision.order[0], decision.propensity, decision.policy) == ("strong", 1.0, "argmax")
    failed = [await deciding.decide(replace(three, excluded=frozenset({"weak"})), Ticket()) for _ in range(40)]
    assert "weak" not in {decision.order[0] for decision in failed}
    deciding.close()


async def test_each_strategy_has_its_own_policy_and_text() -> None:
    read: list[str] = []

    def scorer(text: str, _: str | None) -> dict[str, float]:
        read.append(text)
        return {"weak": 0.5, "strong": 0.6}

    base = {"source": "s3://b/k.json"}
    configured = {
        "plain": StrategySettings.model_validate(base),
        "weighed": StrategySettings.model_validate({**base, "policy": {"cost_weight": 0.5}, "text": {"turns": "user"}}),
    }
    routing = RoutingSettings(groups={"auto": "plain", "other": "weighed"})
    shelf = Shelf(plain=scorer, weighed=scorer)
    deciding = Decider(routing, shelf, {}, capture_prompts=False, configured=configured)  # type: ignore[arg-type]
    messages = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    asked = replace(request("weak", "strong", text="two"), messages=messages)
    prices = (Prices(1e-6, 1e-6), Prices(9e-6, 9e-6))
    asked = replace(asked, candidates=tuple(replace(c, prices=p) for c, p in zip(asked.candidates, prices, strict=True)))
    plain = await deciding.decide(asked, Ticket())
    weighed = await deciding.decide(replace(asked, group="other"), Ticket())
    assert (plain.order[0], plain.policy, plain.chosen_by) == ("strong", "argmax", "group")
    assert (weighed.order[0], weighed.policy, weighed.strategy) == ("weak", "cost", "weighed")
    assert read == ["two", "one\ntwo"]
    deciding.close()


class Waiting:
    """A strategy that waits, and has names of its own."""

    version, kind, scale = "9", "custom", "rank"
    models: tuple[str, ...] = ()

    async def score_async(self, query: Query) -> dict[str, float]:
        return {"nobody": 1.0, "weak": 0.7, "strong": 0.1} if query.text != "none" else {"nobody": 1.0}


async def test_a_strategy_with_names_of_its_own_is_matched_by_its_answer() -> None:
    shelf = SimpleNamespace(get=lambda name: Waiting() if name == "s" else None)
    deciding = decider(shelf, policy={"cost_weight": 1})  # type: ignore[arg-type]
    decision = await deciding.decide(request("strong", "weak", "new"), Ticket())
    assert (decision.order, decision.policy, decision.scale) == (("weak", "strong", "new"), "argmax:rank", "rank")
    assert [(item.deployment_id, item.reason) for item in decision.dropped] == [("new", "no_score")]
    assert (await deciding.decide(request("strong", "weak", text="none"), Ticket())).fallback == "no_candidate"
    deciding.close()
