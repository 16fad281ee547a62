"""Trains `mf`: a reduced-rank regression of scores on vectors (Izenman, 1975).

A ridge regression for each model, then the r directions in the space of models that hold most of what the regressions predict:
W becomes V V^T W. Models that rise and fall together lend each other their rows. Unlike LLMRouter's, it fits scores and not
"the first best model beats the others": equal models stay equal.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.affine import PENALTIES, Affine, Ridge, calibration_slope, cross_fit, squared_error
from pointsman.mlops.trainers.base import Progress, Settings, Trainer
from pointsman.strategies.base import Matrix
from pointsman.strategies.mf import MfStrategy

__all__ = ["TRAINER", "MfSettings"]

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class MfSettings(Settings):
    """`rank`: of the latent space. `penalty`: of the regressions. `slope`: how far predictions are believed."""

    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    slope: Annotated[float, Field(ge=0, le=2)] | None = None


def _reduced(full: Affine, vectors: Matrix, ranks: list[int]) -> list[Affine]:
    """The map with its weights brought to each rank; the mean of its predictions stays."""
    weights, bias = full
    at = vectors.mean(axis=0, dtype=np.float64)
    predicted = (vectors - at) @ weights.T
    _, turns = np.linalg.eigh(predicted.T @ predicted)
    maps = []
    for rank in ranks:
        kept = turns[:, -rank:]
        less = kept @ (kept.T @ weights)
        maps.append((less, bias + (weights - less) @ at))
    return maps


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: MfSettings, groups: NDArray[np.intp]) -> MfStrategy:
    """See `Fit`."""
    del seed, groups
    rank = min(settings.rank or len(data.models), len(data.models))
    [(weights, bias)] = _reduced(Ridge(vectors, data.scores, data.known).solve(settings.penalty or 1.0), vectors, [rank])
    slope = 1.0 if settings.slope is None else settings.slope
    at = vectors.mean(axis=0, dtype=np.float64)
    bias = bias + (1 - slope) * (weights @ at)
    return MfStrategy(data.models, (slope * weights).astype(np.float32), bias.astype(np.float32), "unit")


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: MfSettings, groups: NDArray[np.intp], progress: Progress
) -> MfSettings:
    """See `Choose`: rank and penalty with the least squared error in a cross-validation, and the slope there."""
    count = len(data.models)
    ranks = [settings.rank] if settings.rank else sorted({min(rank, count) for rank in (*RANKS, count)})
    ranks = sorted({min(rank, count) for rank in ranks})
    penalties = [settings.penalty] if settings.penalty else list(PENALTIES)
    options = [(penalty, rank) for penalty in penalties for rank in ranks]

    def maps(rows: NDArray[np.intp]) -> list[Affine]:
        ridge = Ridge(vectors[rows], data.scores[rows], data.known[rows])
        return [each for penalty in penalties for each in _reduced(ridge.solve(penalty), vectors[rows], ranks)]

    predictions = cross_fit(maps, vectors, count, groups, seed)
    if not predictions:
        return settings.model_copy(update={"rank": ranks[-1], "penalty": penalties[-1], "slope": 1.0})
    errors = [squared_error(each, data.scores, data.known & np.isfinite(each)) for each in predictions]
    best = min(range(len(options)), key=lambda number: (errors[number], options[number][1], -options[number][0]))
    penalty, rank = options[best]
    slope = settings.slope if settings.slope is not None else calibration_slope(predictions[best], data.scores, data.known)
    error = errors[best] / max(float(data.known.sum()), 1.0)
    progress(f"rank {rank}, penalty {penalty:g}, slope {slope:.2f}; squared error {error:.4f}")
    return MfSettings(rank=rank, penalty=penalty, slope=round(slope, 6))


TRAINER = Trainer("mf", MfSettings, fit, choose)
