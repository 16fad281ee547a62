"""Asks an embedding model of the gateway for a decision: the request behind the encoder `remote`.

Its cost and its trace are the caller's whose request is decided: LiteLLM is told the same key, team and user. The caller's
budget was checked when the request came in and is not checked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.strategies.base import Query, UnavailableError

__all__ = ["ASKING", "embed"]

ASKING: ContextVar[Mapping[str, Any]] = ContextVar("pointsman_asking", default={})  # noqa: B039 - never changed in place
"""LiteLLM's metadata of the request that is decided."""

_HANDED_ON = ("litellm_trace_id", "tags", "requester_ip_address")


async def embed(model: str, text: str, query: Query) -> list[float]:
    """The vector of a text, by the group `model` of this gateway. See `pointsman.strategies.embedding.Embed`.

    Raises:
        UnavailableError: `remote_only`, there is no router. Anything else that LiteLLM raises.
    """
    from litellm.proxy import proxy_server

    router = proxy_server.llm_router
    if router is None:
        raise UnavailableError("remote_only", "LiteLLM's router is not there yet")
    # What happens to this call says nothing about the request's own attempts; and no strategy reads an embedding's text, so
    # that the encoder is not asked in order to ask the encoder.
    CURRENT.set(Ticket(endpoint="embedding"))
    response = await router.aembedding(
        model=model, input=[text], metadata=_metadata(ASKING.get()), num_retries=0, disable_fallbacks=True
    )
    vector: list[float] = response.data[0]["embedding"]
    return vector


def _metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Who pays. Not the budget's reservation: the call that answers settles that."""
    chosen = {
        key: value
        for key, value in metadata.items()
        if key in _HANDED_ON or (key.startswith("user_api_key") and key != "user_api_key_budget_reservation")
    }
    auth = chosen.get("user_api_key_auth")
    if auth is not None and hasattr(auth, "model_copy"):
        chosen["user_api_key_auth"] = auth.model_copy(update={"budget_reservation": None})
    return chosen
