"""LiteLLM's provider `pointsman-replay`: gives an answer that is there already, as an answer or as a stream, at no cost.

A cascade's, or the one of a hedged request that came first.

The deployment is in no configuration; the hook hands it out for one attempt. The answer lies in the request's ticket, so that a
client that names the provider gets nothing from it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import litellm
from litellm import CustomLLM
from litellm.types.utils import GenericStreamingChunk, ModelResponse

from pointsman.custom_router.cascades.types import Said
from pointsman.custom_router.hedging.calls import Answer, given_again
from pointsman.decisions.ticket import current_ticket

__all__ = ["PROVIDER", "ReplayLLM", "deployment", "deployment_id", "handler"]

PROVIDER = "pointsman-replay"

FREE = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", "cache_creation_input_token_cost")
"""All of what LiteLLM would look for a price of."""


def deployment_id(group: str) -> str:
    """`model_info.id` of the deployment that gives answers again in a group."""
    return f"{PROVIDER}-{group}"


def deployment(group: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """The deployment to hand to LiteLLM's router; with the tags and the order of the one whose answer it is, which LiteLLM's
    later filters look at, and with no price."""
    params = like.get("litellm_params") or {}
    kept = {key: params[key] for key in ("tags", "tag_regex", "order") if params.get(key) is not None}
    free = dict.fromkeys(FREE, 0.0)
    return {
        "model_name": group,
        # It is asked nothing, so parameters that it does not know are no reason to refuse.
        "litellm_params": {"model": f"{PROVIDER}/{group}", "drop_params": True, **free, **kept},
        "model_info": {"id": deployment_id(group), "mode": "chat", **free},
    }


class ReplayLLM(CustomLLM):  # type: ignore[misc] # LiteLLM is not type-checked here
    """The handler; see the module."""

    async def acompletion(self, *_: Any, **call: Any) -> ModelResponse:
        """The answer."""
        response: ModelResponse = call["model_response"]
        ticket = current_ticket()
        if ticket is not None and isinstance(answer := getattr(ticket.hedge, "answer", None), Answer):
            return given_again(answer, response)
        said, model = _pending(call)
        response.id = f"chatcmpl-{uuid.uuid4().hex}"  # LiteLLM's spend rows are keyed on it
        response.model = model
        response.choices[0].message.content = said.text
        response.choices[0].finish_reason = said.finish_reason
        response.usage = litellm.Usage(**_usage(said))
        return response

    def astreaming(self, *_: Any, **call: Any) -> AsyncIterator[GenericStreamingChunk]:
        """The answer in chunks of a word each; the last one carries the usage. Looked up now: the stream is read elsewhere."""
        said, _model = _pending(call)
        return _chunks(said)


def _pending(call: Mapping[str, Any]) -> tuple[Said, str]:
    ticket = current_ticket()
    pending = getattr(ticket.cascade, "said", None) if ticket is not None else None
    if not isinstance(pending, Said):
        raise litellm.BadRequestError("there is no answer to give again", model=str(call.get("model")), llm_provider=PROVIDER)
    return pending, pending.level.model


def _usage(said: Said) -> dict[str, int]:
    total = said.prompt_tokens + said.completion_tokens
    return {"prompt_tokens": said.prompt_tokens, "completion_tokens": said.completion_tokens, "total_tokens": total}


async def _chunks(said: Said) -> AsyncIterator[GenericStreamingChunk]:
    words = said.text.split(" ")
    for index, word in enumerate(words):
        yield _chunk(word if index == 0 else f" {word}")
    yield _chunk("", said.finish_reason, _usage(said))


def _chunk(text: str, reason: str = "", usage: dict[str, int] | None = None) -> GenericStreamingChunk:
    return {
        "text": text,
        "tool_use": None,
        "is_finished": bool(reason),
        "finish_reason": reason,
        "usage": usage,
        "index": 0,
    }


handler = ReplayLLM()
"""The instance that `litellm_settings.custom_provider_map` names."""
