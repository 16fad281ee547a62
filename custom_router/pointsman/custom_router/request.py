"""`RoutingRequest`: what a decision may look at, made from what LiteLLM hands to its callbacks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from pointsman.custom_router.override import Wish
from pointsman.custom_router.text import text_of
from pointsman.custom_router.upstream import account_of, upstream_of
from pointsman.decisions import new_decision_id
from pointsman.resilience_settings import SessionSource
from pointsman.strategies.matching import names_of

__all__ = ["Candidate", "Endpoint", "Prices", "RoutingRequest", "Session", "candidate_of", "text_of"]

Endpoint: TypeAlias = Literal["text", "embedding", "other"]
"""What is asked for: an answer in words, vectors, or something that no strategy scores (pictures, audio, ranks, ...)."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a token: read, written, and read from the provider's prompt cache (None: not known)."""

    input: float
    output: float
    cached: float | None = None


class Session(NamedTuple):
    """A session's id, as the client sent it, and where it was found."""

    source: SessionSource
    value: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One deployment that may serve the request.

    Attributes:
        deployment_id: LiteLLM's `model_info.id`.
        model: `litellm_params.model`, e.g. `openai/gpt-4.1`.
        names: every name under which a bundle may know it: id, model, model without its provider, base model.
        cost: US dollars for a million input tokens, where they are known; ties go to the cheaper.
        prices: by the configuration, and by LiteLLM's model map where that is silent; None: not known.
        upstream: who answers behind it (`upstream.upstream_of`); breakers and scores are keyed on it.
        account: whose it is there (`upstream.account_of`).
    """

    deployment_id: str
    model: str
    names: tuple[str, ...]
    cost: float | None
    prices: Prices | None = None
    upstream: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """What a decision may look at.

    Attributes:
        group: model group that the client asked for.
        text: of the last user message, possibly empty; what a strategy reads that does not say otherwise.
        candidates: healthy deployments of the group.
        request_id: LiteLLM's call id.
        trace_id: W3C trace id or None.
        key_hash, team_id, user_id: who asks.
        retries: LiteLLM's counters (retries, fallback depth); they rise with every further attempt.
        excluded: deployment ids that LiteLLM itself excludes from this attempt.
        endpoint: see `Endpoint`.
        wish: what the request, its key and its team ask of routing.
        messages: OpenAI's or Anthropic's shape, as the client sent them; not checked.
        system: system prompt that stands outside of them.
        given: what is to be embedded.
        asker: whom personal strategies know: the request's `user`, else the key's.
        session: the client's id of the conversation.
        sessions: everything by which it may be told which session this is of.
        max_tokens: the answer's limit, as the client set it.
        continues: id of the deployment that keeps the response which this request goes on from.
        elsewhere: asks whether the request goes on to others when this group refuses it; None: it does not.
        decision_id: of the decision that is to be made, under which a probe is leased before there is one.
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
    endpoint: Endpoint = "text"
    wish: Wish = field(default_factory=Wish)
    messages: Sequence[Mapping[str, Any]] = ()
    system: object = None
    given: object = None
    asker: str | None = None
    session: str | None = None
    sessions: tuple[Session, ...] = ()
    max_tokens: int | None = None
    continues: str | None = None
    elsewhere: Callable[[], Awaitable[bool]] | None = None
    decision_id: str = field(default_factory=new_decision_id)


def candidate_of(
    deployment: Mapping[str, Any], map_prices: Callable[[str], Prices | None] = lambda _: None, secret: bytes = b""
) -> Candidate:
    """A candidate from LiteLLM's deployment dict; `map_prices` tells what it does not; `secret` is `account_of`'s."""
    info = deployment.get("model_info") or {}
    params = deployment.get("litellm_params") or {}
    model = str(params.get("model") or "")
    deployment_id = str(info.get("id") or model)
    base = str(info["base_model"]) if info.get("base_model") else None
    given = [_price(info, params, f"{kind}_cost_per_token") for kind in ("input", "output")]
    cached = _price(info, params, "cache_read_input_token_cost")
    known = map_prices(base or model) if None in given or cached is None else None
    prices = None
    if given[0] is not None or known is not None:
        prices = Prices(
            given[0] if given[0] is not None else known.input if known else 0.0,
            given[1] if given[1] is not None else known.output if known else 0.0,
            # The map's discount is that of the map's price; with a price of one's own it says nothing.
            cached if cached is not None else known.cached if known and given[0] is None else None,
        )
    cost = prices.input * 1e6 if prices is not None else None
    whose = account_of(params, secret)
    return Candidate(deployment_id, model, names_of(deployment_id, model, base), cost, prices, upstream_of(params), whose)


def _price(info: Mapping[str, Any], params: Mapping[str, Any], key: str) -> float | None:
    for place in (info, params):
        value = place.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return float(value)
    return None
