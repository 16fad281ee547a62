"""The held-out evaluation: the strategy beside its baselines on the same rows, with intervals.

Only rows count where every model's score is known: what a model would have scored elsewhere cannot be told honestly.
Constant baselines are chosen on the training rows, never on those that judge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointsman.mlops.calibrate import calibrate
from pointsman.mlops.data import Dataset
from pointsman.strategies.base import Matrix, Scale
from pointsman.strategies.manifest import Evaluation, Result

__all__ = ["MIN_HELD_OUT", "Prices", "costs_of", "evaluate", "frontier"]

MIN_HELD_OUT = 20
RESAMPLES = 2000
CHARACTERS_PER_TOKEN = 4
OUTPUT_TOKENS = 256
"""Without measured costs: input is a token for four characters, an answer has 256 tokens."""

Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens."""

    input: float
    output: float


def costs_of(data: Dataset, prices: dict[str, Prices]) -> Weights | None:
    """US dollars of each prompt on each model, (n, m): as measured, else estimated from prices; None where neither is known."""
    if data.costs is not None and not np.isnan(data.costs).any():
        return data.costs
    if not set(data.models) <= set(prices):
        return None
    tokens = np.array([len(query) / CHARACTERS_PER_TOKEN for query in data.queries])[:, None]
    inputs = np.array([prices[model].input for model in data.models])
    outputs = np.array([prices[model].output for model in data.models])
    estimated: Weights = (tokens * inputs + OUTPUT_TOKENS * outputs) / 1e6
    return estimated if data.costs is None else np.where(np.isnan(data.costs), estimated, data.costs)


def evaluate(
    predicted: Matrix,
    held: Dataset,
    groups: NDArray[np.intp],
    train: Dataset,
    *,
    prices: dict[str, Prices],
    split: str,
    refit: bool,
    seed: int,
    knn: Matrix | None = None,
    scale: Scale = "quality",
) -> Evaluation | None:
    """The evaluation, or None if fewer than `MIN_HELD_OUT` held-out rows have all scores.

    Args:
        predicted: (rows of `held`, m) scores by the strategy.
        held: rows that it never saw.
        groups: their groups of near-duplicates.
        train: rows that it was trained on.
        prices: model -> prices; may be empty.
        split, refit: for the record.
        seed: of the bootstrap.
        knn: (rows of `held`, m) scores by a kNN that was trained on the same vectors, as a baseline; None: there is none.
        scale: what `predicted` means; a squared error is told of `quality` only.
    """
    complete = held.known.all(axis=1)
    if int(complete.sum()) < MIN_HELD_OUT:
        return None
    rows = np.flatnonzero(complete)
    truth = held.scores[rows].astype(np.float64)
    predicted, groups, costs = predicted[rows], groups[rows], costs_of(held.take(rows), prices)
    draws = _draws(groups, seed)
    means = _train_means(train)
    best = int(means.argmax())
    picks = predicted.argmax(axis=1)
    n, m = truth.shape
    shares = {"strategy": np.eye(m)[picks], "best_single": np.eye(m)[np.full(n, best)]}
    constant = {"best_single": held.models[best]}
    notes = []
    weak = int(means.argmin())
    if costs is not None:
        train_costs = costs_of(train, prices)
        weak = int((train_costs if train_costs is not None else costs).mean(axis=0).argmin())
        shares["cheapest"] = np.eye(m)[np.full(n, weak)]
        constant["cheapest"] = held.models[weak]
    else:
        notes.append("no prices were given: there is no cheapest model and no cost")
    shares["random"] = np.full((n, m), 1 / m)
    shares["oracle"] = np.eye(m)[_oracle(truth, costs)]
    if knn is not None:
        shares["knn"] = np.eye(m)[knn[rows].argmax(axis=1)]
    if costs is not None and held.costs is None:
        notes.append(f"cost at estimated tokens: a token for {CHARACTERS_PER_TOKEN} characters in, {OUTPUT_TOKENS} tokens out")
    if refit:
        notes.append("measured with a model trained without these rows; the bundle was trained again on all rows")
    table = tuple(_line(name, share, truth, costs, draws, held.models, constant.get(name)) for name, share in shares.items())
    gain = (shares["strategy"] * truth).sum(axis=1) - truth[:, best]
    known = train.known.sum(axis=0) > 0
    prior = np.where(known, means, 0.5)
    return Evaluation(
        rows=n,
        groups=len(np.unique(groups)),
        split=split,
        refit=refit,
        table=table,
        difference=_interval(gain, draws),
        apgr=_apgr(predicted[:, best] - predicted[:, weak], truth[:, weak], truth[:, best]),
        brier=None
        if scale == "rank"
        else (_rounded(((predicted - truth) ** 2).mean()), _rounded(((prior - truth) ** 2).mean())),
        notes=tuple(notes),
        calibration=None
        if weak == best
        else calibrate(
            held.models[weak],
            held.models[best],
            predicted[:, best].astype(np.float64) - predicted[:, weak],
            (truth[:, weak], truth[:, best]),
            None if costs is None else costs[:, [weak, best]],
        ),
    )


def frontier(predicted: Matrix, held: Dataset, prices: dict[str, Prices]) -> list[dict[str, float]]:
    """Quality and cost of argmax(score - weight * cost / highest mean cost) for rising weights; empty without costs."""
    rows = np.flatnonzero(held.known.all(axis=1))
    costs = costs_of(held.take(rows), prices) if len(rows) else None
    if costs is None:
        return []
    truth, scores = held.scores[rows], predicted[rows].astype(np.float64)
    relative = costs / max(float(costs.mean(axis=0).max()), 1e-12)
    points = []
    for weight in (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0):
        picks = (scores - weight * relative).argmax(axis=1)
        chosen = np.arange(len(rows)), picks
        points.append(
            {"weight": weight, "quality": _rounded(truth[chosen].mean()), "cost": _rounded(1000 * costs[chosen].mean())}
        )
    return points


def _train_means(train: Dataset) -> Weights:
    counts = train.known.sum(axis=0)
    totals = train.scores.astype(np.float64).sum(axis=0)
    means: Weights = np.divide(totals, counts, out=np.full(len(counts), -1.0), where=counts > 0)
    return means


def _oracle(truth: Weights, costs: Weights | None) -> NDArray[np.intp]:
    """The best model of each row, the cheaper of equals."""
    best = truth >= truth.max(axis=1, keepdims=True)
    picks: NDArray[np.intp] = np.where(best, 0.0 if costs is None else costs, np.inf).argmin(axis=1)
    return picks


def _draws(groups: NDArray[np.intp], seed: int) -> tuple[NDArray[np.intp], Weights]:
    """Which group each row is of, and how often each resample draws each group (resamples, groups)."""
    names, index = np.unique(groups, return_inverse=True)
    count = len(names)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return index, drawn.astype(np.float64)


def _interval(values: Weights, draws: tuple[NDArray[np.intp], Weights]) -> tuple[float, float, float]:
    """Mean and its 95% interval: percentiles of a bootstrap over groups."""
    index, drawn = draws
    count = drawn.shape[1]
    sums = np.bincount(index, weights=values, minlength=count)
    sizes = np.bincount(index, minlength=count).astype(np.float64)
    low, high = np.percentile((drawn @ sums) / (drawn @ sizes), (2.5, 97.5))
    return _rounded(values.mean()), _rounded(low), _rounded(high)


def _line(
    name: str,
    share: Weights,
    truth: Weights,
    costs: Weights | None,
    draws: tuple[NDArray[np.intp], Weights],
    models: tuple[str, ...],
    model: str | None,
) -> Result:
    quality, low, high = _interval((share * truth).sum(axis=1), draws)
    return Result(
        name=name,
        quality=quality,
        low=low,
        high=high,
        cost=None if costs is None else _rounded(1000 * (share * costs).sum(axis=1).mean()),
        model=model,
        shares={known: _rounded(value) for known, value in zip(models, share.mean(axis=0), strict=True)},
    )


def _apgr(margin: Matrix, weak: Weights, strong: Weights) -> float | None:
    """Area under performance gap recovered over the share of requests that go to the strong model (Ong et al.: RouteLLM, 2024).

    Rows of equal margin are taken as one step, so that their order decides nothing.
    """
    gap = float(strong.mean() - weak.mean())
    if gap <= 0:
        return None
    values, index = np.unique(-margin, return_inverse=True)
    gains = np.bincount(index, weights=strong - weak, minlength=len(values)).cumsum() / len(margin) / gap
    shares = np.bincount(index, minlength=len(values)).cumsum() / len(margin)
    return _rounded(np.trapezoid(np.concatenate(([0.0], gains)), np.concatenate(([0.0], shares))))


def _rounded(value: object) -> float:
    return round(float(value), 6)  # type: ignore[arg-type]  # any NumPy scalar
