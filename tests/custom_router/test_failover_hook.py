"""Further tries in LiteLLM's own router: the decision's order, and who ends it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import litellm
import pytest
from litellm.proxy import proxy_server

from pointsman.custom_router.failover.stop import StopError
from pointsman.decisions import Attempt
from pointsman.decisions.ticket import CURRENT, Ticket
from support.hooked import bound, listens

SCORES = {"third": 0.1, "first": 0.9, "second": 0.5}


class Stand:
    """A router with three deployments in a strategy's order; those in `dead` answer 500."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dead: set[str], **failover: Any) -> None:
        self.records: list[Any] = []
        self.ticket = Ticket()
        scorer = SimpleNamespace(
            version="1", models=tuple(SCORES), scale="quality", score_timed=lambda *_: (dict(SCORES), 0, 0)
        )
        settings = {"routing": {"default": "s", "deadline_ms": 5000}, "resilience": {"failover": failover}}
        self.hook = bound(settings, self.records.append, strategy=scorer)
        listens(monkeypatch, self.hook)
        self.router = litellm.Router(
            model_list=[
                {
                    "model_name": "auto",
                    "litellm_params": {
                        "model": f"openai/{name}",
                        "api_key": "sk-test",
                        "mock_response": "litellm.InternalServerError" if name in dead else f"by {name}",
                    },
                    "model_info": {"id": name},
                }
                for name in SCORES
            ],
            num_retries=4,
            retry_after=0,
            disable_cooldowns=True,
        )
        monkeypatch.setattr(proxy_server, "llm_router", self.router)

    async def ask(self) -> str:
        token = CURRENT.set(self.ticket)
        try:
            answer = await self.router.acompletion("auto", [{"role": "user", "content": "hello"}])
        finally:
            CURRENT.reset(token)
            self.router.reset()
        return str(answer.choices[0].message.content)

    def tried(self) -> list[str]:
        return [record.deployment_id for record in self.records if isinstance(record, Attempt) and record.outcome == "error"]


@pytest.mark.requirement("R-14.1")
async def test_the_next_one_is_the_next_in_the_decisions_order(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch, {"first", "second"})
    assert await stand.ask() == "by third"
    assert stand.tried() == ["first", "second"]


async def test_the_budget_ends_a_request_before_litellms_retries_do(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(monkeypatch, set(SCORES), budget_floor=1, budget_share=0, backoff=0.01)
    with pytest.raises(StopError) as stopped:
        await stand.ask()
    assert stopped.value.limit == "budget"
    assert "InternalServerError" in type(stopped.value.cause).__name__
    assert sorted(stand.tried()[:3]) == sorted(SCORES)  # each once, free of charge
    assert len(stand.tried()) == 4  # and one more on the budget; LiteLLM would have made five
