"""A policy that reckons with how well upstreams do (`policy.health_weight`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.custom_router.decide import Decider
from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.custom_router.scores import Scores
from pointsman.decisions import Attempt
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import ScoreSettings
from pointsman.settings import RoutingSettings

pytestmark = pytest.mark.requirement("F-6")

CANDIDATES = tuple(Candidate(name, f"openai/{name}", (name,), None, upstream=f"up-{name}") for name in ("a", "b"))
REQUEST = RoutingRequest("auto", "hello", CANDIDATES, "r", None, None, None, None, (0, 0), frozenset())


def decider(scores: dict[str, float], scale: str = "quality", **policy: Any) -> tuple[Decider, Scores]:
    scorer = SimpleNamespace(version="1", models=("a", "b"), scale=scale, score_timed=lambda *_: (scores, 0, 0))
    known = Scores(ScoreSettings(), lambda: 0.0)
    known.meet(CANDIDATES)
    routing = RoutingSettings.model_validate({"default": "s", "deadline_ms": 5_000, "policy": policy})
    shelf: Any = SimpleNamespace(get=lambda _: scorer)
    return Decider(routing, shelf, {}, capture_prompts=False, health=known), known


def fails(known: Scores, name: str, times: int) -> None:
    for _ in range(times):
        known.record(Attempt("dec_1", 1, name, None, "error", "InternalServerError", 500))


@pytest.mark.parametrize(("weight", "order"), [(0.0, ("b", "a")), (0.1, ("b", "a")), (0.5, ("a", "b"))])
async def test_who_fails_loses_as_much_of_its_score_as_the_weight_says(weight: float, order: tuple[str, ...]) -> None:
    """`b` is better by 0.2 and fails nearly always."""
    decides, known = decider({"a": 0.6, "b": 0.8}, health_weight=weight)
    fails(known, "b", 18)  # of 18 and two that it is credited with: 0.1
    decision = await decides.decide(REQUEST, Ticket())
    assert decision.order == order
    assert decision.scores == {"a": 0.6, "b": 0.8}, "what the strategy said stays what it said"
    told = (decision.detail or {}).get("health")
    assert told == (None if weight == 0 else {"a": 1.0, "b": pytest.approx(0.1)})


async def test_among_equals_the_one_that_serves_comes_first() -> None:
    decides, known = decider({"a": 0.5, "b": 0.5}, health_weight=0.01)
    assert (await decides.decide(REQUEST, Ticket())).order == ("a", "b")
    decides, known = decider({"a": 0.5, "b": 0.5}, health_weight=0.01)
    fails(known, "a", 3)
    assert (await decides.decide(REQUEST, Ticket())).order == ("b", "a")


async def test_ranks_are_weighed_only_where_they_are_equal() -> None:
    decides, known = decider({"a": 1.0, "b": 2.0}, scale="rank", health_weight=1000.0)
    fails(known, "b", 50)
    assert (await decides.decide(REQUEST, Ticket())).order == ("b", "a")
    decides, known = decider({"a": 1.0, "b": 1.0}, scale="rank", health_weight=1000.0)
    fails(known, "a", 50)
    assert (await decides.decide(REQUEST, Ticket())).order == ("b", "a")
