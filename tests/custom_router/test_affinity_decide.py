"""What the decider makes of a session: the pin before the strategy, its words in the decision, when it lets go of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pointsman.callbacks.metrics import SESSIONS, Metrics
from pointsman.custom_router.affinity import STICKY, Affinity
from pointsman.custom_router.decide import Decider
from pointsman.custom_router.kwargs import GENERATED_KEY
from pointsman.custom_router.override import Wish
from pointsman.custom_router.pins import KEPT, MOVED, NEW, RETURNED
from pointsman.custom_router.request import Candidate, Prices, RoutingRequest, Session
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import StickySettings
from pointsman.settings import RoutingSettings
from pointsman.strategies.base import Query

ONE = (Session("header", "one"),)


class Scorer:
    """Prefers what the text begins with, and counts how often it is asked."""

    version, kind, scale, models = "1", "custom", "rank", ("a", "b", "c")

    def __init__(self) -> None:
        self.asked = 0

    async def score_async(self, query: Query) -> dict[str, float]:
        self.asked += 1
        return {name: float(query.text.startswith(name)) for name in self.models}


class Stand:
    """A decider with a scorer of the test's, whose clock stands until it is told to go on."""

    def __init__(self, routing: dict[str, Any] | None = None, **sticky: Any) -> None:
        self.now = 1_000.0
        self.scorer = Scorer()
        given = StickySettings.model_validate({"enabled": True, **sticky})
        self.affinity = Affinity(given, b"k", lambda: self.now, lambda: self.now)
        shelf: Any = SimpleNamespace(get=lambda name: self.scorer if name == "s" else None)
        settings = RoutingSettings.model_validate({"default": "s", "deadline_ms": 5000, **(routing or {})})
        self.decider = Decider(settings, shelf, {}, capture_prompts=False, affinity=self.affinity)

    async def pick(self, text: str = "a", *, names: str = "abc", ticket: Ticket | None = None, **change: Any) -> Any:
        candidates = tuple(Candidate(name, f"x/{name}", (name,), None) for name in names)
        asked = RoutingRequest("auto", text, candidates, "r", None, "key", None, None, (0, 0), frozenset(), sessions=ONE)
        return await self.decider.decide(replace(asked, **change), ticket or Ticket())


async def test_a_session_stays_and_no_strategy_is_asked_for_it() -> None:
    stand = Stand()
    first = await stand.pick("b")
    assert (first.order[0], first.strategy, first.policy, first.chosen_by) == ("b", "s", "argmax", "default")
    assert first.detail == {"session": "new"}
    second = await stand.pick("a")
    assert (second.order, second.strategy, second.policy, second.chosen_by) == (("b",), "sticky", "sticky", "session")
    assert (second.model, second.version, second.propensity, second.fallback) == ("x/b", None, None, None)
    assert [(one.deployment_id, one.reason) for one in second.dropped] == [("a", "sticky"), ("c", "sticky")]
    assert second.detail == {"session": "kept"}
    assert stand.scorer.asked == 1


@pytest.mark.parametrize(
    "change",
    [
        {"sessions": ()},
        {"sessions": (Session("header", "two"),)},
        {"sessions": (Session("user", "one"),)},
        {"key_hash": "another"},
        {"team_id": "another"},
        {"user_id": "another"},
        {"key_hash": None},
        {"group": "another"},
        {"wish": Wish((("header", "s"),))},
    ],
)
async def test_everything_else_is_another_session_or_none(change: dict[str, Any]) -> None:
    stand = Stand()
    await stand.pick("b")
    other = await stand.pick("a", **change)
    assert (other.order[0], other.strategy) == ("a", "s")
    assert (await stand.pick("a")).order == ("b",), "nor does it move this one"


async def test_what_becomes_of_sessions_is_counted() -> None:
    stand, registry = Stand(), CollectorRegistry()
    metrics = Metrics(["s"], registry=registry)
    for names in ("abc", "abc", "bc", "abc"):
        metrics.record(await stand.pick("a", names=names))
    metrics.record(await stand.pick("a", sessions=()))
    counted = {word: registry.get_sample_value("pointsman_sessions_total", {"result": word}) for word in SESSIONS}
    assert counted == {"new": 1, "kept": 2, "moved": 1, "returned": None}
    assert {KEPT, NEW, MOVED, RETURNED} == SESSIONS
    decisions = [
        registry.get_sample_value("pointsman_routing_decisions_total", {"strategy": name, "fallback": ""})
        for name in ("s", STICKY)
    ]
    assert decisions == [3, 2]


def test_what_litellm_calls_an_id_of_its_own_making() -> None:
    from litellm.constants import SESSION_ID_GENERATED_METADATA_KEY

    assert GENERATED_KEY == SESSION_ID_GENERATED_METADATA_KEY


async def test_without_a_strategy_and_where_it_is_off_nothing_sticks() -> None:
    for stand in (Stand({"default": None}), Stand(enabled=False), Stand(groups=["other"])):
        for text in "ba":
            assert (await stand.pick(text)).strategy != "sticky"
        assert len(stand.affinity) == 0
    assert (await Stand().pick("b", endpoint="embedding")).fallback == "not_text"


async def test_it_moves_when_its_deployment_left_and_stays_where_it_went() -> None:
    stand = Stand()
    await stand.pick("b")
    moved = await stand.pick("a", names="ac")
    assert (moved.order[0], moved.strategy, moved.detail) == ("a", "s", {"session": "moved", "left": "b"})
    assert (await stand.pick("b")).order == ("a",), "b is back, and nothing is known of prices"
    # In the request in which it failed, and from then on.
    retry = await stand.pick("c", ticket=Ticket(failed={"a"}))
    assert (retry.order[0], retry.detail) == ("c", {"session": "moved", "left": "a"})
    assert (await stand.pick("b")).order == ("c",)
    assert (await stand.pick("a", names="c")).order == ("c",)
    # What goes on from a response is where that is kept.
    assert (await stand.pick("c", continues="b")).fallback == "continued"
    assert (await stand.pick("a")).order == ("b",)


async def test_when_all_have_failed_the_strategy_decides_again() -> None:
    stand = Stand()
    await stand.pick("b")
    assert (await stand.pick("a", ticket=Ticket(failed=set("abc")))).order[0] == "a"


async def test_where_litellm_chooses_the_session_is_where_it_was_answered() -> None:
    stand = Stand()
    ticket = Ticket()
    assert (await stand.pick("", ticket=ticket)).fallback == "no_text"
    stand.decider.answered(ticket, "c", 1, 1)
    assert (await stand.pick("a")).order == ("c",)
    # Not when another request has settled it since.
    late = Ticket()
    await stand.pick("", names="ab", ticket=late)
    assert (await stand.pick("b", names="ab")).order[0] == "b"
    stand.decider.answered(late, "a", 1, 1)
    assert (await stand.pick("a")).order == ("b",)


async def test_it_goes_back_only_where_that_pays_for_the_lost_prompt_cache() -> None:
    def priced(cached: float) -> tuple[Candidate, ...]:
        dear = Candidate("a", "x/a", ("a",), None, Prices(10e-6, 0.0, cached))
        return dear, Candidate("b", "x/b", ("b",), None, Prices(5e-6, 0.0))

    messages = [{"role": "user", "content": "b" * 40_000}]
    for cached, goes in ((1e-6, False), (4e-6, False), (6e-6, True), (10e-6, True)):
        for returns in (True, False):
            stand = Stand(returns=returns)
            await stand.pick("b")
            await stand.pick("a", names="a")
            change = {"candidates": priced(cached), "messages": messages}
            assert (await stand.pick("b", **change)).order == ("a",), "not at once"
            stand.now += 60
            back = await stand.pick("b", **change)
            assert back.order == (("b",) if goes and returns else ("a",))
            assert back.detail == {"session": "returned" if goes and returns else "kept"}
            assert (await stand.pick("a", **change)).order == back.order


async def test_a_tail_of_turns_known_here_loses_only_its_own_tokens() -> None:
    stand = Stand()
    await stand.pick("b")
    ticket, messages = Ticket(), [{"role": "user", "content": "b" * 40_000}]
    await stand.pick("a", names="a", ticket=ticket, messages=messages, session="one")
    stand.decider.answered(ticket, "a", 2_000, 48)
    stand.now += 60
    candidates = (
        Candidate("a", "x/a", ("a",), None, Prices(10e-6, 0.0, 1e-6)),
        Candidate("b", "x/b", ("b",), None, Prices(7e-6, 0.0)),
    )
    # All 10,000 tokens: 90 ms$ of cache for 30 ms$ saved; the 2,048 that were served here: 18 ms$.
    assert (await stand.pick("b", candidates=candidates, messages=messages, session="one")).order == ("b",)


async def test_two_workers_send_a_session_to_the_same_of_equals_before_they_have_heard_of_each_other() -> None:
    """`c` scores as `a` does: the text begins with neither."""
    firsts = set()
    for number in range(20):
        sessions = (Session("header", str(number)),)
        one, two = [await Stand().pick("x", sessions=sessions) for _ in range(2)]
        assert one.order == two.order
        assert (await Stand().pick("b", sessions=sessions)).order[0] == "b"
        firsts.add(one.order[0])
    assert firsts == set("abc")
