"""One call of LiteLLM's router for a request that may be hedged, and what it answered."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import litellm
from litellm.types.utils import ModelResponse

from pointsman.custom_router.cascades.calls import HANDED_ON, aimed, handed_on, sinks_of
from pointsman.custom_router.cascades.rules import CHAT, FORWARDED, NEUTRAL, OWN
from pointsman.custom_router.failover.trail import Asking, trail_of
from pointsman.decisions.ticket import Ticket

__all__ = ["Answer", "Question", "asked", "cost_of", "fits", "given_again", "with_usage"]

PASSED = (
    FORWARDED
    | {"tools", "tool_choice", "functions", "function_call", "parallel_tool_calls", "response_format", "n", "logprobs"}
    | {"top_logprobs", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier", "store"}
    | {"modalities", "prediction", "drop_params"}
)
"""The client's parameters that go with both calls."""
COPIED = ("choices", "usage", "model", "created", "system_fingerprint", "service_tier")


@dataclass(frozen=True, slots=True)
class Answer:
    """What won.

    Attributes:
        response: LiteLLM's.
        deployment_id: whose it is.
        milliseconds: from asking to the answer.
        cost: US dollars, which LiteLLM has put on the key's spend already.
        hedged: two were asked.
    """

    response: ModelResponse
    deployment_id: str
    milliseconds: float
    cost: float
    hedged: bool

    @property
    def tokens(self) -> tuple[int, int]:
        """Of the question and of the answer."""
        usage = getattr(self.response, "usage", None)
        return int(getattr(usage, "prompt_tokens", 0) or 0), int(getattr(usage, "completion_tokens", 0) or 0)


def fits(kwargs: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether a request is a chat, not streamed, with parameters that all can be handed on."""
    route = metadata.get("user_api_key_request_route")
    sent = kwargs.get("proxy_server_request")
    body = sent.get("body") if isinstance(sent, Mapping) else None
    if not str(route or "").endswith(CHAT) or not isinstance(body, Mapping) or body.get("stream") or kwargs.get("stream"):
        return False
    known = PASSED | NEUTRAL
    return all(name in known or name.startswith(OWN) or value in (None, False) for name, value in body.items())


@dataclass(frozen=True, slots=True)
class Question:
    """What both calls ask.

    Attributes:
        group: model group.
        messages: the conversation.
        kwargs, metadata: LiteLLM's, of the request.
        asker: the request's ticket.
    """

    group: str
    messages: Sequence[Mapping[str, Any]]
    kwargs: Mapping[str, Any]
    metadata: Mapping[str, Any]
    asker: Ticket

    async def ask(self, deployments: tuple[str, ...], ticket: Ticket) -> ModelResponse:
        """One of these deployments' answer; raises what LiteLLM raises.

        Args:
            deployments: ids.
            ticket: the call's own, by which `asked` tells whom LiteLLM has chosen.
        """
        from litellm.proxy import proxy_server

        router = proxy_server.llm_router
        assert router is not None  # noqa: S101 - narrows the type; it has called us
        kept = {name: self.kwargs[name] for name in PASSED | HANDED_ON if self.kwargs.get(name) is not None}
        timeout = self.kwargs.get("timeout")  # the deadline is kept by the hook, as for any call
        call = router.acompletion(
            model=self.group,
            messages=[dict(message) for message in self.messages],
            metadata=handed_on(self.metadata),
            num_retries=0,  # the request itself is tried again
            disable_fallbacks=True,
            cache={"no-cache": True, "no-store": True},  # the cache has been asked, and keeps what the request is answered
            **({"timeout": timeout} if self.asker.callers_timeout and timeout is not None else {}),
            **{name: list(value) if isinstance(value, list) else value for name, value in kept.items()},
            **sinks_of(self.asker.caller),
        )
        task = asyncio.create_task(call, context=aimed(deployments, ticket), name="pointsman-hedged-call")
        try:
            response: ModelResponse = await task
        finally:
            task.cancel()
        return response


def asked(ticket: Ticket) -> str | None:
    """Whom the call of this ticket asks, once LiteLLM has chosen."""
    asking = trail_of(ticket).asking
    return asking.deployment_id if isinstance(asking, Asking) else None


def cost_of(response: ModelResponse) -> float:
    """What LiteLLM reckons that an answer cost."""
    cost = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
    return float(cost) if isinstance(cost, int | float) else 0.0


def given_again(answer: Answer, response: ModelResponse) -> ModelResponse:
    """The answer as that of the replaying provider; with an id of its own, for LiteLLM's spend rows are keyed on it.

    Without the tokens, which LiteLLM has counted already, and which `with_usage` gives back; but where there is a cache with
    them, for it keeps what is given here.
    """
    for name in COPIED:
        if (value := getattr(answer.response, name, None)) is not None:
            setattr(response, name, value)
    response.id = f"chatcmpl-{uuid.uuid4().hex}"
    if litellm.cache is None:
        response.usage = litellm.Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    return response


def with_usage(hedge: object, response: Any) -> Any:
    """What the client is told: with the tokens of the answer that was given again. A copy, for LiteLLM is still counting."""
    answer, usage = getattr(hedge, "answer", None), getattr(response, "usage", None)
    if not isinstance(answer, Answer) or not isinstance(response, ModelResponse) or getattr(usage, "total_tokens", None) != 0:
        return response
    told = response.model_copy()
    told.usage = getattr(answer.response, "usage", usage)
    return told
