"""Further tries: pauses, budgets, what may be tried and what ends a request."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import httpx
import litellm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pointsman.custom_router.failover.again import Again, Choices
from pointsman.custom_router.failover.backoff import full_jitter
from pointsman.custom_router.failover.budget import SLOTS, RetryBudget
from pointsman.custom_router.failover.stop import StopError
from pointsman.custom_router.failover.trail import Asking, deadline_of, note, trail_of
from pointsman.custom_router.failover.watch import runs
from pointsman.custom_router.outcomes import Outcomes
from pointsman.custom_router.verdicts import verdict_of
from pointsman.decisions import Attempt, Decision, Outcome
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.resilience_settings import FailoverSettings

SECONDS = st.floats(0.001, 1_000, allow_nan=False)
CHANCE = st.floats(0, 1, exclude_max=True, allow_nan=False)


@given(st.integers(0, 10_000), SECONDS, SECONDS, CHANCE)
def test_a_pause_is_never_longer_than_the_cap_nor_than_its_turn_allows(
    pauses: int, base: float, cap: float, chance: float
) -> None:
    pause = full_jitter(pauses, base, cap, chance)
    assert 0 <= pause <= cap
    assert pause <= base * 2.0 ** min(pauses, 64)


@pytest.mark.requirement("R-14.2")
@given(SECONDS, CHANCE)
def test_the_pauses_grow_until_the_cap(base: float, chance: float) -> None:
    pauses = [full_jitter(turn, base, base * 8, chance) for turn in range(6)]
    assert pauses == sorted(pauses)
    assert pauses[3] == pauses[5] == pytest.approx(chance * base * 8)
    assert pauses[1] == pytest.approx(2 * pauses[0])


class BudgetMachine(RuleBasedStateMachine):
    """Whatever comes when: no window has more further tries than the budget says, and none is refused without cause."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.share, self.floor, self.window = 1_000.0, 0.25, 2, 10.0
        self.budget = RetryBudget(self.share, self.floor, self.window)
        self.requests: list[float] = []
        self.tries: list[float] = []

    @rule(seconds=st.floats(0, 4, allow_nan=False))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 9))
    def requests_come(self, count: int) -> None:
        for _ in range(count):
            self.budget.request(self.now)
            self.requests.append(self.now)

    @rule()
    def one_is_tried_again(self) -> None:
        slot = self.window / SLOTS
        if self.budget.take(self.now):
            self.tries.append(self.now)
        else:  # what is certainly still within the window explains the refusal
            requests = sum(self.now - at < self.window - slot for at in self.requests)
            tries = sum(self.now - at < self.window + slot for at in self.tries)
            assert tries + 1 > self.floor + self.share * requests

    @invariant()
    def it_is_kept(self) -> None:
        slot = self.window / SLOTS
        tries = sum(self.now - at < self.window - slot for at in self.tries)
        # A try is allowed for requests of the window before it, so those of two windows count.
        requests = sum(self.now - at <= 2 * self.window for at in self.requests)
        assert tries <= self.floor + self.share * requests + 1e-6


TestBudget = BudgetMachine.TestCase
TestBudget.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_low_traffic_may_try_again_and_a_storm_may_not() -> None:
    budget = RetryBudget(0.2, 3, 10)
    assert [budget.take(0) for _ in range(4)] == [True, True, True, False]
    for _ in range(100):
        budget.request(1)
    assert sum(budget.take(1) for _ in range(100)) == 20
    assert budget.take(30)  # the window has passed


class Stand:
    """`Again` with a clock of its own; sleeping moves it."""

    def __init__(self, *, closed: bool | None = True, **rules: Any) -> None:
        self.now, self.slept, self.stopped, self.chance = 100.0, [], [], 1.0
        rules = {"budget_floor": 2, "budget_share": 0.0, **rules}
        self.closed = closed

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            self.now += seconds

        self.again = Again(
            FailoverSettings(**rules),
            lambda: self.now,
            lambda: self.chance,
            None if closed is None else lambda _: bool(self.closed),
            lambda group, limit: self.stopped.append((group, limit)),
            sleep,
        )
        self.ticket = Ticket(started=100.0, group="g")

    def fails(self, name: str, error: Exception | None = None, retry_after: float | None = None) -> None:
        self.ticket.failed.add(name)
        note(self.ticket, name, error or litellm.InternalServerError("x", "openai", "m"), self.now, retry_after)

    async def ask(self, *ids: str, elsewhere: bool = False) -> str:
        async def there() -> bool:
            return elsewhere

        try:
            self.again.check(self.ticket, further=bool(self.ticket.failed))
            await self.again.before(self.ticket, Choices("g", ids, there), further=bool(self.ticket.failed))
        except StopError as stop:
            return stop.limit
        return "ask"


async def test_another_one_that_serves_is_asked_at_once_and_free_of_charge() -> None:
    stand = Stand(budget_floor=0)
    assert await stand.ask("a", "b", "c") == "ask"
    for name, left in (("a", ("b", "c")), ("b", ("c",))):
        stand.fails(name)
        assert await stand.ask(*left) == "ask"
    assert (stand.slept, stand.stopped) == ([], [])


@pytest.mark.requirement("R-14.2", "P-17")
async def test_the_same_one_again_waits_longer_each_time_until_the_budget_is_spent() -> None:
    stand = Stand(budget_floor=4, backoff=0.5, max_backoff=2)
    for _ in range(4):
        stand.fails("a")
        assert await stand.ask("a") == "ask"
    assert stand.slept == [0.5, 1.0, 2.0, 2.0]
    stand.fails("a")
    assert await stand.ask("a") == "budget"
    assert await stand.ask("b") == "budget"  # over is over, in whatever group
    assert stand.stopped == [("g", "budget")]


async def test_what_litellm_has_waited_already_counts() -> None:
    stand = Stand(backoff=0.5)
    stand.fails("a")
    stand.now += 0.4
    assert await stand.ask("a") == "ask"
    assert stand.slept == [pytest.approx(0.1)]


@pytest.mark.parametrize("closed", [False, None])
async def test_where_all_fail_further_tries_draw_on_the_budget(closed: bool | None) -> None:
    stand = Stand(closed=closed, budget_floor=1)
    stand.fails("a")
    assert await stand.ask("b") == "ask"
    stand.fails("b")
    assert await stand.ask("c") == ("ask" if closed is None else "budget")  # without breakers the first one was free
    stand.fails("c")
    assert await stand.ask("d") == "budget"


async def test_retry_after_is_waited_for_as_far_as_it_is_reasonable() -> None:
    stand = Stand(max_retry_after=5)
    stand.fails("a", retry_after=3)
    assert await stand.ask("a") == "ask"
    assert stand.slept == [3]
    stand.fails("a", retry_after=6)
    assert await stand.ask("a") == "retry_after"


@pytest.mark.requirement("P-19")
async def test_there_is_no_try_past_the_deadline_nor_a_pause_that_leads_there() -> None:
    stand = Stand(deadline=10)
    stand.again.begin(stand.ticket, {}, "acompletion")
    stand.fails("a")
    stand.now += 9
    assert stand.again.bound(stand.ticket, {"timeout": 600}) == {"timeout": pytest.approx(1)}
    assert stand.again.bound(stand.ticket, {"timeout": 0.5}) == {}
    assert await stand.ask("b") == "ask"
    stand.fails("b", retry_after=2)
    assert await stand.ask("b") == "deadline"
    stand = Stand(deadline=10)
    stand.again.begin(stand.ticket, {}, "acompletion")
    stand.now += 10
    assert await stand.ask("a") == "deadline"


async def test_when_all_of_a_group_have_failed_its_fallback_is_asked_before_one_of_them_is_asked_twice() -> None:
    stand = Stand()
    stand.fails("a")
    assert await stand.ask("a", elsewhere=True) == "exhausted"
    assert stand.stopped == []  # the request goes on
    assert await stand.ask("f") == "ask"


async def test_litellms_own_failover_of_a_stream_is_refused_and_a_call_within_a_stream_is_not() -> None:
    stand = Stand()
    trail = trail_of(stand.ticket)
    trail.streaming = True
    with pytest.raises(StopError):
        stand.again.check(stand.ticket, further=True)
    stand.again.check(stand.ticket, further=False)
    assert not trail.streaming


@given(
    st.dictionaries(st.sampled_from(["timeout", "request_timeout", "other"]), st.one_of(st.floats(), st.text(), st.booleans()))
)
def test_a_deadline_is_the_soonest_of_what_is_said(body: dict[str, Any]) -> None:
    told = deadline_of({"x-pointsman-deadline-ms": "5000"}, body, 7.0, 100.0)
    assert 100 <= told <= 105
    assert deadline_of({}, {}, None, 100.0) == math.inf
    assert deadline_of({"x-pointsman-deadline-ms": "none"}, {}, None, 100.0) == math.inf


@pytest.mark.requirement("R-14.5")
def test_the_error_says_what_was_tried_and_which_limit_ended_it() -> None:
    records: list[Any] = []
    response = httpx.Response(429, headers={"retry-after": "7"}, request=httpx.Request("POST", "http://x"))
    cause = litellm.RateLimitError("slow down", "openai", "m", response)
    ticket = Ticket(decision=Decision("dec_1", None, "g"))
    note(ticket, "a", litellm.InternalServerError("secret of the upstream", "openai", "m"), 1.0, None)
    note(ticket, "b", cause, 2.0, 7.0)
    stop = StopError("budget", cause)
    assert stop.status_code == 400  # so that LiteLLM does not try again
    token = CURRENT.set(ticket)
    try:
        Outcomes((records.append,)).request_failed(stop)
    finally:
        CURRENT.reset(token)
    assert stop.status_code == 429
    assert stop.headers == {"retry-after": "7"}
    told = stop.message.split("\n\n")[1]
    assert (
        told
        == "Tried: a (InternalServerError, 500), b (RateLimitError, 429). E4731: the retry budget of its model group is spent."
    )
    assert "slow down" in stop.message
    assert ticket.error == "RateLimitError"
    assert [record.status for record in records if isinstance(record, Outcome)] == ["failure"]


def test_a_stream_that_breaks_is_an_attempt_that_failed_and_counts_once() -> None:
    records: list[Any] = []
    broke: list[tuple[str, bool]] = []
    outcomes = Outcomes((records.append,), streams=lambda model, after: broke.append((model, after)))
    ticket = Ticket(decision=Decision("dec_1", None, "g"), models={"a": "openai/a"})
    trail_of(ticket).asking = Asking("dec_1", "a", 1.0)
    error = litellm.APIConnectionError("gone", "openai", "m")
    outcomes.stream_failed(ticket, error, broken=True)
    token = CURRENT.set(ticket)
    try:  # LiteLLM tells of the same one
        outcomes.attempt_failed({"model_info": {"id": "a"}, "metadata": {"pointsman_decision_id": "dec_1"}}, error)
    finally:
        CURRENT.reset(token)
    attempts = [record for record in records if isinstance(record, Attempt)]
    assert [(one.deployment_id, one.outcome, one.broken) for one in attempts] == [("a", "error", True)]
    assert broke == [("openai/a", True)]
    assert ticket.failed == {"a"}


def test_an_answer_that_says_all_is_well_and_cannot_be_read_counts_against_its_upstream() -> None:
    assert verdict_of("error", "APIError", 200) == "bad"
    assert verdict_of("error", "BrokenStreamError", 502) == "bad"


class Watched:
    """A request whose router works in a task of its own, with LiteLLM's check beside it."""

    def __init__(self, **asked: str) -> None:
        self.again = Again(FailoverSettings(), time.monotonic, lambda: 0.0)
        self.ticket, self.cut, self.lost = Ticket(asked=asked), list[Exception](), list[Exception]()
        self.again.begin(self.ticket, {}, "acompletion")

    async def ask(self, seconds: float, call: str = "acompletion", *, says: bool = True) -> str:
        async def router() -> str:
            await asyncio.sleep(0)
            if says:
                runs(self.ticket)
            await asyncio.sleep(seconds)
            return "answer"

        told = (lambda _, error: self.cut.append(error), lambda _, error: self.lost.append(error))
        check = asyncio.create_task(self.again.watch(self.ticket, call, *told))
        self.work = asyncio.create_task(router())
        try:
            _, answer = await asyncio.gather(check, self.work)
        finally:
            for task in (check, self.work):
                task.cancel()
            await asyncio.gather(check, self.work, return_exceptions=True)
        return answer


@pytest.mark.requirement("P-19")
async def test_what_takes_longer_than_the_deadline_ends_with_it() -> None:
    watched = Watched(**{"x-pointsman-deadline-ms": "50"})
    note(watched.ticket, "a", ValueError("the provider's words"), time.monotonic(), None)
    began = time.monotonic()
    with pytest.raises(StopError, match="the provider's words") as raised:
        await watched.ask(30)
    assert 0.05 <= time.monotonic() - began < 5
    raised.value.settle()
    assert (raised.value.limit, raised.value.status_code) == ("deadline", 504)
    assert watched.cut == [raised.value]
    assert watched.work.cancelled()
    assert trail_of(watched.ticket).limit == "deadline", "and there is no further try"


async def test_what_is_answered_in_time_is_not_held_up() -> None:
    for asked in ({"x-pointsman-deadline-ms": "20000"}, {}):
        watched, began = Watched(**asked), time.monotonic()
        assert await watched.ask(0.01) == "answer"
        assert time.monotonic() - began < 5
        assert not watched.cut


async def given_up(watched: Watched, seconds: float = 30.0) -> str:
    """Ask, and give up as soon as the router works."""

    async def give_up() -> None:
        await trail_of(watched.ticket).routed.wait()
        await asyncio.sleep(0)
        trail_of(watched.ticket).give_up()

    async with asyncio.TaskGroup() as group:
        group.create_task(give_up())
        return await watched.ask(seconds)


@pytest.mark.requirement("P-19")
async def test_one_whose_upstream_hangs_is_begun_anew_twice_and_knows_whom_it_asked() -> None:
    watched = Watched()
    for repeats in range(2):
        watched.ticket.repeatable, watched.ticket.retries, watched.ticket.groups = True, (1, 0), {"m"}
        with pytest.RaisesGroup(StopError):
            await given_up(watched)
        assert [type(error).__name__ for error in watched.lost] == ["StalledError"] * (repeats + 1)
        assert watched.work.cancelled()
        assert watched.ticket.repeat
        note(watched.ticket, "a", watched.lost[-1], time.monotonic(), None)
        watched.ticket.repeat, watched.ticket.repeats = False, repeats + 1  # `http.anew`
        watched.again.begin(watched.ticket, {}, "acompletion")
        trail = trail_of(watched.ticket)
        assert (watched.ticket.retries, watched.ticket.groups) == ((0, 0), set()), "LiteLLM begins at its beginning"
        assert trail.again, "its first try is a further one"
        assert trail.router is None
        assert trail.limit is None, "and may be made"
        assert [one.deployment_id for one in trail.tried] == ["a"] * (repeats + 1)
    assert await given_up(watched, 0.05) == "answer", "often enough: now it waits"
    assert not watched.ticket.repeat


async def test_for_a_client_that_has_left_nothing_is_begun_anew() -> None:
    async def at_once() -> None: ...

    for gone, repeats in ((at_once, False), (asyncio.Event().wait, True)):
        watched = Watched()
        watched.ticket.repeatable, watched.ticket.gone = True, gone
        with pytest.RaisesGroup(StopError):
            await given_up(watched)
        assert watched.work.cancelled()
        assert watched.ticket.repeat is repeats


@pytest.mark.parametrize("why", ["not held whole", "a cascade", "off"])
async def test_what_cannot_be_begun_anew_goes_on_waiting_until_its_deadline(why: str) -> None:
    watched = Watched(**{"x-pointsman-deadline-ms": "300"})
    watched.ticket.repeatable = why != "not held whole"
    watched.ticket.cascade = "one" if why == "a cascade" else None
    watched.again.rules = watched.again.rules.model_copy(update={"stalled": why != "off"})
    with pytest.RaisesGroup(StopError):
        await given_up(watched)
    assert len(watched.cut) == 1
    assert not watched.lost
    assert not watched.ticket.repeat


async def test_a_call_that_never_tells_of_its_router_is_left_alone() -> None:
    assert await Watched(**{"x-pointsman-deadline-ms": "50"}).ask(0.4, says=False) == "answer"
    watched, began = Watched(**{"x-pointsman-deadline-ms": "5000"}), time.monotonic()
    assert await watched.ask(0.01, "afile_list", says=False) == "answer"
    assert time.monotonic() - began < 2
