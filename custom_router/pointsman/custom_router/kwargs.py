"""What the keyword arguments of LiteLLM's calls say. Knows their names, and nothing else of LiteLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pointsman.custom_router.request import Endpoint, Session
from pointsman.resilience_settings import SessionSource

__all__ = [
    "DECISION_KEY",
    "EMBEDDING_CALLS",
    "GENERATED_KEY",
    "SESSION_HEADER",
    "TELLS_USAGE",
    "TEXT_CALLS",
    "callers_connection",
    "endpoint_of",
    "limit_of",
    "metadata_of",
    "number_of",
    "session_of",
    "sessions_of",
]

DECISION_KEY = "pointsman_decision_id"
"""Where the decision's id travels in LiteLLM's request metadata, so that log events (other tasks) find it."""

SESSION_HEADER = "x-pointsman-session"
MCP_SESSION_HEADER = "mcp-session-id"
A2A_CONTEXT = ("contextId", "context_id")
"""Names of A2A's context in a request's metadata."""
GENERATED_KEY = "litellm_session_id_generated"
"""In LiteLLM's metadata: the session's id is of its own making (`general_settings.missing_session_id: generate`)."""

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

CONNECTION = ("api_", "aws_", "azure_", "vertex_", "watsonx_", "organization", "region_name", "tenant_id", "client_id")
"""Beginnings of what a request's body may say of the connection to the provider, by LiteLLM's names."""
HARMLESS = ("x-", "traceparent", "tracestate", "baggage", "anthropic-", "openai-beta", "user-agent")
"""Beginnings of headers that make no provider refuse anybody."""
SECRET_HEADERS = frozenset({"x-api-key", "x-goog-api-key", "x-amz-security-token", "x-goog-user-project"})
ENVELOPE = frozenset({"custom_llm_provider", "extra_headers"})

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


def callers_connection(data: Mapping[str, Any]) -> bool:
    """Whether a request brings something of its own for the connection to the provider: a key, a region, headers.

    That it is refused then, or fails, says nothing of the upstream; any tenant could take it from all others so.
    LiteLLM itself adds headers that trace, and passes on those that begin with `x-`.
    """
    if any(name.startswith(CONNECTION) and value is not None for name, value in data.items()):
        return True
    own = [data.get("headers"), data.get("extra_headers"), data.get("provider_specific_header")]
    for headers in own:
        inner = headers.get("extra_headers") if isinstance(headers, Mapping) else None
        for place in (headers, inner):
            names = {str(name).lower() for name in place} if isinstance(place, Mapping) else set()
            if any(name in SECRET_HEADERS or not name.startswith(HARMLESS) for name in names - ENVELOPE):
                return True
    return False


def limit_of(kwargs: Mapping[str, Any]) -> int | None:
    """The answer's limit in tokens, under each endpoint's name for it."""
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = kwargs.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def sessions_of(kwargs: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[Session, ...]:
    """Everything by which a client may tell its sessions, the plainest word first.

    What LiteLLM knows (its headers, those of well-known clients, `metadata.session_id`, Anthropic's `metadata.user_id`,
    baggage) it has put into the arguments before. An id that it made up, of each request another, is none.

    Args:
        kwargs: of the call.
        headers: of the request, names in lower case.
    """
    places = [place for name in ("litellm_metadata", "metadata") if isinstance(place := kwargs.get(name), Mapping)]
    generated = any(place.get(GENERATED_KEY) for place in places)
    conversation = kwargs.get("conversation")
    if isinstance(conversation, Mapping):
        conversation = conversation.get("id")
    found: list[tuple[SessionSource, object]] = [("header", headers.get(SESSION_HEADER))]
    if not generated:
        found.append(("litellm", kwargs.get("litellm_session_id")))
        found += [("litellm", place.get("session_id")) for place in places]
    found.append(("conversation", conversation))
    found.append(("context", headers.get(MCP_SESSION_HEADER)))
    found += [("context", place.get(name)) for place in places for name in A2A_CONTEXT]
    found.append(("user", kwargs.get("user")))
    return tuple(Session(source, value) for source, value in found if isinstance(value, str) and value)


def session_of(sessions: Sequence[Session]) -> str | None:
    """The id of the conversation; a `user` has many of them."""
    return next((session.value for session in sessions if session.source != "user"), None)
