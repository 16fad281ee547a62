"""Who is asked when, who wins, and what becomes of the other: the race of two calls, with a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pointsman.custom_router.hedging.calls import fits
from pointsman.custom_router.hedging.race import Call, Race, race
from pointsman.custom_router.hedging.service import SAMPLES, Hedge, Hedging, Try
from pointsman.custom_router.queue import Priority
from pointsman.decisions import Attempt, Decision
from pointsman.decisions.ticket import Ticket
from pointsman.errors import PointsmanError
from pointsman.resilience_settings import ResilienceSettings


class Upstream:
    """Answers or fails when it is told to, and knows whether its caller went away."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.closed = False

    async def __call__(self) -> str:
        self.asked.set()
        try:
            return await self.end
        except asyncio.CancelledError:
            self.closed = True
            raise


class Stand:
    """A race of two upstreams; the delay is over when `late` is set."""

    def __init__(self, *, allowed: bool = True) -> None:
        self.first, self.second = Upstream(), Upstream()
        self.late, self.left = asyncio.Event(), asyncio.Event()
        self.delays: list[float] = []
        self._allowed = allowed

    def run(self) -> asyncio.Task[Race[str]]:
        async def sleep(seconds: float) -> None:
            self.delays.append(seconds)
            await self.late.wait()

        async def gone() -> None:
            await self.left.wait()

        other: Callable[[], Call[str] | None] = lambda: Call(self.second) if self._allowed else None  # noqa: E731
        return asyncio.ensure_future(race(Call(self.first), other, 0.3, gone, sleep))


async def test_a_fast_answer_makes_no_second_call() -> None:
    stand = Stand()
    running = stand.run()
    await stand.first.asked.wait()
    stand.first.end.set_result("first")
    told = await running
    assert told.won is not None
    assert (told.won.answer, told.won.second, len(told.calls)) == ("first", False, 1)
    assert not stand.second.asked.is_set()
    assert stand.delays == [0.3]


async def test_a_fast_failure_is_the_failure_and_makes_no_second_call() -> None:
    stand = Stand()
    running = stand.run()
    await stand.first.asked.wait()
    stand.first.end.set_exception(ValueError("broken"))
    told = await running
    assert told.won is None
    assert isinstance(told.calls[0].error, ValueError)
    assert not stand.second.asked.is_set()


@pytest.mark.parametrize("winner", ["first", "second"])
async def test_after_the_delay_the_first_answer_wins_and_the_other_is_cancelled(winner: str) -> None:
    stand = Stand()
    running = stand.run()
    stand.late.set()
    await stand.second.asked.wait()
    getattr(stand, winner).end.set_result(winner)
    told = await running
    assert told.won is not None
    assert (told.won.answer, told.won.second) == (winner, winner == "second")
    assert (stand.first.closed, stand.second.closed) == (winner == "second", winner == "first")


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_one_that_fails_leaves_the_other_to_answer(failing: str) -> None:
    stand = Stand()
    running = stand.run()
    stand.late.set()
    await stand.second.asked.wait()
    getattr(stand, failing).end.set_exception(ValueError("broken"))
    await asyncio.sleep(0)
    other = "second" if failing == "first" else "first"
    getattr(stand, other).end.set_result(other)
    told = await running
    assert told.won is not None
    assert told.won.answer == other
    assert [call.error is not None for call in told.calls] == [failing == "first", failing == "second"]


async def test_both_may_fail() -> None:
    stand = Stand()
    running = stand.run()
    stand.late.set()
    await stand.second.asked.wait()
    for one in (stand.second, stand.first):
        one.end.set_exception(ValueError("broken"))
    told = await running
    assert told.won is None
    assert [type(call.error) for call in told.calls] == [ValueError, ValueError]


async def test_where_there_is_no_second_call_the_first_goes_on() -> None:
    stand = Stand(allowed=False)
    running = stand.run()
    stand.late.set()
    await stand.first.asked.wait()
    await asyncio.sleep(0.01)
    stand.first.end.set_result("first")
    told = await running
    assert told.won is not None
    assert len(told.calls) == 1


@pytest.mark.parametrize("how", ["the client leaves", "the request is cancelled"])
async def test_the_end_of_the_request_ends_both(how: str) -> None:
    stand = Stand()
    running = stand.run()
    stand.late.set()
    await stand.second.asked.wait()
    if how == "the client leaves":
        stand.left.set()
        told = await running
        assert told.left
        assert told.won is None
    else:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (stand.first.closed, stand.second.closed) == (True, True)


# What is hedged at all.

CHAT = {"user_api_key_request_route": "/v1/chat/completions"}


@pytest.mark.parametrize(
    ("body", "route", "fit"),
    [
        ({"temperature": 1, "tools": [{}], "response_format": {"type": "json_object"}}, "/v1/chat/completions", True),
        ({"stream": True}, "/v1/chat/completions", False),
        ({"api_key": "sk-own"}, "/v1/chat/completions", False),
        ({"thinking": {"type": "enabled"}}, "/v1/chat/completions", False),
        ({}, "/v1/messages", False),
    ],
)
def test_only_chats_are_hedged_whose_parameters_all_can_be_handed_on(body: dict[str, Any], route: str, fit: bool) -> None:
    kwargs = {"proxy_server_request": {"body": {"model": "auto", "messages": [], **body}}}
    assert fits(kwargs, {"user_api_key_request_route": route}) is fit


class Known:
    """Scores of upstreams that are named as their deployments."""

    def __init__(self, **late: tuple[float, float]) -> None:
        self.late = late

    def upstream(self, deployment_id: str) -> str | None:
        return deployment_id

    def score(self, upstream: str) -> Any:
        value = self.late.get(upstream)
        pair = (None, SimpleNamespace(value=value[0], weight=value[1])) if value is not None else None
        return SimpleNamespace(latency=pair)


class Books:
    """Takes records."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def record(self, record: Attempt) -> None:
        self.told.append(record)

    def call_failed(self, ticket: Ticket, decision_id: str, deployment_id: str, error: Exception, *, hedge: bool) -> None:
        self.told.append((deployment_id, error, hedge))


def hedging(known: Known | None = None, closed: Callable[[str], bool] = lambda _: True, **rules: Any) -> Hedging:
    settings = ResilienceSettings.model_validate({"hedging": {"enabled": True, **rules}})
    return Hedging(settings, known or Known(), closed, Books(), clock=lambda: 0.0)


def asking(ticket: Ticket) -> Try:
    ids = ["a", "b"]
    kwargs = {"proxy_server_request": {"body": {"model": "auto"}}}
    return Try(ticket, Decision("dec_1", None, "auto"), "auto", ids, {name: {} for name in ids}, (), kwargs, CHAT)


@pytest.mark.parametrize(
    ("rules", "closed", "priority"),
    [
        ({"delay": 1}, lambda _: True, Priority.NORMAL),
        ({"delay": 1, "groups": ["other"]}, lambda _: True, Priority.HIGH),
        ({"delay": 1}, lambda one: one != "b", Priority.HIGH),
        ({}, lambda _: True, Priority.HIGH),
    ],
    ids=["another class", "another group", "nobody else serves", "nothing is known of how long it takes"],
)
async def test_who_is_not_hedged_is_left_to_litellm(rules: dict[str, Any], closed: Any, priority: Priority) -> None:
    assert await hedging(closed=closed, **rules).serve(asking(Ticket(hedge=Hedge(priority)))) is None


async def test_further_tries_are_not_hedged() -> None:
    ticket = Ticket(hedge=Hedge(Priority.HIGH), retries=(1, 0))
    assert await hedging(delay=1).serve(asking(ticket)) is None


def test_the_class_is_that_of_header_key_and_team() -> None:
    def priority(asked: dict[str, str], key: dict[str, Any], team: dict[str, Any]) -> Priority:
        ticket = Ticket(asked=asked)
        hedging().begin(ticket, SimpleNamespace(metadata=key, team_metadata=team), admin=False)
        assert isinstance(ticket.hedge, Hedge)
        return ticket.hedge.priority

    high = {"pointsman_priority": "high"}
    assert priority({}, high, {}) is Priority.HIGH
    assert priority({}, {}, high) is Priority.HIGH
    assert priority({}, {}, {}) is Priority.NORMAL
    assert priority({"x-pointsman-priority": "low"}, high, {}) is Priority.LOW
    with pytest.raises(PointsmanError, match="normal"):
        priority({"x-pointsman-priority": "high"}, {}, {})


@pytest.mark.parametrize(
    ("known", "rules", "delay"),
    [
        ({"a": (800.0, SAMPLES)}, {}, 0.8),
        ({"a": (800.0, SAMPLES - 1)}, {}, None),
        ({"a": (800.0, SAMPLES), "b": (900.0, SAMPLES)}, {}, 0.9),
        ({"a": (8.0, SAMPLES)}, {}, 0.2),
        ({}, {"delay": 3}, 3),
    ],
)
def test_the_delay_is_what_is_known_of_the_upstream(
    known: dict[str, tuple[float, float]], rules: dict[str, Any], delay: float | None
) -> None:
    assert hedging(Known(**known), **rules)._delay(["a", "b"]) == delay
