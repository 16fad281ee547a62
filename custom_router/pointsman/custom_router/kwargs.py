"""What the keyword arguments of LiteLLM's calls say. Knows their names, and nothing else of LiteLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointsman.custom_router.request import Endpoint

__all__ = [
    "DECISION_KEY",
    "EMBEDDING_CALLS",
    "TELLS_USAGE",
    "TEXT_CALLS",
    "endpoint_of",
    "limit_of",
    "metadata_of",
    "number_of",
    "session_of",
]

DECISION_KEY = "pointsman_decision_id"
"""Where the decision's id travels in LiteLLM's request metadata, so that log events (other tasks) find it."""

TEXT_CALLS = frozenset(
    prefix + name
    for prefix in ("", "a")
    for name in (
        "completion",
        "text_completion",
        "anthropic_messages",
        "responses",
        "generate_content",
        "generate_content_stream",
    )
)
"""LiteLLM's call types that are answered in words; a strategy scores their text."""
EMBEDDING_CALLS = frozenset({"embedding", "aembedding", "embeddings"})

TELLS_USAGE = frozenset({"openai", "text-completion-openai", "hosted_vllm", "azure", "azure_text"})
"""Providers whose text completions take `stream_options.include_usage`; another one might refuse the parameter."""


def metadata_of(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """LiteLLM's metadata of a request: under `litellm_metadata` on some endpoints, under `metadata` on others."""
    for name in ("litellm_metadata", "metadata"):
        found = (kwargs or {}).get(name)
        if isinstance(found, dict) and ("user_api_key" in found or "user_api_key_hash" in found or DECISION_KEY in found):
            return found
    found = (kwargs or {}).get("metadata")
    return found if isinstance(found, dict) else {}


def number_of(value: object) -> int:
    """A count, 0 where there is none."""
    return value if isinstance(value, int) else 0


def endpoint_of(call_type: str) -> Endpoint | None:
    """What a call type asks for; None for calls that happen inside of another request (MCP tools)."""
    if "mcp" in call_type:
        return None
    return "text" if call_type in TEXT_CALLS else "embedding" if call_type in EMBEDDING_CALLS else "other"


def limit_of(kwargs: Mapping[str, Any]) -> int | None:
    """The answer's limit in tokens, under each endpoint's name for it."""
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = kwargs.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def session_of(kwargs: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    """The client's id of the conversation, as LiteLLM knows it (its headers, `litellm_session_id`, metadata)."""
    found = kwargs.get("litellm_session_id") or metadata.get("session_id")
    return found if isinstance(found, str) and found else None
