"""One upstream's breaker: what opens it, for how long, what closes it, and what it makes of others' facts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pydantic import ValidationError

from pointsman.custom_router.breaker import LEAD, Breaker, Closed, HalfOpen, Held, Open
from pointsman.custom_router.breaker_facts import Fact, FactState
from pointsman.custom_router.verdicts import verdict_of
from pointsman.resilience_settings import BreakerSettings

RULES = BreakerSettings(jitter=0.0, probes=2)


def opened(now: float = 0.0, rules: BreakerSettings = RULES) -> Breaker:
    breaker = Breaker(rules)
    for _ in range(rules.consecutive_failures):
        breaker = breaker.record("bad", now, 0.0)
    assert isinstance(breaker.state, Open)
    return breaker


def rest(breaker: Breaker) -> float:
    assert isinstance(breaker.state, Open)
    return breaker.state.until - breaker.state.since


def probed(breaker: Breaker, verdict: Any, now: float) -> Breaker:
    leased = breaker.lease("p", now)
    assert leased is not None
    return leased.record(verdict, now, 0.0, "p")


def test_failures_in_a_row_open_it_and_one_success_between_them_does_not() -> None:
    breaker = Breaker(RULES)
    for verdict in ("bad", "bad", "good", "bad", "none", "bad"):
        breaker = breaker.record(verdict, 0.0, 0.0)  # type: ignore[arg-type]
        assert isinstance(breaker.state, Closed)
    breaker = breaker.record("bad", 1.0, 0.0)
    assert isinstance(breaker.state, Open)
    assert (breaker.state.cause, rest(breaker), breaker.generation) == ("failures", RULES.recovery, 1)


def test_a_share_of_failures_opens_it_only_with_enough_attempts() -> None:
    breaker = Breaker(RULES)
    for number in range(9):
        breaker = breaker.record("bad" if number % 2 else "good", 0.0, 0.0)
    assert isinstance(breaker.state, Closed)
    breaker = breaker.record("bad", 0.0, 0.0)
    assert isinstance(breaker.state, Open)
    assert breaker.state.cause == "failure_rate"


def test_the_window_slides() -> None:
    breaker = Breaker(RULES)
    for number in range(8):
        breaker = breaker.record("bad" if number % 2 else "good", 0.0, 0.0)
    for number in range(8):  # as many again, when the first are forgotten
        breaker = breaker.record("bad" if number % 2 else "good", RULES.window, 0.0)
    assert isinstance(breaker.state, Closed)
    assert breaker.state.window.totals() == (4, 4)


@pytest.mark.parametrize(("after", "seconds"), [(7.5, 7.5), (0.25, 0.25), (86_400.0, RULES.max_recovery)])
def test_one_429_with_retry_after_is_enough_and_is_honoured(after: float, seconds: float) -> None:
    breaker = Breaker(replace_rules(jitter=1.0)).record("limited", 3.0, 0.999, after=after)
    assert rest(breaker) == pytest.approx(seconds)
    assert breaker.state.cause == "rate_limit"  # type: ignore[union-attr]


@pytest.mark.parametrize("after", [None, 0.0, -1.0, math.nan, math.inf])
def test_429s_without_it_open_it_in_a_row_for_a_short_time_that_does_not_grow(after: float | None) -> None:
    breaker, now = Breaker(RULES), 0.0
    for _ in range(4):
        breaker = breaker.record("limited", now, 0.0, after=after)
        assert isinstance(breaker.state, Closed)
        breaker = breaker.record("limited", now, 0.0, after=after)
        assert rest(breaker) == RULES.rate_limit_recovery
        now += rest(breaker)
        breaker = probed(probed(breaker, "good", now), "good", now)
    assert isinstance(breaker.state, Closed)


def test_429_is_no_failure_and_a_success_ends_the_row() -> None:
    breaker = Breaker(RULES)
    for verdict in ("bad", "bad", "limited", "good", "limited", "bad"):
        breaker = breaker.record(verdict, 0.0, 0.0)  # type: ignore[arg-type]
    assert isinstance(breaker.state, Closed)


def test_a_rest_grows_up_to_a_bound_and_is_forgotten_after_a_good_time() -> None:
    breaker, now, rests = opened(), 0.0, []
    for _ in range(8):
        rests.append(rest(breaker))
        now += rests[-1]
        breaker = probed(breaker, "bad", now)
    assert rests == [5, 10, 20, 40, 80, 120, 120, 120]


@pytest.mark.parametrize(("served", "seconds"), [(2.0, 10.0), (RULES.forget_after, 5.0)])
def test_one_that_breaks_again_soon_rests_for_longer(served: float, seconds: float) -> None:
    breaker = probed(probed(opened(), "good", 5.0), "good", 5.0)
    assert isinstance(breaker.state, Closed)
    for _ in range(3):
        breaker = breaker.record("bad", 5.0 + served, 0.0)
    assert rest(breaker) == seconds


def replace_rules(**values: Any) -> BreakerSettings:
    return BreakerSettings.model_validate(RULES.model_dump() | values)


def test_chance_takes_off_a_part_of_a_rest() -> None:
    rules = replace_rules(jitter=0.5, consecutive_failures=1)
    assert rest(Breaker(rules).record("bad", 0.0, 0.0)) == 5.0
    assert rest(Breaker(rules).record("bad", 0.0, 0.9)) == pytest.approx(2.75)


@pytest.mark.requirement("L-6", "F-3")
def test_half_open_takes_so_many_probes_at_once_and_closes_after_so_many_good_ones() -> None:
    breaker = opened()
    assert breaker.lease("early", 4.9) is None
    one = breaker.lease("a", 5.0)
    assert one is not None
    assert one.lease("a", 5.0) is not None  # the same one asks again
    two = one.lease("b", 5.0)
    assert two is not None
    assert two.lease("c", 5.0) is None
    assert two.release("a").lease("c", 5.0) is not None
    first = two.record("good", 6.0, 0.0, "a")
    assert isinstance(first.state, HalfOpen)
    assert isinstance(first.record("good", 6.0, 0.0, "stranger").state, HalfOpen)
    assert isinstance(first.record("good", 6.0, 0.0, "b").state, Closed)
    worse = first.record("bad", 6.0, 0.0, "b")
    assert (rest(worse), worse.state.cause) == (10.0, "probe")  # type: ignore[union-attr]
    assert rest(first.record("limited", 6.0, 0.0, "b", after=3.0)) == 3.0


def test_a_probe_that_is_not_heard_of_makes_room_and_counts_when_it_is_late() -> None:
    breaker = opened()
    for token in ("a", "b"):
        breaker = breaker.lease(token, 5.0) or breaker
    assert breaker.lease("c", 5.0 + RULES.probe_timeout - 0.1) is None
    later = breaker.lease("c", 5.0 + RULES.probe_timeout)
    assert later is not None
    slow = later.record("good", 90.0, 0.0, "a").record("good", 91.0, 0.0, "b")
    assert isinstance(slow.state, Closed)


def test_what_began_before_it_opened_counts_for_nothing() -> None:
    breaker = opened()
    for verdict in ("good", "bad", "limited"):
        assert breaker.record(verdict, 1.0, 0.0) == breaker  # type: ignore[arg-type]
        assert isinstance(breaker.record(verdict, 5.0, 0.0, "old").state, HalfOpen)  # type: ignore[arg-type]


def test_an_administrators_word_holds_until_it_expires() -> None:
    held = Breaker(RULES).hold(open=True, reason="maintenance", now=0.0, seconds=60.0)
    for verdict in ("good", "bad", "limited"):
        assert held.record(verdict, 59.0, 0.0) == held  # type: ignore[arg-type]
    assert isinstance(held.at(60.0).state, HalfOpen)
    kept = opened().hold(open=False, reason="known", now=1.0, seconds=9.0)
    for _ in range(10):
        kept = kept.record("bad", 2.0, 0.0)
    assert isinstance(kept.state, Held)
    assert isinstance(kept.at(10.0).state, Closed)
    assert isinstance(Breaker(RULES).hold(open=True, reason="r", now=0.0).at(1e12).state, Held)
    assert isinstance(held.free(1.0).state, Closed)


# Facts.


def test_another_ones_opening_and_closing_are_taken_up() -> None:
    here, there = Breaker(RULES), opened(10.0)
    here = here.adopt(there.fact("u"), 10.5)
    assert isinstance(here.state, Open)
    assert (here.state.until, here.generation) == (15.0, 1)
    there = probed(probed(there, "good", 15.0), "good", 15.0)
    here = here.adopt(there.fact("u"), 15.5)
    assert isinstance(here.state, Closed)
    assert here.adopt(opened(1.0).fact("u"), 16.0) is here  # old news


def test_an_echo_changes_nothing() -> None:
    """Else a rest would grow by the way there and back, each time."""
    breaker, now = opened(0.0), 0.0
    for _ in range(20):
        said = breaker.fact("u").to_wire(now)
        now += 0.2
        breaker = breaker.adopt(Fact.from_wire(json.loads(json.dumps(said)), now), now)
    assert rest(breaker) == RULES.recovery


def test_who_counts_from_zero_holds_to_what_it_saw_last() -> None:
    old = Fact("u", "closed", since=0.0, until=0.0, generation=7)
    here = opened(100.0).adopt(old, 101.0)
    assert isinstance(here.state, Open)
    assert here.generation == 8
    assert here.fact("u").order > old.order


def test_no_fact_rests_an_upstream_for_longer_than_the_setting() -> None:
    here = Breaker(RULES).adopt(Fact("u", "open", 0.0, 1e9, generation=1), 10.0)
    assert here.state.until == 10.0 + RULES.max_recovery  # type: ignore[union-attr]


def test_a_hold_outranks_whatever_others_see_and_its_release_too() -> None:
    seen = opened()
    for number in range(5):
        seen = replace(seen, generation=100 + number)
    held = Breaker(RULES).hold(open=False, reason="r", now=0.0)
    assert isinstance(seen.adopt(held.fact("u"), 1.0).state, Held)
    assert held.adopt(seen.fact("u"), 1.0) is held
    free = held.free(2.0)
    assert isinstance(seen.adopt(held.fact("u"), 1.0).adopt(free.fact("u"), 2.0).state, Closed)
    assert free.adopt(held.fact("u"), 3.0) is free


STATES: list[FactState] = ["closed", "open", "held_closed", "held_open"]
facts = st.builds(
    Fact,
    st.just("u"),
    st.sampled_from(STATES),
    since=st.integers(0, 5).map(float),
    until=st.integers(0, 9).map(float) | st.just(math.inf),
    generation=st.integers(0, 3),
    orders=st.integers(0, 2),
    rests=st.integers(0, 3),
    cause=st.sampled_from([None, "failures", "manual"]),
)


@given(facts, facts, facts)
def test_merging_does_not_depend_on_order_or_number(one: Fact, two: Fact, three: Fact) -> None:
    assert (two.over(one) or one).order == (one.over(two) or two).order
    late, early = three.over(two) or two, two.over(one) or one
    assert (late.over(one) or one) == (three.over(early) or early)
    assert (one.over(one) or one) == one
    assert (two.over(one) or one).order == max(one.order, two.order)


@given(st.lists(facts, min_size=1, max_size=5), st.data())
def test_all_who_hear_everything_agree_on_the_newest(said: list[Fact], data: st.DataObject) -> None:
    def heard(order: list[Fact]) -> Breaker:
        breaker = Breaker(RULES)
        for fact in order:
            breaker = breaker.adopt(fact, 6.0)
        return breaker

    one, other = heard(said), heard(data.draw(st.permutations(said)))
    newest = max(fact.order for fact in said)
    assert one.fact("u").order >= newest
    # After one round of each other's news they are of one mind.
    final, mirrored = one.adopt(other.fact("u"), 6.0), other.adopt(one.fact("u"), 6.0)
    final, mirrored = final.adopt(mirrored.fact("u"), 6.0), mirrored.adopt(final.fact("u"), 6.0)
    assert final.fact("u").order == mirrored.fact("u").order


@given(facts, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_clocks_of_others_do_not_matter_on_the_wire(fact: Fact, here: float, there: float) -> None:
    shifted = replace(fact, since=fact.since + here, until=fact.until + here)
    said = json.loads(json.dumps(shifted.to_wire(here + 9), allow_nan=False))
    again = Fact.from_wire(said, there + 9)
    assert again.order == fact.order
    assert again.since - there == pytest.approx(fact.since, abs=0.01)
    if fact.until < math.inf:
        assert again.until - there == pytest.approx(fact.until, abs=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"state": "ajar"},
        {"generation": -1},
        {"generation": True},
        {"generation": 2**60},
        {"age": math.nan},
        {"left": "soon"},
        {"upstream": ""},
        {"upstream": 3},
        {"reason": "r" * 2000},
        {"cause": "weather"},
        {"seconds": "2"},
    ],
)
def test_what_is_no_fact_is_refused(change: dict[str, Any]) -> None:
    good = opened().fact("u").to_wire(0.0)
    assert Fact.from_wire(good, 0.0).state == "open"
    with pytest.raises(ValueError, match="fact"):
        Fact.from_wire(good | change, 0.0)


# What counts.


@pytest.mark.parametrize(
    ("error", "status", "verdict"),
    [
        ("Timeout", 408, "bad"),
        ("APIConnectionError", None, "bad"),
        ("InternalServerError", 500, "bad"),
        ("ServiceUnavailableError", 503, "bad"),
        ("InternalServerError", 529, "bad"),
        ("AuthenticationError", 401, "bad"),
        ("PaymentRequiredError", 402, "bad"),
        ("MidStreamFallbackError", 503, "bad"),
        ("RateLimitError", 429, "limited"),
        ("RateLimitError", None, "limited"),
        ("BadRequestError", 400, "none"),
        ("ContextWindowExceededError", 400, "none"),
        ("ContentPolicyViolationError", 400, "none"),
        ("UnprocessableEntityError", 422, "none"),
        ("NotFoundError", 404, "none"),
        ("PermissionDeniedError", 403, "none"),
        ("JSONSchemaValidationError", 500, "none"),
        ("CancelledError", None, "none"),
        ("GuardrailRaisedException", None, "none"),
        (None, None, "none"),
    ],
)
def test_only_what_the_caller_did_not_make_counts(error: str | None, status: int | None, verdict: str) -> None:
    assert verdict_of("error", error, status) == verdict


def test_a_time_out_that_the_caller_set_says_nothing() -> None:
    assert verdict_of("error", "Timeout", 408, callers_timeout=True) == "none"
    assert verdict_of("error", "Timeout", None, callers_timeout=True) == "none"
    assert verdict_of("error", "InternalServerError", 500, callers_timeout=True) == "bad"
    assert verdict_of("ok", None, None, callers_timeout=True) == "good"


@pytest.mark.requirement("S-4")
def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValidationError, match="max_recovery"):
        BreakerSettings(recovery=60, max_recovery=30)
    with pytest.raises(ValidationError):
        BreakerSettings(failure_rate=0.0)


# Any sequence of attempts, times, holds and news.


class Machine(RuleBasedStateMachine):
    """The breaker beside a few lines that say what must be so."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = BreakerSettings(
            probes=2, consecutive_failures=3, recovery=4, max_recovery=20, probe_timeout=10, forget_after=30
        )
        self.breaker, self.now, self.tokens = Breaker(self.rules), 100.0, 0
        self.in_a_row = 0
        self.running: dict[str, float] = {}

    def step(self, breaker: Breaker) -> None:
        assert (breaker.orders, breaker.generation) >= (self.breaker.orders, self.breaker.generation)
        self.breaker = breaker

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 5.0, 11.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        verdict=st.sampled_from(["good", "bad", "limited", "none"]),
        luck=st.floats(0, 0.999),
        after=st.none() | st.floats(0.1, 50),
    )
    def an_attempt_ends(self, verdict: Any, luck: float, after: float | None) -> None:
        before = self.breaker.at(self.now)
        self.step(self.breaker.record(verdict, self.now, luck, "none of ours", after))
        if isinstance(before.state, Closed):
            self.in_a_row = {"bad": self.in_a_row + 1, "good": 0}.get(verdict, self.in_a_row)
            if self.in_a_row >= self.rules.consecutive_failures:
                assert isinstance(self.breaker.state, Open)
        else:
            assert self.breaker == before  # no result of an attempt without a lease moves it

    @rule()
    def a_probe_begins(self) -> None:
        self.tokens += 1
        leased = self.breaker.lease(f"t{self.tokens}", self.now)
        half = self.breaker.at(self.now)
        free = isinstance(half.state, HalfOpen) and sum(until > self.now for until in self.running.values()) < self.rules.probes
        assert (leased is not None) == free
        if leased is not None:
            self.running[f"t{self.tokens}"] = self.now + self.rules.probe_timeout
            self.step(leased)

    @rule(data=st.data(), verdict=st.sampled_from(["good", "bad", "limited", "none"]))
    def a_probe_ends(self, data: st.DataObject, verdict: Any) -> None:
        if not self.running:
            return
        token = data.draw(st.sampled_from(sorted(self.running)))
        before = self.breaker.at(self.now)
        good = before.state.good if isinstance(before.state, HalfOpen) else 0
        self.step(self.breaker.record(verdict, self.now, 0.5, token, None))
        del self.running[token]
        if verdict in ("bad", "limited"):
            assert isinstance(self.breaker.state, Open)
        elif verdict == "good":
            assert isinstance(self.breaker.state, Closed) == (good + 1 >= self.rules.probes_to_close)

    @rule(held=st.booleans(), seconds=st.sampled_from([5.0, math.inf]))
    def an_administrator_holds_it(self, held: bool, seconds: float) -> None:
        self.step(self.breaker.hold(open=held, reason="r", now=self.now, seconds=seconds))

    @rule()
    def an_administrator_lets_go(self) -> None:
        self.step(self.breaker.free(self.now))

    @rule(fact=facts, ago=st.sampled_from([0.0, 3.0, 300.0]))
    def news_comes(self, fact: Fact, ago: float) -> None:
        newer = fact.generation - 1 + self.breaker.generation
        before = self.breaker.at(self.now)
        times = {"since": self.now - ago, "until": fact.until + self.now}
        self.step(before.adopt(replace(fact, generation=max(0, newer), orders=before.orders + fact.orders, **times), self.now))
        if self.breaker.state is not before.state:
            self.running.clear()

    @invariant()
    def what_must_be_so(self) -> None:
        self.breaker = self.breaker.at(self.now)
        state = self.breaker.state
        if not isinstance(state, HalfOpen):
            self.running.clear()
        if not isinstance(state, Closed):
            self.in_a_row = 0
        else:
            self.in_a_row = state.failures  # news of a closing begins anew
            assert state.failures < self.rules.consecutive_failures
        if isinstance(state, Open):
            assert self.now < state.until + state.lead <= self.now + self.rules.max_recovery + LEAD
        if isinstance(state, HalfOpen):
            # Never more than so many at once, and a place is free again at a time that is known now.
            assert state.places(self.rules, self.now) >= 0
            assert state.places(self.rules, self.now + self.rules.probe_timeout) == self.rules.probes
            assert len(state.leases) < 100
        said = json.loads(json.dumps(self.breaker.fact("u").to_wire(self.now), allow_nan=False))
        assert self.breaker.adopt(Fact.from_wire(said, self.now), self.now) is self.breaker


def test_any_sequence() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)),
    )


def test_who_heard_of_a_rest_leaves_the_first_probe_to_the_one_who_began_it() -> None:
    opened = Breaker(RULES)
    for _ in range(3):
        opened = opened.record("bad", 10.0, 0.0)
    heard = Breaker(RULES).adopt(opened.fact("u"), 10.0)
    assert isinstance(opened.at(15.0).state, HalfOpen)
    assert isinstance(heard.at(15.9).state, Open)
    assert isinstance(heard.at(16.0).state, HalfOpen)  # nothing was heard
    probing = opened.lease("t", 15.0)
    assert probing is not None
    again = probing.record("bad", 15.2, 0.0, "t")
    assert isinstance(heard.adopt(again.fact("u"), 15.4).at(16.0).state, Open)
