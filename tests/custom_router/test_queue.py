"""The priority queue as a pure function: a machine of any arrivals, ends, deadlines and limits against a model of lists."""

from __future__ import annotations

import math
from itertools import count, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pointsman.custom_router.gradient import Gradient
from pointsman.custom_router.queue import (
    Admit,
    Drain,
    Event,
    Join,
    Leave,
    Priority,
    QueueState,
    Refuse,
    Resize,
    Tick,
    bound,
    step,
)

HIGH, NORMAL, LOW = Priority
KEYS = ("a", "b", "c")


class QueueMachine(RuleBasedStateMachine):
    """Any order of events. The model: who joined, who waits in which order, and since how many admissions."""

    @initialize(limit=st.integers(1, 4), size=st.integers(0, 5), patience=st.integers(2, 5))
    def begin(self, limit: int, size: int, patience: int) -> None:
        self.state = QueueState(limit, size, patience)
        self.now = 0.0
        self.ids = count()
        self.running: list[int] = []
        self.waiting: dict[Priority, list[int]] = {priority: [] for priority in Priority}
        self.passed: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self.deadlines: dict[int, float] = {}
        self.tenant: dict[int, str] = {}
        self.others: dict[int, dict[str, int]] = {}
        """Of one that waits: of each other key, how many of its class may still be admitted before it."""
        self.budget: dict[int, int] = {}
        """Admissions that may still happen before this one must have been admitted."""
        self.told: set[int] = set()
        self.closing = math.inf

    def do(self, event: Event) -> list[Admit | Refuse]:
        before = len(self.running)
        self.state, effects = step(self.state, event, self.now)
        for effect in effects:
            assert effect.id not in self.told, "told twice"
            self.told.add(effect.id)
            queue = self.waiting[effect.priority]
            if isinstance(effect, Refuse):
                assert effect.retry_after >= 0
                assert effect.reason != "late" or self.deadlines[effect.id] <= self.now
                assert effect.reason != "closing" or self.closing <= self.now
                assert effect.reason != "full" or (
                    len(queue) - (effect.id in queue) >= self.state.size and before >= self.state.limit
                )
                queue.remove(effect.id)
                if effect.reason == "full":
                    assert isinstance(event, Join)
                    self.fair(effect.id, event.id, queue)
                continue
            own = self.tenant[effect.id]
            assert next(one for one in queue if self.tenant[one] == own) == effect.id, "not in the order of arrival"
            for one in queue:
                if self.tenant[one] != own:
                    self.others[one][own] -= 1
                    assert self.others[one][own] >= 0, "another key has more than its turns"
            assert len(self.running) < self.state.limit, "more than may run"
            assert self.deadlines[effect.id] > self.now, "admitted though late"
            queue.remove(effect.id)
            self.running.append(effect.id)
            for priority, others in self.waiting.items():
                self.passed[priority] = self.passed[priority] + 1 if others and priority != effect.priority else 0
                assert self.passed[priority] <= bound(priority, self.state.patience), "starves"
            assert self.budget[effect.id] > 0, "later than was stated"
            for one in {one for others in self.waiting.values() for one in others}:
                self.budget[one] -= 1
                assert self.budget[one] > 0, "later than was stated"
        for priority, others in self.waiting.items():
            if not others:
                self.passed[priority] = 0
        return list(effects)

    def fair(self, refused: int, comes: int, queue: list[int]) -> None:
        """Of who has most the newest has no place; who comes is refused where nobody has more than it would have."""
        waits = {name: sum(self.tenant[one] == name for one in queue if one != comes) for name in KEYS}
        mine = waits[self.tenant[comes]]
        if refused == comes:
            assert max(waits.values()) <= mine + 1
        else:
            waits[self.tenant[refused]] += 1
            assert waits[self.tenant[refused]] == max(waits.values()) >= mine + 2
            assert all(one < refused for one in queue if self.tenant[one] == self.tenant[refused])

    @rule(
        priority=st.sampled_from(Priority),
        patience=st.sampled_from((-1.0, 0.0, 0.5, 3.0, 1000.0, math.inf)),
        tenant=st.sampled_from(KEYS),
    )
    def join(self, priority: Priority, patience: float, tenant: str) -> None:
        one = next(self.ids)
        mine = sum(self.tenant[other] == tenant for other in self.waiting[priority])
        self.tenant[one] = tenant
        self.others[one] = {other: mine + 1 for other in KEYS if other != tenant}
        self.deadlines[one] = min(self.now + patience, self.closing)
        self.waiting[priority].append(one)
        before = mine + sum(self.others[one].values())
        self.budget[one] = (before + 1) * (bound(priority, self.state.patience) + 1)
        free = len(self.running) < self.state.limit
        effects = self.do(Join(one, priority, self.now + patience, tenant))
        if free and self.deadlines[one] > self.now:
            assert any(isinstance(effect, Admit) and effect.id == one for effect in effects), "a free place, and yet it waits"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        self.do(Leave(one))

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for others in self.waiting.values() for one in others]))
        for others in self.waiting.values():
            if one in others:
                others.remove(one)
        self.do(Leave(one))
        assert one not in self.told

    @rule(stranger=st.integers(-5, -1))
    def leave_unknown(self, stranger: int) -> None:
        before = self.state
        self.do(Leave(stranger))
        assert (self.state.running, self.state.waiting) == (before.running, before.waiting)

    @rule(seconds=st.sampled_from((0.0, 0.1, 0.5, 1.0, 10.0)))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(Tick())

    @rule(limit=st.integers(1, 6))
    def resize(self, limit: int) -> None:
        self.do(Resize(limit))

    @rule(seconds=st.sampled_from((0.0, 2.0, 100.0)))
    def drain(self, seconds: float) -> None:
        self.closing = min(self.closing, self.now + seconds)
        for others in self.waiting.values():
            for one in others:
                self.deadlines[one] = min(self.deadlines[one], self.closing)
        self.do(Drain(self.now + seconds))

    @invariant()
    def nobody_is_lost(self) -> None:
        assert set(self.state.running) == set(self.running)
        assert {
            priority: sorted(one.id for one in of_class)
            for priority, of_class in zip(Priority, self.state.waiting, strict=True)
        } == self.waiting
        assert not any(self.deadlines[one] <= self.now for others in self.waiting.values() for one in others)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if any(self.waiting.values()):
            assert len(self.running) >= self.state.limit
        assert all(len(others) <= self.state.size for others in self.waiting.values())


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.requirement("L-7")
@pytest.mark.parametrize("patience", [2, 3, 8])
def test_every_class_has_its_share_when_all_wait_for_ever(patience: int) -> None:
    """One place, three classes that never run dry: LOW each `patience + 1`th, and HIGH the most."""
    state, ids, served = QueueState(1, 1000, patience), count(), []
    for priority in Priority:
        for _ in range(200):
            state, effects = step(state, Join(next(ids), priority, math.inf), 0.0)
            served += [effect.priority for effect in effects]
    while len(served) < 120:
        state, effects = step(state, Leave(next(iter(state.running))), 0.0)
        served += [effect.priority for effect in effects]
    share = {priority: served.count(priority) for priority in Priority}
    assert share[LOW] >= len(served) // (patience + 2) > 0
    assert share[HIGH] >= len(served) // 3 - 1
    assert share[NORMAL] > 0
    for priority in Priority:
        # The first was admitted before the others came; from then on all wait.
        turns = [0, *(turn for turn, of_class in enumerate(served) if of_class == priority)]
        gaps = [after - before - 1 for before, after in pairwise(turns)]
        assert max(gaps) <= bound(priority, patience)


@pytest.mark.requirement("L-7")
def test_keys_take_turns_and_a_flood_of_one_takes_no_room_of_another() -> None:
    state, served, refused = QueueState(1, 4, 2), [], []

    def told(effects: tuple[Admit | Refuse, ...]) -> None:
        served.extend(effect.id for effect in effects if isinstance(effect, Admit))
        refused.extend(effect.id for effect in effects if isinstance(effect, Refuse))

    for one, tenant in enumerate("aaaaaaaabbbc"):
        state, effects = step(state, Join(one, NORMAL, math.inf, tenant), 0.0)
        told(effects)
    # a: 0 runs, 1 to 4 wait; 5 to 7 find no room. 8 and 9 of b take that of 4 and 3, then none has two more; 11 of c takes 2's.
    assert (served, refused) == ([0], [5, 6, 7, 4, 3, 10, 2])
    for _ in range(4):
        state, effects = step(state, Leave(next(iter(state.running))), 0.0)
        told(effects)
    assert served == [0, 1, 8, 11, 9]


def test_a_flood_of_one_class_takes_no_room_of_another() -> None:
    state = QueueState(1, 2, 2)
    for one in range(50):
        state, _ = step(state, Join(one, LOW, math.inf), 0.0)
    state, effects = step(state, Join(100, HIGH, math.inf), 0.0)
    assert effects == ()
    state, effects = step(state, Leave(0), 1.0)
    assert [effect.id for effect in effects] == [100]


def test_the_wait_that_is_told_follows_what_requests_take() -> None:
    """Little's law: 3 before it at 4 s each, 2 places: 8 s with its own turn."""
    state = QueueState(2, 3, 2)
    for one in range(2):
        state, _ = step(state, Join(one, NORMAL, math.inf), 0.0)
    state, _ = step(state, Leave(0), 4.0)
    for one in range(2, 6):
        state, _ = step(state, Join(one, NORMAL, math.inf), 4.0)
    state, effects = step(state, Join(6, NORMAL, math.inf), 4.0)
    assert effects == (Refuse(6, NORMAL, "full", 8.0),)


def test_mistakes_of_the_caller_are_told() -> None:
    """One id twice would be told two things; ids that do not rise could be that."""
    state, _ = step(QueueState(1, 1, 2), Join(1, HIGH, math.inf), 0.0)
    with pytest.raises(ValueError, match="joined already"):
        step(state, Join(1, LOW, math.inf), 0.0)
    with pytest.raises(ValueError, match="joined already"):
        step(state, Join(0, LOW, math.inf), 0.0)
    with pytest.raises(ValueError, match="1 or more"):
        step(state, Resize(0), 0.0)


def _run(gradient: Gradient, seconds: int, latency: float, share: float = 1.0) -> Gradient:
    start = 1000.0 * gradient.windows
    for tick in range(seconds * 20):
        gradient = gradient.observe(latency, int(gradient.limit * share), start + tick / 20)
    return gradient


def test_the_limit_grows_while_latency_stays_and_falls_when_it_rises() -> None:
    grown = _run(Gradient(20.0, 4, 200, 1.5), 60, 0.5)
    assert 40 < grown.limit <= 200
    loaded = _run(grown, 60, 2.5)
    assert loaded.limit < grown.limit / 2
    assert _run(loaded, 600, 0.5).limit > loaded.limit


def test_a_small_limit_falls_too() -> None:
    assert _run(_run(Gradient(8.0, 2, 64, 1.5), 15, 0.25), 60, 2.5).limit < 8


def test_a_limit_that_nobody_needs_does_not_grow() -> None:
    assert _run(Gradient(20.0, 4, 200, 1.5), 60, 0.5, share=0.3).limit == 20


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 500), st.floats(0, 100)), max_size=200))
@settings(max_examples=60, deadline=None)
def test_the_limit_keeps_its_bounds(observed: list[tuple[float, int, float]]) -> None:
    gradient, now = Gradient(20.0, 4, 50, 1.5), 0.0
    for latency, running, later in observed:
        now += later
        gradient = gradient.observe(latency, running, now)
        assert 4 <= gradient.limit <= 50
