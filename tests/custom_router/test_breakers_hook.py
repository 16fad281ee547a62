"""The breakers in LiteLLM's own router: attempts are counted, who rests is not asked, who is back is found out."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx
import litellm
import pytest
from litellm.proxy import proxy_server

from pointsman.custom_router.verdicts import retry_after_of
from pointsman.decisions import Attempt
from pointsman.decisions.ticket import CURRENT, Ticket
from support.hooked import bound, listens

MESSAGES = [{"role": "user", "content": "hello"}]
SAME = {"good": 0.9, "other": 0.5}


class Stand:
    """A router with two deployments and the hook; LiteLLM's own cooldown is off, so that what is seen is ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, strategy: bool = True) -> None:
        self.records: list[Any] = []
        self.now = 100.0
        scorer = SimpleNamespace(version="1", models=("good", "other"), scale="quality", score_timed=lambda *_: (SAME, 0, 0))
        settings = {"routing": {"default": "s" if strategy else None, "deadline_ms": 5000}}
        self.hook = bound(settings, self.records.append, strategy=scorer)
        assert self.hook.breakers is not None
        self.breakers = self.hook.breakers
        monkeypatch.setattr(self.breakers, "_clock", lambda: self.now)
        listens(monkeypatch, self.hook)
        self.router = litellm.Router(
            model_list=[
                {
                    "model_name": "auto",
                    "litellm_params": {"model": f"openai/{name}", "api_key": "sk-test", "mock_response": f"by {name}"},
                    "model_info": {"id": name},
                }
                for name in SAME
            ],
            num_retries=1,
            retry_after=0,
            disable_cooldowns=True,
        )
        monkeypatch.setattr(proxy_server, "llm_router", self.router)
        self.ticket = Ticket()

    def answers(self, what: Any) -> None:
        """The good one's answers from now on."""
        for item in self.router.model_list:
            if item["model_info"]["id"] == "good":
                item["litellm_params"]["mock_response"] = what

    async def ask(self, **state: Any) -> str:
        self.ticket = Ticket(**state)
        token = CURRENT.set(self.ticket)
        try:
            answer = await self.router.acompletion("auto", MESSAGES)
        finally:
            CURRENT.reset(token)
        return str(answer.choices[0].message.content)

    def dead(self) -> int:
        return sum(isinstance(item, Attempt) and item.outcome == "error" for item in self.records)


async def settled(stand: Stand, count: int) -> None:
    """LiteLLM tells of a success in a task of its own."""
    until = time.monotonic() + 5
    while sum(isinstance(item, Attempt) and item.outcome == "ok" for item in stand.records) < count:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("strategy", [True, False])
async def test_who_fails_is_left_alone_and_comes_back_by_probes(monkeypatch: pytest.MonkeyPatch, strategy: bool) -> None:
    stand = Stand(monkeypatch, strategy)
    stand.answers("litellm.InternalServerError")
    for _ in range(30):  # without a strategy LiteLLM takes one by chance
        assert await stand.ask() == "by other"
    assert stand.dead() == 3
    assert stand.ticket.decision is not None
    assert [(item.deployment_id, item.reason) for item in stand.ticket.decision.dropped] == [("good", "breaker_open")]
    assert stand.breakers.states() == {"openai/good": "open", "openai/other": "closed"}
    stand.answers("by good")
    stand.now += 5
    await settled(stand, 30)
    for number in range(31, 51):
        await stand.ask()
        await settled(stand, number)
    assert stand.breakers.states()["openai/good"] == "closed"


async def test_whom_litellm_did_not_choose_is_free_for_another_probe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the answer of the other has ended, for answers of models take long."""
    stand = Stand(monkeypatch, strategy=False)
    stand.answers("litellm.InternalServerError")
    for _ in range(30):
        await stand.ask()
    stand.answers("by good")
    stand.now += 5
    other = next(item for item in stand.router.model_list if item["model_info"]["id"] == "other")
    other["litellm_params"]["mock_delay"] = 20
    monkeypatch.setattr("random.choice", lambda items: next(one for one in items if one["model_info"]["id"] == "other"))
    before, asking = stand.ticket, asyncio.create_task(stand.ask())

    def probes() -> Any:
        return next(row for row in stand.breakers.describe() if row["upstream"] == "openai/good")["probes"]

    until = time.monotonic() + 3
    while stand.ticket is before or stand.ticket.decision is None or probes()["running"]:
        assert time.monotonic() < until, probes()
        await asyncio.sleep(0.01)
    assert not asking.done()
    asking.cancel()


async def test_a_429_rests_for_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    answer = httpx.Response(429, headers={"Retry-After": "30"}, request=httpx.Request("POST", "http://u/"))
    stand.answers(litellm.RateLimitError("slow down", "openai", "good", response=answer))
    assert await stand.ask() == "by other"
    row = stand.breakers.describe()[0]
    assert (row["state"], row["cause"], row["seconds_left"]) == ("open", "rate_limit", 30.0)


async def test_what_the_caller_made_wrong_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch)
    stand.answers(litellm.BadRequestError("no such parameter", "good", "openai"))
    for _ in range(5):
        with pytest.raises(litellm.BadRequestError):
            await stand.ask()
    stand.answers(litellm.Timeout("too slow", "good", "openai"))
    for _ in range(5):
        assert await stand.ask(callers_timeout=True) == "by other"
    assert stand.breakers.states()["openai/good"] == "closed"
    for _ in range(3):
        assert await stand.ask() == "by other"
    assert stand.breakers.states()["openai/good"] == "open"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("-3", None),
        ("soon", None),
        ("nan", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    answer = httpx.Response(429, headers={} if value is None else {"Retry-After": value})
    assert retry_after_of(litellm.RateLimitError("m", "p", "m", response=answer), lambda: 40.0) == seconds
    assert retry_after_of(ValueError("another")) is None
