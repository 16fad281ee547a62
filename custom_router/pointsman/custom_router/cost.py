"""What a request would cost on each candidate: prices, expected tokens, and the prompt cache that a change would lose."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pointsman.custom_router.request import Candidate, Prices

__all__ = ["MIN_CACHED_TOKENS", "AnswerLengths", "Expected", "always_strong", "expected_costs", "switching_costs"]

MIN_CACHED_TOKENS = 1024
"""Shorter prompts are not cached by the providers (OpenAI and most of Anthropic's models: 1,024 tokens)."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Tokens that a request is expected to take. `completion`: deployment id -> tokens of the answer."""

    prompt: int
    completion: Mapping[str, int]


def expected_costs(candidates: Sequence[Candidate], tokens: Expected) -> dict[str, float]:
    """Deployment id -> US dollars. One without a price counts as dear as the dearest known; empty when none has one."""
    known = {
        one.deployment_id: one.prices.input * tokens.prompt + one.prices.output * tokens.completion[one.deployment_id]
        for one in candidates
        if one.prices is not None
    }
    if not known:
        return {}
    dearest = max(known.values())
    return {one.deployment_id: known.get(one.deployment_id, dearest) for one in candidates}


def switching_costs(candidates: Sequence[Candidate], served_by: str | None, prefix_tokens: int) -> dict[str, float]:
    """Deployment id -> US dollars that are lost by leaving the deployment that served the conversation so far.

    Its provider has the prefix in its cache and reads it at a discount; that discount is what a change loses. Nothing for
    deployments whose price of cached input is not known, and for prefixes that are too short to be cached.
    """
    stays = next((one for one in candidates if one.deployment_id == served_by), None)
    if stays is None or stays.prices is None or stays.prices.cached is None or prefix_tokens < MIN_CACHED_TOKENS:
        return {}
    lost = max(0.0, stays.prices.input - stays.prices.cached) * prefix_tokens
    return {one.deployment_id: lost for one in candidates if one is not stays and lost > 0}


def always_strong(prices: Mapping[str, Prices], answered: str, prompt: int, completion: int, paid: float) -> float | None:
    """US dollars that the dearest candidate would have cost for the tokens that were used; an estimate.

    What was paid is scaled by the ratio of list prices, so that a discount (cached input) counts on both sides, and the
    dearest's own answers save exactly nothing. Another model would have written another number of tokens, which nobody knows.

    Args:
        prices: deployment id -> prices, of the candidates whose prices are known.
        answered: who answered.
        prompt, completion: tokens.
        paid: US dollars.

    Returns:
        None where the prices do not tell: those of `answered` are not known, or it is not paid for by the token.
    """
    listed = {name: one.input * prompt + one.output * completion for name, one in prices.items()}
    own = listed.get(answered)
    if own is None or prompt + completion <= 0:
        return None
    dearest = max(listed.values())
    strong = paid * (dearest / own) if own > 0 else dearest + paid
    return strong if math.isfinite(strong) else None


class AnswerLengths:
    """A running mean of each deployment's answers, in tokens; of one worker, in memory, bounded."""

    WEIGHT = 0.05
    """Of the newest answer: about the last twenty count."""
    BOUND = 4096
    """Deployments; the one that was seen longest ago is forgotten."""

    def __init__(self) -> None:
        self._means: OrderedDict[str, float] = OrderedDict()

    def saw(self, deployment_id: str, tokens: int, default: int) -> None:
        """An answer of `tokens`; the mean begins at `default`."""
        if tokens <= 0:
            return
        before = self._means.pop(deployment_id, float(default))
        self._means[deployment_id] = before + self.WEIGHT * (tokens - before)
        if len(self._means) > self.BOUND:
            self._means.popitem(last=False)

    def expect(self, candidates: Sequence[Candidate], default: int, limit: int | None) -> dict[str, int]:
        """Deployment id -> tokens expected, at most the request's own `limit`."""
        means = {one.deployment_id: self._means.get(one.deployment_id, float(default)) for one in candidates}
        return {name: min(round(mean), limit) if limit is not None else round(mean) for name, mean in means.items()}
