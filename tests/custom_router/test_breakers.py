"""A group's breakers: how many may rest at once, whose turn it is to probe, and what workers tell each other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pointsman.custom_router.breaker_facts import Fact
from pointsman.custom_router.breakers import HELD, OPEN, PROBING, Breakers, Transition
from pointsman.custom_router.request import Candidate
from pointsman.process.facts import Shelf
from pointsman.resilience_settings import BreakerSettings


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Worker:
    def __init__(self, clock: Clock | None = None, **rules: Any) -> None:
        self.clock = clock or Clock()
        self.transitions: list[Transition] = []
        self.rules = BreakerSettings(**{"jitter": 0.0, "probes": 2, **rules})
        self.breakers = Breakers(self.rules, self.clock, lambda: 0.0, self.transitions.append)

    def admit(self, group: Sequence[Candidate], token: str = "t") -> dict[str, str]:  # noqa: S107 - no password
        return dict(self.breakers.admit(group, group, token).dropped)

    def fail(self, *names: str) -> None:
        for name in names:
            for _ in range(self.rules.consecutive_failures):
                self.breakers.record(name, "bad")

    def state(self, name: str) -> str:
        return self.breakers.states()[f"up-{name}"]


def group(names: str) -> list[Candidate]:
    return [Candidate(name, f"x/{name}", (name,), None, None, f"up-{name}") for name in names]


def test_who_fails_is_dropped_and_comes_back_by_probes() -> None:
    worker, abc = Worker(), group("abc")
    assert worker.admit(abc) == {}
    worker.fail("b")
    assert worker.admit(abc) == {"b": OPEN}
    worker.clock.now += 5
    for token in ("t1", "t2"):
        assert worker.admit(abc, token) == {}
        worker.breakers.settle(token, "b")
    assert worker.admit(abc, "t3") == {"b": PROBING}
    worker.breakers.record("b", "good", "t1")
    worker.breakers.record("b", "good", "t2")
    assert worker.admit(abc, "t3") == {}
    assert [(change.before, change.after, change.cause) for change in worker.transitions] == [
        ("closed", "open", "failures"),
        ("open", "half_open", "failures"),
        ("half_open", "closed", None),
    ]


def test_who_was_not_picked_gives_its_place_to_another() -> None:
    worker, abc = Worker(probes=1), group("abc")
    worker.admit(abc)
    worker.fail("b")
    worker.clock.now += 5
    assert worker.admit(abc, "t1") == {}
    assert worker.admit(abc, "t2") == {"b": PROBING}
    worker.breakers.settle("t1", "a")
    assert worker.admit(abc, "t2") == {}
    worker.breakers.record("c", "good", "t2")  # LiteLLM took another one
    assert worker.admit(abc, "t3") == {}
    worker.breakers.release("t3")  # nobody was asked
    assert worker.admit(abc, "t4") == {}
    worker.clock.now += worker.rules.probe_timeout  # nothing was heard of it
    assert worker.admit(abc, "t5") == {}


def test_one_upstream_of_two_deployments_rests_for_both() -> None:
    worker = Worker()
    two = [Candidate("a", "x/m", ("a",), None, None, "up"), Candidate("b", "x/m", ("b",), None, None, "up")]
    other = [*two, *group("c")]
    worker.admit(other)
    worker.fail("a")
    assert worker.admit(other) == {"a": OPEN, "b": OPEN}


@pytest.mark.parametrize(
    ("names", "broken", "dropped"), [("a", "a", 0), ("ab", "a", 1), ("ab", "ab", 0), ("abc", "ab", 2), ("abc", "abc", 0)]
)
def test_the_bounds_of_a_group_as_they_are_by_default(names: str, broken: str, dropped: int) -> None:
    worker = Worker()
    worker.admit(group(names))
    worker.fail(*broken)
    assert len(worker.admit(group(names))) == dropped


def test_of_too_many_those_that_are_back_soonest_are_tried() -> None:
    worker, abcd = Worker(max_ejection_percent=50, panic_percent=0), group("abcd")
    worker.admit(abcd)
    for name in "cab":
        worker.fail(name)
        worker.clock.now += 1
    assert worker.admit(abcd) == {"a": OPEN, "b": OPEN}


def test_those_held_by_hand_are_tried_last() -> None:
    worker, abc = Worker(), group("abc")
    worker.admit(abc)
    worker.breakers.hold("up-a", open=True, reason="maintenance", seconds=60)
    assert worker.admit(abc) == {"a": HELD}
    worker.fail("b", "c")
    assert worker.breakers.admit(abc, abc, "t").panic
    assert worker.admit(abc) == {"a": HELD}
    for name in "bc":
        worker.breakers.hold(f"up-{name}", open=True, reason="too")
    assert worker.admit(abc) == {}  # somebody has to be tried
    row = worker.breakers.describe()[0]
    assert (row["state"], row["reason"], row["seconds_left"], row["deployments"]) == ("held_open", "maintenance", 60.0, ["a"])
    assert worker.breakers.describe()[1]["seconds_left"] is None
    worker.breakers.hold("up-a", open=False, reason="it works")
    worker.fail("a")
    assert worker.state("a") == "held_closed"
    worker.breakers.free("up-a")
    assert worker.state("a") == "closed"


def test_where_only_some_may_rest_it_is_those_held_by_hand() -> None:
    worker, abc = Worker(max_ejection_percent=34, panic_percent=0), group("abc")
    worker.admit(abc)
    worker.breakers.hold("up-a", open=True, reason="maintenance", seconds=1)
    worker.fail("b")
    assert worker.admit(abc) == {"a": HELD}


@pytest.mark.parametrize("other", [{"reason": "r", "seconds": None}, {"reason": "s", "seconds": 6.0}])
def test_of_two_words_said_at_once_one_holds_everywhere(other: dict[str, Any]) -> None:
    one, two = Worker(), Worker()
    one.breakers.hold("up-a", open=True, reason="r", seconds=6.0)
    two.breakers.hold("up-a", open=True, **other)
    from_one, from_two = told(one), told(two)
    one.breakers.adopt(from_two)
    two.breakers.adopt(from_one)
    assert one.breakers.describe() == two.breakers.describe()


def test_switched_off_it_drops_nobody() -> None:
    worker, ab = Worker(enabled=False), group("ab")
    worker.admit(ab)
    worker.fail("a")
    assert worker.admit(ab) == {}


def test_who_was_never_a_candidate_has_no_breaker() -> None:
    worker = Worker()
    worker.fail("stranger")
    assert worker.breakers.states() == {}


def test_models_that_callers_name_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.custom_router.breakers.MAX_UPSTREAMS", 5)
    worker = Worker()
    for number in range(30):
        worker.admit([Candidate(f"d{number}", "m", (), None, None, f"up-{number}")])
        worker.breakers.record(f"d{number}", "good")
    assert len(worker.breakers._breakers) == 5
    assert len(worker.breakers._upstreams) <= 6


def told(worker: Worker) -> list[Any]:
    return list(json.loads(json.dumps(worker.breakers.news(), allow_nan=False)))


def test_others_hear_of_an_opening_and_a_closing_once() -> None:
    one, two, abc = Worker(Clock(0.0)), Worker(Clock(777.0)), group("abc")
    for worker in (one, two):
        worker.admit(abc)
    assert told(one) == []
    one.fail("a")
    news = told(one)
    assert (len(news), told(one)) == (1, [])
    assert two.breakers.adopt(news) == 0
    assert two.admit(abc) == {"a": OPEN}
    assert told(two) == []  # what it was told it does not tell
    for worker in (one, two):
        worker.clock.now += 5
    for token in ("t1", "t2"):
        one.admit(abc, token)
        one.breakers.record("a", "good", token)
    assert two.breakers.adopt([*told(one), {"state": "ajar"}]) == 1
    assert (two.state("a"), two.admit(abc)) == ("closed", {})


def test_who_starts_anew_and_sees_failures_is_heard_though_it_counts_from_zero() -> None:
    old, new, abc = Worker(), Worker(), group("abc")
    old.admit(abc)
    new.admit(abc)
    for _ in range(3):
        old.breakers.hold("up-b", open=True, reason="r")
    for worker in (old,):
        worker.fail("a")
        worker.clock.now += 5
        for token in ("t1", "t2"):
            worker.admit(abc, token)
            worker.breakers.record("a", "good", token)
    past = told(old)
    new.clock.now = old.clock.now + 60
    old.clock.now += 60
    new.fail("a")
    assert told(new)[0]["generation"] == 1
    aged = [{**fact, "age": fact["age"] + 60} for fact in past]
    new.breakers.adopt(aged)
    assert new.state("a") == "open"
    old.breakers.adopt(told(new))
    assert old.state("a") == "open"


def test_a_shelf_tells_each_of_what_is_new_to_it_once() -> None:
    shelf, late, abc = Shelf(Fact.from_wire, bound=3), Worker(Clock(5.0)), group("abc")
    one, two = Worker(Clock(0.0)), Worker(Clock(777.0))
    for worker in (one, two, late):
        worker.admit(abc)
    one.fail("a")
    two.breakers.hold("up-b", open=True, reason="maintenance")
    said = told(one)
    assert shelf.wire(50.0, shelf.hear([*said, {"no": "fact"}], 50.0)) == [{**said[0], "age": 0.0, "left": 5.0}]
    assert shelf.hear(said, 51.0) == []
    two.breakers.adopt(shelf.wire(52.0))
    shelf.hear(told(two), 52.0)
    assert two.breakers.describe()[0]["seconds_left"] == 3.0  # it aged on the shelf
    late.breakers.adopt(shelf.wire(52.0))
    assert late.admit(abc) == two.admit(abc) == {"a": OPEN, "b": HELD}
    shelf.hear([{**said[0], "upstream": f"u{number}"} for number in range(9)], 53.0)
    assert [fact["upstream"] for fact in shelf.wire(53.0)] == ["up-b", "u7", "u8"]  # an administrator's word outlives them
    assert (shelf.refused, shelf.forgotten) == (1, 8)


NAMES = "abcdefg"


class Group(RuleBasedStateMachine):
    """Two workers, a group of seven in any mixture; after each step the promises are held up."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        rules = {
            "consecutive_failures": 2,
            "probes": 2,
            "probe_timeout": 8,
            "recovery": 4,
            "max_recovery": 30,
            "panic_percent": 30,
        }
        self.workers = [Worker(self.clock, max_ejection_percent=60, **rules) for _ in range(2)]
        for worker in self.workers:
            worker.admit(group(NAMES))
        self.running: list[tuple[int, str, str, float]] = []
        self.count = 0
        self.wire: list[list[Any]] = [[], []]

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 9.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1), data=st.data(), size=st.integers(1, 7), tried=st.sets(st.sampled_from(NAMES), max_size=2))
    def a_request_begins(self, which: int, data: st.DataObject, size: int, tried: set[str]) -> None:
        worker, some = self.workers[which], group(NAMES[:size])
        left = [one for one in some if one.deployment_id not in tried]
        self.count += 1
        token = f"t{self.count}"
        states = worker.breakers.states()
        admission = worker.breakers.admit(some, left, token)
        dropped = admission.dropped
        assert set(dropped) <= {one.deployment_id for one in left}
        assert len(dropped) * 100 <= worker.rules.max_ejection_percent * size
        serving = [one for one in some if states[one.upstream] in ("closed", "held_closed")]
        assert not {one.deployment_id for one in serving} & set(dropped)
        if admission.panic:
            assert len(serving) * 100 < worker.rules.panic_percent * size
            assert set(dropped.values()) <= {HELD}
            assert len(dropped) < size
        for name, reason in dropped.items():
            assert reason == {"open": OPEN, "half_open": PROBING, "held_open": HELD}[states[f"up-{name}"]]
        choice = [one.deployment_id for one in left if one.deployment_id not in dropped]
        if choice and data.draw(st.booleans()):
            picked = data.draw(st.sampled_from(choice))
            worker.breakers.settle(token, picked)
            self.running.append((which, token, picked, self.clock.now))

    @rule(data=st.data(), verdict=st.sampled_from(["good", "bad", "bad", "limited", "none"]))
    def an_attempt_ends(self, data: st.DataObject, verdict: Any) -> None:
        if self.running:
            item = data.draw(st.sampled_from(self.running))
            self.running.remove(item)
            self.workers[item[0]].breakers.record(item[2], verdict, item[1])

    @rule(which=st.integers(0, 1), name=st.sampled_from(NAMES))
    def one_breaks(self, which: int, name: str) -> None:
        self.workers[which].fail(name)

    @rule(which=st.integers(0, 1), name=st.sampled_from(NAMES), others=st.integers(0, 2))
    def attempts_stall(self, which: int, name: str, others: int) -> None:
        worker = self.workers[which]
        tokens = {token for at, token, picked, _ in self.running if (at, picked) == (which, name)}
        before = worker.state(name)
        worker.breakers.stalled(f"up-{name}", tokens | {f"other-{number}" for number in range(others)})
        if before == "closed":
            assert worker.state(name) == ("open" if len(tokens) + others >= 2 else "closed")
        elif before != "half_open":
            assert worker.state(name) == before

    @rule(which=st.integers(0, 1), name=st.sampled_from(NAMES), held=st.booleans(), seconds=st.sampled_from([6.0, None]))
    def an_administrator_holds_one(self, which: int, name: str, held: bool, seconds: float | None) -> None:
        self.workers[which].breakers.hold(f"up-{name}", open=held, reason="r", seconds=seconds)

    @rule(which=st.integers(0, 1), name=st.sampled_from(NAMES))
    def an_administrator_lets_go(self, which: int, name: str) -> None:
        self.workers[which].breakers.free(f"up-{name}")

    @rule(which=st.integers(0, 1))
    def news_is_sent(self, which: int) -> None:
        self.wire[1 - which] += told(self.workers[which])

    @rule(which=st.integers(0, 1))
    def news_is_heard(self, which: int) -> None:
        assert self.workers[which].breakers.adopt(self.wire[which]) == 0
        self.wire[which] = []

    @invariant()
    def no_more_probes_than_allowed_and_none_is_forgotten(self) -> None:
        for worker in self.workers:
            for upstream, state in worker.breakers.states().items():
                found = worker.breakers._breakers.get(upstream)
                if state == "half_open" and found is not None:
                    now = self.clock.now
                    assert 0 <= found.state.places(worker.rules, now) <= worker.rules.probes  # type: ignore[union-attr]
                    assert found.state.places(worker.rules, now + 8) == worker.rules.probes  # type: ignore[union-attr]
            assert all(math.isfinite(until) for until, _ in worker.breakers._leases.values())

    def teardown(self) -> None:
        """When all is quiet and healthy again, all serve again, and both workers are of one mind."""
        for _ in range(3):
            for which in (0, 1):
                self.news_is_sent(which)
                self.news_is_heard(1 - which)
        self.clock.now += 10  # how long news was under way is not known: what ends by itself ends a little later there
        for name in NAMES:
            held = [worker.state(name).startswith("held") for worker in self.workers]
            assert held[0] == held[1]
            if any(held):
                self.workers[0].breakers.free(f"up-{name}")
        for _ in range(2):
            for which in (0, 1):
                self.news_is_sent(which)
                self.news_is_heard(1 - which)
        self.clock.now += 40
        for number in range(40):
            worker = self.workers[number % 2]
            for name in NAMES:
                some = group(name) + group("xyz")
                if name not in worker.admit(some, f"end-{number}-{name}"):
                    worker.breakers.record(name, "good", f"end-{number}-{name}")
        for worker in self.workers:
            assert {worker.state(name) for name in NAMES} == {"closed"}


def test_any_mixture() -> None:
    run_state_machine_as_test(
        Group,
        settings=settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)),
    )
