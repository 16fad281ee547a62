"""A group that rests as a whole, in LiteLLM's own router: on to what it falls back to, and no dead attempt on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import litellm
import pytest
from fastapi import HTTPException
from litellm.proxy import proxy_server

from pointsman.custom_router.elsewhere import RestingError
from pointsman.decisions import Attempt, Decision
from pointsman.decisions.ticket import CURRENT, Ticket
from support.hooked import bound, listens

MESSAGES = [{"role": "user", "content": "hello"}]
DEAD = "litellm.InternalServerError"


class Stand:
    """A router and the hook; `models` is (group, id, answer, further parameters)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *models: tuple[str, str, str, dict[str, Any]], **router: Any) -> None:
        self.records: list[Any] = []
        self.hook, self.now = bound({}, self.records.append), 100.0
        assert self.hook.breakers is not None
        self.breakers = self.hook.breakers
        monkeypatch.setattr(self.breakers, "_clock", lambda: self.now)
        listens(monkeypatch, self.hook)
        self.router = litellm.Router(
            model_list=[
                {
                    "model_name": group,
                    "litellm_params": {"model": f"openai/{name}", "api_key": "sk-test", "mock_response": answer, **more},
                    "model_info": {"id": name},
                }
                for group, name, answer, more in models
            ],
            **{"num_retries": 2, "retry_after": 0, "disable_cooldowns": True, **router},
        )
        monkeypatch.setattr(self.router, "_time_to_sleep_before_retry", lambda **_: 0)
        monkeypatch.setattr(proxy_server, "llm_router", self.router)
        self.ticket = Ticket()

    def rest(self, *names: str) -> None:
        for name in names:
            for _ in range(3):
                self.breakers._upstreams[name] = f"openai/{name}"
                self.breakers.record(name, "bad")

    async def ask(self, group: str = "auto", **more: Any) -> str:
        self.ticket = Ticket(fallbacks=False if more.get("disable_fallbacks") else more.get("fallbacks"))
        token = CURRENT.set(self.ticket)
        try:
            answer = await self.router.acompletion(group, MESSAGES, **more)
        finally:
            CURRENT.reset(token)
        return str(answer.choices[0].message.content)

    def dead(self) -> int:
        return sum(isinstance(item, Attempt) and item.outcome == "error" for item in self.records)

    def decisions(self) -> list[Decision]:
        return [item for item in self.records if isinstance(item, Decision)]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stand]:
    return lambda *models, **router: Stand(monkeypatch, *models, **router)


ONE = (("auto", "a", DEAD, {}), ("backup", "b", "by b", {}))
TWO = (*ONE, ("auto", "c", DEAD, {}))


@pytest.mark.requirement("F-3")
@pytest.mark.parametrize("router", [{"fallbacks": [{"auto": ["backup"]}]}, {"default_fallbacks": ["backup"]}])
@pytest.mark.parametrize(("models", "dead"), [(ONE, 3), (TWO, 6)])
async def test_a_dead_group_costs_a_few_attempts_and_not_some_for_each_request(
    make: Any, models: Any, dead: int, router: Any
) -> None:
    stand = make(*models, **router)
    for _ in range(30):
        assert await stand.ask() == "by b"
    assert stand.dead() <= dead  # LiteLLM alone: three for each request
    before = stand.dead()
    stand.now += 5  # one probe finds out that it is still dead, and the same request goes on
    assert await stand.ask() == "by b"
    assert stand.dead() - before <= len(models) - 1
    refusal = next(item for item in reversed(stand.decisions()) if item.fallback == "resting")
    assert {item.reason for item in refusal.dropped} <= {"breaker_open", "breaker_probing", "tried"}
    assert refusal.order == ()


async def test_where_there_is_nowhere_else_it_is_tried_once_for_each_request(make: Any) -> None:
    stand = make(("auto", "a", DEAD, {}))
    with pytest.raises(litellm.InternalServerError):
        await stand.ask()
    assert stand.dead() == 3
    for number in range(1, 4):
        with pytest.raises(RestingError) as caught:
            await stand.ask()
        assert stand.dead() == 3 + number
    answer = caught.value.answer()
    assert isinstance(answer, HTTPException)
    assert answer.status_code == 503
    assert answer.headers is not None
    assert answer.headers["retry-after"] in ("4", "5")  # jitter
    assert "E4702" in str(answer.detail)
    assert "InternalServerError" in str(answer.detail)


async def test_what_ends_the_rest_of_a_group_without_fallback_serves_at_once(make: Any) -> None:
    stand = make(("auto", "a", "by a", {}))
    stand.rest("a")
    assert await stand.ask() == "by a"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "by b"),
        ({"disable_fallbacks": True}, "by a"),
        ({"fallbacks": ["other"]}, "by o"),
        ({"fallbacks": [{"model": "other"}]}, "by o"),
        ({"fallbacks": [{"auto": ["other"]}]}, "by o"),
        ({"fallbacks": [{"another": ["other"]}]}, "by a"),
        ({"fallbacks": []}, "by a"),
        ({"fallbacks": ["auto"]}, "by a"),
        ({"fallbacks": ["no-such-group"]}, "by a"),
        ({"num_retries": 5}, "by b"),
    ],
)
async def test_where_it_goes_is_what_litellm_would_do(make: Any, asked: Any, expected: str) -> None:
    stand = make(
        ("auto", "a", "by a", {}),
        ("backup", "b", "by b", {}),
        ("other", "o", "by o", {}),
        fallbacks=[{"auto": ["backup"]}],
    )
    stand.rest("a")
    assert await stand.ask(**asked) == expected


async def test_those_who_may_not_fall_back_are_served_where_they_asked(make: Any) -> None:
    async def denied(**_: Any) -> bool:
        return False

    for check in ("fallback_access_check", "fallback_budget_check"):
        stand = make(
            ("auto", "a", "by a", {}), ("backup", "b", "by b", {}), fallbacks=[{"auto": ["backup"]}], **{check: denied}
        )
        stand.rest("a")
        assert await stand.ask() == "by a"


async def test_deployments_of_a_higher_order_are_elsewhere(make: Any) -> None:
    stand = make(("auto", "a", DEAD, {"order": 1}), ("auto", "b", "by b", {"order": 2}))
    stand.rest("a")
    assert await stand.ask() == "by b"
    assert stand.dead() == 0


async def test_groups_that_fall_back_to_each_other_are_tried_when_both_rest(make: Any) -> None:
    stand = make(("auto", "a", "by a", {}), ("backup", "b", "by b", {}), fallbacks=[{"auto": ["backup"]}, {"backup": ["auto"]}])
    stand.rest("a", "b")
    assert await stand.ask() == "by b"
    assert await stand.ask("backup") == "by a"


async def test_what_holds_a_previous_response_is_asked_though_it_rests(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = make(("auto", "a", "by a", {}), ("backup", "b", "by b", {}), fallbacks=[{"auto": ["backup"]}])
    stand.rest("a")
    monkeypatch.setattr("pointsman.custom_router.hook.continued_from", lambda _: "a")
    assert await stand.ask() == "by a"
