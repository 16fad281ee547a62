"""Upstreams that hang: when attempts that wait open a breaker, and when they do not."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pointsman.custom_router.breaker import Open
from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.failover.trail import trail_of
from pointsman.custom_router.filters import SuspectedFilter
from pointsman.custom_router.request import Candidate, RoutingRequest
from pointsman.custom_router.scores import Scores
from pointsman.custom_router.stalls import Stalls
from pointsman.custom_router.verdicts import sink
from pointsman.decisions import Attempt
from pointsman.decisions.ticket import Ticket
from pointsman.resilience_settings import BreakerSettings, ScoreSettings

NAMES = "abc"
GROUP = [Candidate(name, f"x/{name}", (name,), None, None, f"up-{name}") for name in NAMES]
REQUEST = RoutingRequest("auto", "hello", tuple(GROUP), "r", None, None, None, None, (0, 0), frozenset())


class Stand:
    def __init__(self, **rules: Any) -> None:
        self.now, self.count = 1000.0, 0
        self.rules = BreakerSettings(**{"jitter": 0.0, "consecutive_failures": 3, "stall_after": 5, "stall_factor": 5, **rules})
        self.breakers = Breakers(self.rules, lambda: self.now, lambda: 0.0)
        self.scores = Scores(ScoreSettings(), lambda: self.now)
        self.stalls = Stalls(self.rules, self.breakers, self.scores, lambda: self.now)
        self.sinks = (sink(self.breakers), self.stalls.record, self.scores.record)
        self.breakers.admit(GROUP, GROUP, "-")
        self.scores.meet(GROUP)

    def begin(
        self, name: str = "a", *, streamed: bool = False, token: str | None = None, **ticket: Any
    ) -> tuple[str, str, Ticket]:
        self.count += 1
        asked = (token or f"d{self.count}", name, Ticket(**ticket))
        self.stalls.began(asked[2], asked[0], name, streamed=streamed)
        return asked

    def tell(self, asked: tuple[str, str, Ticket], outcome: Any = "ok", *, first: float | None = None, **more: Any) -> None:
        latency = {"latency_ms": more.pop("latency", 100.0), "first_token_ms": first} if outcome == "ok" else more
        for put in self.sinks:
            put(Attempt(asked[0], 1, asked[1], f"x/{asked[1]}", outcome, **latency))

    def know(self, name: str = "a", seconds: float = 0.1, first: float | None = None, times: int = 50) -> None:
        for _ in range(times):
            asked = self.begin(name, streamed=first is not None)
            self.tell(asked, latency=seconds * 1000, first=first and first * 1000)
            asked[2].settle(200)

    def after(self, seconds: float, name: str = "a") -> str:
        self.now += seconds
        self.stalls.look()
        return self.breakers.states()[f"up-{name}"]


@pytest.fixture
def stand() -> Stand:
    found = Stand()
    found.know()
    found.now += 1
    return found


def test_enough_that_wait_for_too_long_open_it(stand: Stand) -> None:
    for _ in range(3):
        stand.begin()
    stand.begin("b")
    assert stand.after(4.9) == "closed"
    assert stand.after(0.2) == "open"
    state = stand.breakers._breakers["up-a"].state
    assert isinstance(state, Open)
    assert state.cause == "stalled"
    assert stand.breakers.states()["up-b"] == "closed"
    assert [fact["cause"] for fact in stand.breakers.news()] == ["stalled"], "and the other workers are told"


def test_before_it_opens_others_are_asked_first(stand: Stand) -> None:
    def asked_first() -> set[str]:
        ids = {dropped.deployment_id: dropped.reason for dropped in suspected(REQUEST, Ticket(), GROUP)}
        assert set(ids.values()) <= {"breaker_suspected"}
        return set(NAMES) - set(ids)

    suspected = SuspectedFilter(stand.breakers)
    waiting = [stand.begin() for _ in range(3)]
    assert (stand.after(0.9), asked_first()) == ("closed", {"a", "b", "c"})
    assert (stand.after(0.2), asked_first()) == ("closed", {"b", "c"})
    alone = dataclasses.replace(REQUEST, candidates=tuple(GROUP[:1]))
    assert not suspected(alone, Ticket(), GROUP[:1]), "there is nobody else"
    assert not suspected(REQUEST, Ticket(failed={"b", "c"}), GROUP[:1]), "the others may not be tried"
    stand.tell(waiting[0])
    assert (stand.after(0.2), asked_first()) == ("closed", {"a", "b", "c"}), "it does answer"
    for _ in range(2):
        stand.begin()
    assert (stand.after(4.9), asked_first()) == ("closed", {"a", "b", "c"}), "two are too few"
    stand.begin()
    assert (stand.after(1.1), asked_first()) == ("closed", {"b", "c"})
    assert (stand.after(4.0), asked_first()) == ("open", {"a", "b", "c"}), "the breaker's own word now"


def test_nobody_is_suspected_of_whom_nothing_is_known_or_who_is_always_slow() -> None:
    stand = Stand()
    stand.know("b", seconds=2.0)
    stand.now += 1
    for name in "ab":
        for _ in range(4):
            stand.begin(name)
    assert stand.after(9.0, "b") == "closed"
    assert stand.breakers.suspected == set()
    assert stand.after(6.0, "b") == "open", "five times what is usual"


def test_two_are_too_few_and_a_third_that_has_just_begun_does_not_count(stand: Stand) -> None:
    for _ in range(2):
        stand.begin()
    stand.now += 6
    stand.begin()
    assert stand.after(0.0) == "closed"
    assert stand.after(5.1) == "open"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_slow_upstream_is_not_a_dead_one(streamed: bool) -> None:
    stand = Stand()
    stand.know(seconds=8.0, first=8.0 if streamed else None)
    stand.now += 1
    for _ in range(5):
        stand.begin(streamed=streamed)
    assert stand.after(35.0) == "closed"
    assert stand.after(15.0) == "open"


def test_of_whom_nothing_is_known_plain_answers_may_take_longer_and_streams_have_to_begin() -> None:
    stand = Stand()
    for name in "ab":
        for _ in range(3):
            stand.begin(name, streamed=name == "b")
    assert stand.after(5.1, "b") == "open"
    assert stand.after(15.0, "a") == "closed"
    assert stand.after(5.1, "a") == "open"


@pytest.mark.parametrize("streamed", [False, True])
def test_one_that_answers_meanwhile_shows_that_it_does_not_hang(stand: Stand, streamed: bool) -> None:
    for _ in range(3):
        stand.begin()
    stand.now += 4
    other = stand.begin(streamed=streamed)
    if streamed:
        other[2].settle(200)  # its first content; its end comes later
    else:
        stand.tell(other)
    assert stand.after(60.0) == "closed"
    for _ in range(3):
        stand.begin()
    assert stand.after(5.1) == "open", "those that began since count"


def test_what_fails_or_is_told_otherwise_is_under_way_no_longer(stand: Stand) -> None:
    asked = [stand.begin() for _ in range(6)]
    stand.tell(asked[0], "error", error="RateLimitError", status=429)
    stand.tell(asked[1], "error", error="NotFoundError", status=404)
    asked[2][2].settle(200)  # of which LiteLLM may say nothing
    asked[3][2].settle(499)
    assert len(stand.stalls) == 2
    assert stand.after(60.0) == "closed"


def test_clients_that_give_up_after_too_long_a_wait_count_for_a_while(stand: Stand) -> None:
    for _ in range(3):
        asked = stand.begin()
        assert stand.after(6.0) == ("open" if stand.count > 52 else "closed")
        asked[2].settle(499)
    assert len(stand.stalls) == 3
    stand.after(stand.rules.window + 1)
    assert len(stand.stalls) == 0


def test_callers_with_a_connection_of_their_own_and_answers_that_have_begun_do_not_count(stand: Stand) -> None:
    for _ in range(5):
        stand.begin(callers_connection=True)
        stand.begin(answered=200)  # a call of LiteLLM's within an answer
    stand.stalls.began(Ticket(), None, "a", streamed=False)
    stand.stalls.began(Ticket(), "d", "stranger", streamed=False)
    assert len(stand.stalls) == 0
    off = Stand(enabled=False)
    off.begin()
    assert len(off.stalls) == 0


def test_a_hedged_stream_that_begins_does_not_speak_for_whoever_lost(stand: Stand) -> None:
    for _ in range(3):
        lost = stand.begin("a", streamed=True)
        stand.stalls.began(lost[2], f"other-{lost[0]}", "b", streamed=True)
        stand.now += 1
    for _ in range(3):
        stand.begin("a", streamed=True)
    lost[2].settle(200)
    assert stand.after(5.1) == "open"


def opened(stand: Stand) -> list[tuple[str, str, Ticket]]:
    asked = [stand.begin() for _ in range(3)]
    assert stand.after(5.1) == "open"
    return asked


def test_a_probe_that_stalls_opens_it_again_for_longer_and_long_before_its_lease_ends(stand: Stand) -> None:
    opened(stand)
    assert stand.after(5.0) == "half_open"
    stand.breakers.admit(GROUP, GROUP, "probe")
    stand.breakers.settle("probe", "a")
    stand.begin(token="probe")
    assert stand.after(4.9) == "half_open"
    assert stand.after(0.2) == "open"
    state = stand.breakers._breakers["up-a"].state
    assert isinstance(state, Open)
    assert (state.cause, state.rests, state.until - state.since) == ("stalled", 2, 10.0)


@pytest.mark.parametrize("rested", [1.0, 6.0])
def test_what_is_answered_after_all_closes_it_at_once(stand: Stand, rested: float) -> None:
    asked = opened(stand)
    stand.after(rested)
    stand.tell(asked[0], latency=9_000)
    assert stand.after(0.0) == "closed"
    assert stand.after(60.0) == "closed", "those that still wait began before"


def test_when_another_says_that_it_is_back_those_that_wait_do_not_open_it_again(stand: Stand) -> None:
    opened(stand)
    other = Breakers(stand.rules, lambda: stand.now, lambda: 0.0)
    other.adopt(stand.breakers.news())
    other.free("up-a")
    stand.breakers.adopt(other.news())
    assert stand.after(60.0) == "closed"


def test_a_probe_whose_client_hangs_up_makes_room_for_another(stand: Stand) -> None:
    opened(stand)
    stand.after(5.0)
    assert not stand.breakers.admit(GROUP, GROUP, "probe").dropped
    stand.breakers.settle("probe", "a")
    probe = stand.begin(token="probe")
    assert "a" in stand.breakers.admit(GROUP, GROUP, "another").dropped
    probe[2].settle(499)
    assert not stand.breakers.admit(GROUP, GROUP, "another").dropped


class Machine(RuleBasedStateMachine):
    """Any mixture of attempts over one upstream; what a model that remembers everything says of opening it must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stand = Stand(stall_factor=1, window=10)
        self.stand.know(times=1)
        self.waiting: list[tuple[tuple[str, str, Ticket], float]] = []
        self.came = self.stand.now

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        before = self.stand.breakers.states()["up-a"]
        now = self.stand.now + seconds
        overdue = [at for _, at in self.waiting if now - at >= 5 and at > self.came]
        after = self.stand.after(seconds)
        if before == "closed":
            # Those who have left make it more.
            assert after == "open" or len(overdue) < 3
            assert after == "closed" or len(overdue) + self.left(now) >= 3

    def left(self, now: float) -> int:
        return sum(one.left is not None for one in self.stand.stalls._waiting.values())

    @rule(streamed=st.booleans())
    def one_begins(self, streamed: bool) -> None:
        if self.stand.breakers.states()["up-a"] == "closed":
            self.waiting.append((self.stand.begin(streamed=streamed), self.stand.now))

    @rule(data=st.data(), how=st.sampled_from(["ok", "error", "gone", "gone", "silent"]))
    def one_ends(self, data: st.DataObject, how: str) -> None:
        if not self.waiting:
            return
        item = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(item)
        if how == "ok":
            self.stand.tell(item[0])
            self.came = self.stand.now
        elif how == "error":
            self.stand.tell(item[0], "error", error="NotFoundError", status=404)
        before = len(self.stand.stalls)
        item[0][2].settle({"ok": 200, "silent": 200, "error": 404, "gone": 499}[how])
        if how == "silent" and self.stand.stalls._answered.get("up-a") == self.stand.now:
            self.came = self.stand.now  # a stream began
        assert len(self.stand.stalls) <= before

    @rule()
    def it_is_back(self) -> None:
        self.stand.breakers.free("up-a")
        self.came = self.stand.now

    @invariant()
    def nothing_is_kept_but_what_waits_and_who_left_of_late(self) -> None:
        kept = self.stand.stalls._waiting
        assert sum(one.left is None for one in kept.values()) == len(self.waiting)

    def teardown(self) -> None:
        for asked, _ in self.waiting:
            asked[2].settle(200)
        self.stand.after(self.stand.rules.window + 6)
        assert len(self.stand.stalls) == 0


def test_any_mixture() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)),
    )


async def test_streams_that_wait_for_content_are_told(stand: Stand) -> None:
    asked = [stand.begin(streamed=True) for _ in range(4)]
    waits = [asyncio.Timeout(None) for _ in asked]
    late, ended = 0, asyncio.Event()

    async def wait(ticket: Ticket, timeout: asyncio.Timeout) -> None:
        nonlocal late
        try:
            async with timeout:
                trail_of(ticket).waits = timeout
                await ended.wait()
        except TimeoutError:
            late += 1

    tasks = [asyncio.create_task(wait(one[2], timeout)) for one, timeout in zip(asked, waits, strict=True)]
    await asyncio.sleep(0)
    assert stand.after(4.9) == "closed"
    assert stand.after(0.2) == "open"
    await asyncio.wait(tasks, timeout=5)
    assert late == 4
