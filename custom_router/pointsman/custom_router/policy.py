"""From scores to an order of preference: cost weight, calibrated target, exploration. Pure functions.

Names of policies, as decisions tell them: `argmax`, `cost`, `target`; after a colon why what is configured could not be
applied (`argmax:rank`, `:no_prices`, `:no_calibration`, `:no_pair`); `+explore` where chance decided.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pointsman.custom_router.pick import POLICY, order
from pointsman.custom_router.request import Candidate
from pointsman.policy_settings import ExploreSettings, TargetSettings
from pointsman.strategies.base import Scale
from pointsman.strategies.manifest import MARGIN_DIGITS, Calibration

__all__ = [
    "Chance",
    "Costs",
    "Ranking",
    "explore",
    "goes_to_strong",
    "propensities",
    "rank_by_cost",
    "rank_by_target",
    "step_of",
]


class Chance(Protocol):
    """`random.Random`, as far as it is used."""

    def random(self) -> float:
        """A number in [0, 1)."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a request would cost: deployment id -> US dollars, and what a change of deployment loses on top of it."""

    expected: Mapping[str, float]
    switching: Mapping[str, float] = field(default_factory=dict)

    def of(self, deployment_id: str) -> float:
        """Both together."""
        return self.expected.get(deployment_id, 0.0) + self.switching.get(deployment_id, 0.0)


@dataclass(frozen=True, slots=True)
class Ranking:
    """An order and how it came about.

    Attributes:
        order: deployment ids, best first.
        policy: see the module.
        propensity: probability with which this first one was to be the first.
        detail: JSON values for the decision's record.
    """

    order: tuple[str, ...]
    policy: str = POLICY
    propensity: float = 1.0
    detail: Mapping[str, Any] = field(default_factory=dict)


def rank_by_cost(
    candidates: Sequence[Candidate],
    scores: Mapping[str, float],
    scale: Scale,
    weight: float,
    costs: Costs,
    reference: float | None = None,
    session: bytes | None = None,
) -> Ranking:
    """argmax(score - weight * expected cost / reference cost); without a weight, argmax(score).

    Args:
        candidates: who is left.
        scores: deployment id -> score; those without one come last.
        scale: what the scores mean; ranks cannot be weighed against money.
        weight: score given up to save the reference cost.
        costs: may name candidates that are not left.
        reference: US dollars; None: the dearest of `costs.expected`.
        session: key of the request's session, which tells equals apart.
    """
    if weight == 0:
        return Ranking(order(candidates, scores, session))
    if scale != "quality":
        return Ranking(order(candidates, scores, session), f"{POLICY}:rank")
    if not costs.expected:
        return Ranking(order(candidates, scores, session), f"{POLICY}:no_prices")
    unit = reference or max(costs.expected.values()) or 1.0  # all of them free: nothing to weigh
    worth = {name: score - weight * costs.of(name) / unit for name, score in scores.items()}
    detail: dict[str, Any] = {"cost_weight": weight, "reference_cost": unit, "costs": dict(costs.expected)}
    if costs.switching:
        detail["switching"] = dict(costs.switching)
    return Ranking(order(candidates, worth, session), "cost", detail=detail)


def step_of(target: TargetSettings, table: Calibration) -> int | None:
    """The row of the table that meets the target, or None where it has no such column.

    `quality`: the smallest share of the strong model that keeps it; `cost`: the largest that is paid by it.
    """
    last = len(table.margins) - 1
    if target.strong_share is not None:
        return round(target.strong_share * last)
    if target.quality is not None:
        wanted = target.quality * table.quality[last]
        return next((step for step, quality in enumerate(table.quality) if quality >= wanted), last)
    if table.cost is None or target.cost is None:
        return None
    return max((step for step, cost in enumerate(table.cost) if cost <= target.cost), default=0)


def goes_to_strong(table: Calibration, step: int, margin: float, text: str) -> bool:
    """Whether a request goes to the strong model at a row of the table.

    At the threshold itself a share of the texts does, told by a digest of the text: the same text, the same model.
    """
    rounded = round(margin, MARGIN_DIGITS)
    if rounded != table.margins[step]:
        return rounded > table.margins[step]
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < table.ties[step]


def rank_by_target(
    candidates: Sequence[Candidate],
    scores: Mapping[str, float],
    names: Mapping[str, str],
    target: TargetSettings,
    table: Calibration | None,
    text: str,
    session: bytes | None = None,
) -> Ranking:
    """The weak or the strong model first, by a calibrated threshold on their margin; then the others by score.

    Args:
        candidates, scores, session: as in `rank_by_cost`.
        names: deployment id -> the bundle's name of its model.
        target: what is wanted.
        table: the bundle's, or None.
        text: of the request.
    """
    by_score = order(candidates, scores, session)
    if table is None:
        return Ranking(by_score, f"{POLICY}:no_calibration")
    step = step_of(target, table)
    if step is None:
        return Ranking(by_score, f"{POLICY}:no_prices")
    # The first of each by score, cost and id, where several deployments serve the same model.
    weak = next((name for name in by_score if names.get(name) == table.weak and name in scores), None)
    strong = next((name for name in by_score if names.get(name) == table.strong and name in scores), None)
    if weak is None or strong is None:  # one of them failed or rests
        return Ranking(by_score, f"{POLICY}:no_pair")
    margin = scores[strong] - scores[weak]
    first = strong if goes_to_strong(table, step, margin, text) else weak
    detail = {"strong_share": step / (len(table.margins) - 1), "threshold": table.margins[step], "margin": margin}
    return Ranking((first, *(name for name in by_score if name != first)), "target", detail=detail)


def propensities(ranked: Sequence[str], scores: Mapping[str, float], settings: ExploreSettings) -> dict[str, float]:
    """The probability of each to be first, when a share of the decisions is left to chance. They sum to 1.

    Args:
        ranked: the policy's order, the greedy choice first.
        scores: of those that have one; the others are reached by `uniform` among `all` alone.
        settings: share and manner.
    """
    pool = list(ranked[:2] if settings.among == "top2" else ranked)
    if settings.how == "softmax":
        pool = [name for name in pool if name in scores] or [ranked[0]]
        peak = max((scores.get(name, 0.0) for name in pool), default=0.0)
        weights = [math.exp(max((scores.get(name, 0.0) - peak) / settings.temperature, -700.0)) for name in pool]
    else:
        weights = [1.0] * len(pool)
    total = math.fsum(weights)
    result = dict.fromkeys(ranked, 0.0)
    for name, weight in zip(pool, weights, strict=True):
        result[name] = settings.share * weight / total
    result[ranked[0]] += 1.0 - settings.share
    return result


def explore(ranking: Ranking, scores: Mapping[str, float], settings: ExploreSettings, chance: Chance) -> Ranking:
    """The ranking, or with the decision's share another one first; with the propensity of whoever is first."""
    if settings.share <= 0 or not ranking.order:
        return ranking
    odds = propensities(ranking.order, scores, settings)
    greedy = ranking.order[0]
    chosen, explored = greedy, chance.random() < settings.share
    if explored:
        # Within the explored share only; the greedy one's own share is what is left of it there.
        within = {name: value - (1.0 - settings.share if name == greedy else 0.0) for name, value in odds.items()}
        names, total, sums = list(within), 0.0, []
        for value in within.values():
            total += max(0.0, value)
            sums.append(total)
        chosen = names[min(bisect.bisect_right(sums, chance.random() * total), len(names) - 1)]
    return Ranking(
        (chosen, *(name for name in ranking.order if name != chosen)),
        f"{ranking.policy}+explore" if explored else ranking.policy,
        odds[chosen],
        {**ranking.detail, "explore_share": settings.share, "explored": explored},
    )
