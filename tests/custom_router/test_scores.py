"""Scores of upstreams: what counts, what other workers tell, what is forgotten, and what a decision makes of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.custom_router.request import candidate_of
from pointsman.custom_router.score_facts import ScoreFact
from pointsman.custom_router.scores import MAX_UPSTREAMS, Score, Scores
from pointsman.decisions import Attempt, Outcome
from pointsman.process.facts import Shelf
from pointsman.resilience_settings import ScoreSettings

pytestmark = pytest.mark.requirement("F-6", "S-11")

RULES = ScoreSettings(half_life=100.0, feedback_half_life=1_000.0)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def entry(name: str, model: str = "openai/m") -> dict[str, Any]:
    params = {"model": model, "api_base": f"https://{name}.example/v1"}
    return {"model_name": "group", "litellm_params": params, "model_info": {"id": name}}


def scores(clock: Clock, *names: str, origin: str | None = None) -> Scores:
    made = Scores(RULES, clock, origin)
    made.know([entry(name) for name in names])
    return made


def ok(name: str, **fields: Any) -> Attempt:
    return Attempt("dec_1", 1, name, "openai/m", "ok", **{"latency_ms": 100.0, **fields})


def bad(name: str, status: int | None = 500, **fields: Any) -> Attempt:
    return Attempt("dec_1", 1, name, "openai/m", "error", "InternalServerError", status, **fields)


def of(made: Scores, name: str) -> Score:
    upstream = made.upstream(name)
    assert upstream is not None
    return made.score(upstream)


def test_what_passes_through_is_counted() -> None:
    clock = Clock()
    made = scores(clock, "a")
    for _ in range(3):
        made.record(ok("a", latency_ms=200.0, first_token_ms=50.0, completion_tokens=20))
    made.record(bad("a"))
    made.record(Outcome("dec_1", "success"))
    found = of(made, "a")
    assert found.success is not None
    assert (found.success.value, found.success.weight) == (0.75, 4.0)
    assert found.latency is not None
    assert found.latency[0].value == pytest.approx(200, rel=0.05)
    assert found.first_token is not None
    assert found.first_token[1].value == pytest.approx(50, rel=0.05)
    assert found.tokens_per_second is not None
    assert found.tokens_per_second.value == pytest.approx(100, rel=0.05)
    assert found.deployments == ("a",)
    clock.now += 7
    assert of(made, "a").idle == 7


def test_the_callers_mistakes_say_nothing_and_what_breaks_off_does() -> None:
    made = scores(Clock(), "a")
    made.record(bad("a", 400))
    made.record(bad("a", 504, callers_timeout=True))
    assert of(made, "a").success is None
    made.record(bad("a", None, broken=True))
    found = of(made, "a").success
    assert found is not None
    assert found.value == 0.0


def test_flaws_are_a_share_of_the_answers() -> None:
    made = scores(Clock(), "a")
    for flaw in (None, None, "empty"):
        made.record(ok("a", flaw=flaw))
    made.record(bad("a", flaw="malformed"))
    made.record(bad("a"))  # no answer
    found = of(made, "a").flaws
    assert found is not None
    assert (found.value, found.weight) == (0.5, 4.0)


def test_of_feedback_on_the_same_answer_the_last_counts() -> None:
    clock = Clock()
    made = scores(clock, "a")
    clock.now += 100
    made.praised("a", 1.0)
    clock.now += 10
    made.praised("a", 0.0, instead=(1.0, 10.0))
    found = of(made, "a").feedback
    assert found is not None
    assert (found.value, found.weight) == (pytest.approx(0, abs=1e-9), pytest.approx(1.0))
    made.praised("a", 0.5, instead=(0.0, 1e6))  # given before the start: it is not in the sums
    made.praised("nobody", 1.0)
    found = of(made, "a").feedback
    assert found is not None
    assert found.weight == pytest.approx(2.0)


def test_what_is_old_fades_and_grows_unsure() -> None:
    clock = Clock()
    made = scores(clock, "a")
    for _ in range(20):
        made.record(bad("a"))
    first = of(made, "a").success
    clock.now += 300
    then = of(made, "a").success
    assert first is not None
    assert then is not None
    assert then.weight == pytest.approx(20 / 8)
    assert then.high > first.high
    for _ in range(20):
        made.record(ok("a"))
    found = of(made, "a").success
    assert found is not None
    assert found.value > 0.85, "what it does now outweighs what it did"
    clock.now += 1e6
    assert of(made, "a").success is None


def test_deployments_of_one_upstream_share_a_score() -> None:
    made = Scores(RULES, Clock())
    twin = {**entry("a"), "model_info": {"id": "b"}}
    made.know([entry("a"), twin, {**entry("w"), "litellm_params": {"model": "openai/*"}}])
    made.record(ok("a"))
    made.record(ok("b"))
    found = made.scores()
    assert [one.deployments for one in found] == [("a", "b")]
    assert found[0].success is not None
    assert found[0].success.weight == 2.0


def test_a_deployment_of_the_database_is_known_once_it_was_a_candidate() -> None:
    made = scores(Clock())
    made.record(ok("later"))
    assert made.scores() == []
    made.meet([candidate_of(entry("later"))])
    made.record(ok("later"))
    assert len(made.scores()) == 1
    assert made.configured() == [], "and is in no metric, whose labels are bounded by the configuration"


def test_names_that_callers_make_up_do_not_fill_the_memory() -> None:
    made = scores(Clock())
    for number in range(MAX_UPSTREAMS + 50):
        made.meet([candidate_of(entry(f"n{number}"))])
        made.record(ok(f"n{number}"))
    assert len(made.scores()) == MAX_UPSTREAMS
    assert len(made.news()) == MAX_UPSTREAMS


# Workers tell each other.


def test_a_worker_tells_of_an_upstream_once_a_second() -> None:
    clock = Clock()
    made = scores(clock, "a")
    assert made.news() == []
    made.record(ok("a"))
    assert len(made.news()) == 1
    made.record(ok("a"))
    assert made.news() == []
    clock.now += 1.0
    told = made.news()
    assert [fact["traffic"]["tries"] for fact in told] == [pytest.approx(2.0, rel=0.01)]
    assert made.news() == [], "told by being asked"


ACTS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["ok", "bad", "praise"]), st.floats(0, 20), st.floats(1, 5_000)),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(ACTS, st.randoms())
def test_all_workers_come_to_know_what_one_would_that_saw_it_all(
    acts: list[tuple[int, str, float, float]], chance: random.Random
) -> None:
    """Over the supervisor's shelf, with facts that are late, doubled and out of order."""
    clock = Clock()
    alone, workers = scores(clock, "a"), [scores(clock, "a", origin=f"w{number}") for number in range(3)]
    shelf, told = Shelf(ScoreFact.from_wire), []
    for worker, what, pause, milliseconds in acts:
        clock.now += pause
        for each in (alone, workers[worker]):
            if what == "praise":
                each.praised("a", 0.5)
            else:
                each.record(ok("a", latency_ms=milliseconds) if what == "ok" else bad("a"))
        told += [(clock.now, fact) for fact in workers[worker].news()]
    clock.now += 1.0
    told += [(clock.now, fact) for each in workers for fact in each.news()]
    told += told[: len(told) // 2]
    chance.shuffle(told)
    for at, fact in told:
        shelf.hear([fact], at)
    for each in workers:
        assert each.adopt(shelf.wire(clock.now)) == 0
        mine, whole = of(each, "a"), of(alone, "a")
        for one, other in ((mine.success, whole.success), (mine.feedback, whole.feedback)):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert tuple(one) == pytest.approx(tuple(other), abs=0.01, rel=0.01)
        if whole.latency is not None:
            assert mine.latency is not None
            # The histograms, and not their medians: that of two answers of one weight is either, by a rounding.
            own, alls = each._sums("a", clock.now)[0], alone._sums("a", clock.now)[0]
            for name in own.keys() | alls.keys():
                assert own.get(name, 0.0) == pytest.approx(alls.get(name, 0.0), abs=0.01, rel=0.01), name


def test_a_new_worker_learns_all_and_what_faded_is_not_told() -> None:
    clock = Clock()
    old, shelf = scores(clock, "a"), Shelf(ScoreFact.from_wire)
    old.record(ok("a"))
    shelf.hear(old.news(), clock.now)
    clock.now += 100
    new = scores(clock, "a")
    new.adopt(shelf.wire(clock.now))
    found = of(new, "a")
    assert found.success is not None
    assert found.success.weight == pytest.approx(0.5, rel=0.01)
    assert found.idle == pytest.approx(100, abs=0.01)
    clock.now += 1e5
    assert shelf.wire(clock.now) == []


NONSENSE: list[Mapping[str, Any]] = [
    {},
    {"upstream": "u"},
    {"upstream": "u", "origin": "o", "sequence": True, "age": 0, "half_lives": [1, 1], "traffic": {}, "feedback": {}},
    {"upstream": "u", "origin": "o", "sequence": 1, "age": float("nan"), "half_lives": [1, 1], "traffic": {}, "feedback": {}},
    {"upstream": "u", "origin": "o", "sequence": 1, "age": 0, "half_lives": [0, 1], "traffic": {}, "feedback": {}},
    {"upstream": "u", "origin": "o", "sequence": 1, "age": 0, "half_lives": [1, 1], "traffic": {"x": "1"}, "feedback": {}},
    {"upstream": "u", "origin": "o", "sequence": 1, "age": 0, "half_lives": [1, 1], "traffic": [], "feedback": {}},
]


@pytest.mark.parametrize("said", NONSENSE)
def test_what_is_no_fact_is_passed_over(said: Mapping[str, Any]) -> None:
    made = scores(Clock(), "a")
    assert made.adopt([said]) == 1
    assert made.scores()[0].success is None


def test_its_own_facts_come_back_and_count_once() -> None:
    clock = Clock()
    made = scores(clock, "a")
    made.record(ok("a"))
    made.adopt(made.news())
    found = of(made, "a").success
    assert found is not None
    assert found.weight == 1.0


# What a decision reckons with.


def test_health_is_one_where_nothing_is_known_and_falls_with_failures() -> None:
    clock = Clock()
    made = scores(clock, "a")
    upstream = made.upstream("a")
    assert upstream is not None
    assert made.health(upstream) == (1.0, None)
    for _ in range(8):
        made.record(bad("a"))
    assert made.health(upstream).success == 1.0, "what was reckoned is used for a second"
    clock.now += 1.0
    assert made.health(upstream).success == pytest.approx(2 / 10, abs=0.01)
    assert made.health("unknown").success == 1.0
