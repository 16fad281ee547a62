"""`RoutingRequest`: what a decision may look at, made from what LiteLLM hands to its callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Candidate", "RoutingRequest", "candidate_of", "text_of"]

MAX_TEXT = 32_768
"""Characters of the conversation that a strategy looks at; the end counts, it is what the user asked."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One deployment that may serve the request.

    Attributes:
        deployment_id: LiteLLM's `model_info.id`.
        model: `litellm_params.model`, e.g. `openai/gpt-4.1`.
        names: every name under which a bundle may know it: id, model, model without its provider, base model.
        cost: US dollars for a million input tokens, where the configuration tells; ties go to the cheaper.
    """

    deployment_id: str
    model: str
    names: tuple[str, ...]
    cost: float | None


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """What a decision may look at.

    Attributes:
        group: model group that the client asked for.
        text: what the user asks, possibly empty (embeddings, images).
        candidates: healthy deployments of the group.
        request_id: LiteLLM's call id.
        trace_id: W3C trace id or None.
        key_hash, team_id, user_id: who asks.
        retries: LiteLLM's counters (retries, fallback depth); they rise with every further attempt.
        excluded: deployment ids that LiteLLM itself excludes from this attempt.
    """

    group: str
    text: str
    candidates: tuple[Candidate, ...]
    request_id: str | None
    trace_id: str | None
    key_hash: str | None
    team_id: str | None
    user_id: str | None
    retries: tuple[int, int]
    excluded: frozenset[str]


def candidate_of(deployment: Mapping[str, Any]) -> Candidate:
    """A candidate from LiteLLM's deployment dict."""
    info = deployment.get("model_info") or {}
    params = deployment.get("litellm_params") or {}
    model = str(params.get("model") or "")
    deployment_id = str(info.get("id") or model)
    bare = model.split("/", 1)[-1]
    names = [deployment_id, model, bare, bare.rsplit("/", 1)[-1]]
    if base := info.get("base_model"):
        names.append(str(base))
    price = info.get("input_cost_per_token")
    if price is None:
        price = params.get("input_cost_per_token")
    cost = float(price) * 1e6 if isinstance(price, int | float) else None
    return Candidate(deployment_id, model, tuple(dict.fromkeys(names)), cost)


def text_of(messages: Sequence[Mapping[str, Any]] | None) -> str:
    """The text of the last user message, at most `MAX_TEXT` characters from its end.

    Content is a string or a list of parts (OpenAI's and Anthropic's shapes); parts that are no text are passed over.
    """
    for message in reversed(messages or ()):
        if isinstance(message, Mapping) and message.get("role") == "user":
            text = _content(message.get("content"))
            if text:
                return text[-MAX_TEXT:]
    return ""


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, Sequence):
        return ""
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts.append(part["text"])
    return "\n".join(parts).strip()
