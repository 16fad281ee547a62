"""What was decided, tried and seen: the three leaf records that everything else is made from.

Headers, spans, log lines, metrics, breakers, scores, training data and the console read these and nothing else. They hold no
prompt text unless `privacy.capture_prompts` is on.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Attempt", "Decision", "Dropped", "Encoded", "Outcome", "new_decision_id"]


def new_decision_id() -> str:
    """A random identifier, `dec_` and 32 hexadecimal digits."""
    return f"dec_{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A candidate that was not considered, and why (`tried`, `no_score`, `unhealthy`, ...)."""

    deployment_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """When the request's text became a vector, in microseconds since the decision began, and by which encoder."""

    begin: int
    end: int
    encoder: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One routing decision; the last one of a request is the one its headers tell.

    Attributes:
        decision_id: see `new_decision_id`.
        request_id: LiteLLM's call id.
        trace_id: W3C trace id as 32 hexadecimal digits, or None.
        key_hash: LiteLLM's hash of the virtual key, or None.
        team_id: the key's team, or None.
        user_id: the key's user, or None.
        group: model group (`model_name`) that the client asked for.
        strategy: name of the strategy in service, or None when LiteLLM's own choice held.
        version: version of its bundle.
        variant: `live`, `shadow` or `canary`.
        scores: candidate (deployment id) -> score, higher is better.
        dropped: candidates not considered.
        order: deployment ids, best first.
        model: `litellm_params.model` of the first in `order`, or None.
        policy: how scores became an order, e.g. `argmax` (`custom_router.policy`).
        microseconds: time that the decision took.
        fallback: why the strategy did not decide (`no_bundle`, `deadline`, `error`, `no_text`, ...), or None;
            `unknown_strategy`: it is not the one that key or team ask for, which does not exist.
        prompt: text, only with `privacy.capture_prompts`.
        created_at: Unix time in seconds.
        propensity: probability with which the first of `order` was to be first; None when no strategy decided.
        chosen_by: who chose the strategy: `header`, `key`, `team`, `group`, `default`; `rule` for embeddings, or `session`
            where it stays on its deployment (strategy and policy are `sticky` then).
        scale: what the scores mean, `quality` or `rank`; None without scores.
        detail: JSON values: what the policy reckoned with, the steps of a cascade; or None.
        encoded: when the text was encoded, or None where it was not here.
    """

    decision_id: str
    request_id: str | None
    group: str
    strategy: str | None = None
    version: str | None = None
    variant: str = "live"
    scores: Mapping[str, float] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    order: tuple[str, ...] = ()
    model: str | None = None
    policy: str = "argmax"
    microseconds: int = 0
    fallback: str | None = None
    trace_id: str | None = None
    key_hash: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    prompt: str | None = None
    created_at: float = field(default_factory=time.time)
    propensity: float | None = None
    chosen_by: str | None = None
    scale: str | None = None
    detail: Mapping[str, Any] | None = None
    encoded: Encoded | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one deployment.

    Attributes:
        decision_id: the decision it followed.
        number: 1 for the first try of the request.
        deployment_id: LiteLLM's `model_info.id`.
        model: `litellm_params.model`.
        outcome: `ok`, `error`, or `cancelled` where another deployment was asked as well and answered first.
        error: class name of the error, or None.
        status: HTTP status of the error, or None.
        latency_ms: until the answer (or, streamed, the last chunk), or None when not known.
        created_at: Unix time in seconds.
        retry_after: seconds that the error's Retry-After asks for, or None. Not stored.
        callers_connection: the caller had brought a key or headers for the provider. Not stored.
        callers_timeout: the caller had set a time-out for the request. Not stored.
        first_token_ms: until the first chunk of a streamed answer, or None. Not stored, nor are the next five.
        prompt_tokens, completion_tokens: as LiteLLM counted them, or None where it did not.
        broken: the answer had begun, and broke off.
        flaw: what is wrong with an answer that came whole (`custom_router.flaws`), or None.
        hedge: it was asked besides another that took long, and not after one that failed.
    """

    decision_id: str
    number: int
    deployment_id: str
    model: str | None
    outcome: str
    error: str | None = None
    status: int | None = None
    latency_ms: float | None = None
    created_at: float = field(default_factory=time.time)
    retry_after: float | None = None
    callers_timeout: bool = False
    callers_connection: bool = False
    first_token_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    broken: bool = False
    flaw: str | None = None
    hedge: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the request ended, once per request.

    Attributes:
        decision_id: the last decision of the request.
        status: `success` or `failure`.
        deployment_id: who answered, or None.
        prompt_tokens, completion_tokens: as LiteLLM counted them.
        cost: US dollars.
        latency_ms: whole request.
        feedback: score in [0, 1] given later, or None.
        strong_cost: US dollars that the dearest candidate would have cost for the same tokens, an estimate; None: not known, or
            the answer came from the cache. Not stored.
        created_at: Unix time in seconds.
    """

    decision_id: str
    status: str
    deployment_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    latency_ms: float | None = None
    feedback: float | None = None
    created_at: float = field(default_factory=time.time)
    strong_cost: float | None = None
