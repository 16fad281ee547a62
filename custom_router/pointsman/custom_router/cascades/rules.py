"""Which requests a cascade may be made of, and which are left to one model, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FORWARDED", "unfit"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORWARDED = _words(
    """temperature top_p max_tokens max_completion_tokens stop seed presence_penalty frequency_penalty logit_bias
    reasoning_effort verbosity top_k min_p"""
)
"""The client's parameters that go with the calls that answer."""

NEUTRAL = _words(
    """model messages stream stream_options user metadata timeout request_timeout num_retries max_retries fallbacks
    context_window_fallbacks content_policy_fallbacks disable_fallbacks cache ttl caching guardrails tags n safety_identifier
    prompt_cache_key prompt_cache_retention service_tier store drop_params policies stream_timeout keepalive_seconds session_id
    trace_id success_callback failure_callback router_settings_override _router_weights enable_prompt_caching"""
)
"""Those that mean nothing to them, or that LiteLLM's router takes; LiteLLM itself adds some (settings of key and team)."""
OWN = ("litellm_", "_litellm_")
"""What LiteLLM adds begins so; `_litellm_strip_stream_usage` stands in nearly every streamed request."""

NOTHING: tuple[Any, ...] = (None, False, "", [], {}, "none", "auto")
ROLES = frozenset({"system", "developer", "user", "assistant"})
CHAT = "/chat/completions"


def unfit(route: str | None, body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]] | None) -> str | None:
    """Why the request is left to one model, or None.

    `not_chat`: another endpoint; `not_text`: pictures, audio, files, or a conversation that does not end with the user's text;
    `tools`: tools, or a conversation with their results; `format`: an answer in a given format; `parameter`: several
    answers, or a parameter that nobody knows how to hand on.

    Args:
        route: path of the endpoint.
        body: what the client sent, and what LiteLLM added to it.
        messages: its conversation.
    """
    if not (route or "").endswith(CHAT) or not messages:
        return "not_chat"
    said = {key: value for key, value in body.items() if not (isinstance(value, str | list | dict | None) and value in NOTHING)}
    if any(said.get(key) for key in ("tools", "functions", "tool_choice", "function_call")):
        return "tools"
    if reason := _messages(messages):
        return reason
    form = said.get("response_format")
    if form is not None and not (isinstance(form, Mapping) and form.get("type") == "text"):
        return "format"
    if said.get("n", 1) != 1:
        return "parameter"
    known = FORWARDED | NEUTRAL | {"response_format", "parallel_tool_calls", "logprobs"}
    if any(key not in known and not key.startswith(OWN) for key, value in said.items() if value is not False):
        return "parameter"
    return "parameter" if said.get("logprobs") else None


def _messages(messages: Sequence[Mapping[str, Any]]) -> str | None:
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role in ("tool", "function") or (
            isinstance(message, Mapping) and (message.get("tool_calls") or message.get("function_call"))
        ):
            return "tools"
        if role not in ROLES or not _is_text(message.get("content")):
            return "not_text"
    return None if messages[-1].get("role") == "user" else "not_text"


def _is_text(content: Any) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    if not isinstance(content, Sequence) or not content:
        return False
    return all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    )
