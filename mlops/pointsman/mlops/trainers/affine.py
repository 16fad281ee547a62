"""An affine map a model from vectors to scores, by ridge regression; what several trainers share.

For each model, over the rows that know it: least squares of y on x with the squared length of the weights as penalty, the
intercept free (Hoerl and Kennard, 1970). The penalty is in units of a mean squared length of a vector, and does not grow with
the number of rows, so one that was chosen on a part of the rows suits all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pointsman.mlops.trainers.base import folds
from pointsman.strategies.base import Matrix

__all__ = ["PENALTIES", "Affine", "Ridge", "calibration_slope", "centred", "cross_fit", "squared_error"]

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
UNKNOWN = 0.5
"""What a model scores that no row knows."""

Wide = NDArray[np.float64]
Affine = tuple[Wide, Wide]
"""Weights (m, d) and bias (m,)."""


def centred(targets: Matrix | Wide, known: NDArray[np.bool_]) -> tuple[Wide, Wide]:
    """Each model's mean over the rows that know it, (m,), and the differences from it, (n, m), 0 where not known."""
    count = known.sum(axis=0)
    total = np.where(known, targets, 0.0).sum(axis=0, dtype=np.float64)
    means = np.divide(total, count, out=np.full(count.shape, UNKNOWN), where=count > 0)
    return means, np.where(known, targets - means, 0.0)


class Ridge:
    """The regressions for any penalty; what does not depend on it is done once.

    Args:
        vectors: (n, d).
        targets: (n, m).
        known: (n, m).
    """

    def __init__(self, vectors: Matrix | Wide, targets: Matrix | Wide, known: NDArray[np.bool_]) -> None:
        wide = vectors.astype(np.float64, copy=False)
        self._shape = targets.shape[1], vectors.shape[1]
        self._unit = max(float((wide * wide).sum(axis=1).mean()), 1e-12) if len(wide) else 1.0
        # Models that the same rows know share a matrix; mostly that is all of them.
        patterns, which = np.unique(known, axis=1, return_inverse=True)
        self._parts: list[tuple[NDArray[np.intp], tuple[Wide, Wide, Wide, Wide, Wide] | None]] = []
        for number in range(patterns.shape[1]):
            rows, columns = np.flatnonzero(patterns[:, number]), np.flatnonzero(which.reshape(-1) == number)
            if not len(rows):
                self._parts.append((columns, None))
                continue
            x, y = wide[rows], targets[np.ix_(rows, columns)].astype(np.float64)
            at, means = x.mean(axis=0), y.mean(axis=0)
            values, turns = np.linalg.eigh((x - at).T @ (x - at))
            self._parts.append((columns, (at, means, np.maximum(values, 0.0), turns, turns.T @ ((x - at).T @ (y - means)))))

    def solve(self, penalty: float) -> Affine:
        """Weights (m, d) and bias (m,)."""
        weights, bias = np.zeros(self._shape), np.full(self._shape[0], UNKNOWN)
        for columns, part in self._parts:
            if part is not None:
                at, means, values, turns, cross = part
                solved = turns @ (cross / (values + penalty * self._unit)[:, None])
                weights[columns], bias[columns] = solved.T, means - at @ solved
        return weights, bias


def squared_error(predicted: Wide, targets: Matrix, known: NDArray[np.bool_]) -> float:
    """Sum over what is known, of predictions cut to [0, 1]."""
    differences = np.where(known, np.clip(predicted, 0, 1) - targets, 0.0).astype(np.float64)
    return float((differences * differences).sum())


def cross_fit(
    fit: Callable[[NDArray[np.intp]], Sequence[Affine]], vectors: Matrix, count: int, groups: NDArray[np.intp], seed: int
) -> list[Wide]:
    """Predictions for each row by maps that were fitted without its fold.

    Args:
        fit: rows to learn from -> maps, always as many (one for each choice that is compared).
        vectors: (n, d).
        count: m, of models.
        groups, seed: see `folds`.

    Returns:
        For each choice (n, m); NaN for rows that were in no fold (where a fold was empty).
    """
    results: list[Wide] = []
    for learn, check in folds(groups, seed):
        for number, (weights, bias) in enumerate(fit(learn)):
            if number == len(results):
                results.append(np.full((len(vectors), count), np.nan))
            results[number][check] = vectors[check] @ weights.T + bias
    return results


def calibration_slope(predicted: Wide, targets: Matrix, known: NDArray[np.bool_]) -> float:
    """How far differences from the mean are to be believed, in [0, 1.5]: the regression of what was seen on what was predicted.

    One number for all models, from predictions for rows that the maps were fitted without. 1 where they are calibrated.
    """
    usable = known & np.isfinite(predicted)
    _, seen = centred(targets, usable)
    _, believed = centred(np.where(usable, predicted, 0.0), usable)
    power = float((believed * believed).sum())
    return float(np.clip((believed * seen).sum() / power, 0.0, 1.5)) if power > 1e-12 else 0.0
