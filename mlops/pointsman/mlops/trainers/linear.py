"""Trains `linear`: for each model a ridge or a logistic regression of its scores on the vectors."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.affine import PENALTIES, Affine, Ridge, cross_fit, squared_error
from pointsman.mlops.trainers.base import Progress, Settings, Trainer
from pointsman.strategies.base import Matrix
from pointsman.strategies.linear import LinearStrategy, Link

__all__ = ["TRAINER", "LinearSettings"]

STEPS = 25
"""Of Newton's method; it takes five to eight."""


class LinearSettings(Settings):
    """`link`: `identity` (ridge) or `logistic`. `penalty`: by default that with the least error in a cross-validation."""

    link: Link = "identity"
    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None


def _solve(vectors: Matrix, data: Dataset, link: Link, penalties: list[float]) -> list[Affine]:
    if link == "identity":
        ridge = Ridge(vectors, data.scores, data.known)
        return [ridge.solve(penalty) for penalty in penalties]
    return [_logistic(vectors.astype(np.float64), data, penalty) for penalty in penalties]


def _logistic(vectors: NDArray[np.float64], data: Dataset, penalty: float) -> Affine:
    """Logistic regression by Newton's method; scores are shares, which the likelihood takes as they are.

    The penalty is on the same scale as that of `Ridge`, whose error has a curvature of 1 where this one has 1/4.
    """
    count, width = len(data.models), vectors.shape[1]
    weights, bias = np.zeros((count, width)), np.zeros(count)
    unit = max(float((vectors * vectors).sum(axis=1).mean()), 1e-12) / 4
    for model in range(count):
        rows = data.known[:, model]
        x, y = np.column_stack((vectors[rows], np.ones(int(rows.sum())))), data.scores[rows, model].astype(np.float64)
        if not len(y):
            continue
        beta = np.zeros(width + 1)
        mean = float(np.clip(y.mean(), 1e-3, 1 - 1e-3))
        beta[-1] = np.log(mean / (1 - mean))
        damping = np.full(width + 1, penalty * unit)
        damping[-1] = 1e-9
        for _ in range(STEPS):
            p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
            slope = x.T @ (p - y) + damping * beta
            curve = (x * np.maximum(p * (1 - p), 1e-6)[:, None]).T @ x + np.diag(damping)
            step = np.linalg.solve(curve, slope)
            beta -= step
            if float(np.abs(step).max()) < 1e-9:
                break
        weights[model], bias[model] = beta[:-1], beta[-1]
    return weights, bias


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: LinearSettings, groups: NDArray[np.intp]) -> LinearStrategy:
    """See `Fit`."""
    del seed, groups
    [(weights, bias)] = _solve(vectors, data, settings.link, [settings.penalty or 1.0])
    return LinearStrategy(
        data.models, np.ascontiguousarray(weights.T.astype(np.float32)), bias.astype(np.float32), settings.link
    )


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: LinearSettings, groups: NDArray[np.intp], progress: Progress
) -> LinearSettings:
    """See `Choose`."""
    if settings.penalty is not None:
        return settings
    penalties = list(PENALTIES)
    predictions = cross_fit(
        lambda rows: _solve(vectors[rows], data.take(rows), settings.link, penalties), vectors, len(data.models), groups, seed
    )
    if not predictions:
        return settings.model_copy(update={"penalty": 10.0})
    errors = []
    for each in predictions:
        seen = data.known & np.isfinite(each)
        told = 1 / (1 + np.exp(-np.clip(each, -30, 30))) if settings.link == "logistic" else each
        errors.append(squared_error(told, data.scores, seen) / max(int(seen.sum()), 1))
    best = min(range(len(penalties)), key=lambda number: (errors[number], -penalties[number]))
    progress(
        f"penalty = {penalties[best]:g}; squared errors: "
        + ", ".join(f"{penalty:g}: {error:.4f}" for penalty, error in zip(penalties, errors, strict=True))
    )
    return settings.model_copy(update={"penalty": penalties[best]})


TRAINER = Trainer("linear", LinearSettings, fit, choose)
