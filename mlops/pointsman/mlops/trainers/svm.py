"""Trains `svm`: for each model a kernel ridge regression of its scores (Saunders, Gammerman, Vovk, 1998).

The support vectors are a sample of the rows (Nystroem's method: Williams and Seeger, 2001): each prompt is described by its
kernel with each of them, whitened by the kernel among themselves, and ridge regression does the rest. Their number, not that
of the rows, is what a decision costs.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.affine import PENALTIES, Affine, Ridge, squared_error
from pointsman.mlops.trainers.base import Progress, Settings, Trainer, folds
from pointsman.strategies.base import Matrix
from pointsman.strategies.kernels import Kernel
from pointsman.strategies.svm import SvmParams, SvmStrategy

__all__ = ["TRAINER", "SvmSettings"]

GAMMAS = (0.3, 1.0, 3.0)
"""In units of 1 / the mean squared length of a vector."""
SAMPLE = 300
"""Support vectors while gamma and penalty are chosen."""

Wide = NDArray[np.float64]


class SvmSettings(Settings):
    """`gamma`, `penalty`: by default those with the least squared error in a cross-validation. `support`: how many vectors."""

    kernel: Literal["rbf", "linear"] = "rbf"
    gamma: Annotated[float, Field(gt=0, le=1e6)] | None = None
    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    support: Annotated[int, Field(ge=1, le=6000)] = 1000


class _Features:
    """Whitened kernels with a sample of rows."""

    def __init__(self, vectors: Matrix, kernel: Literal["rbf", "linear"], gamma: float, support: int, seed: int) -> None:
        chosen = np.random.default_rng(seed).permutation(len(vectors))[:support]
        self.support: Matrix = np.ascontiguousarray(vectors[np.sort(chosen)])
        unit = max(float((vectors.astype(np.float64) ** 2).sum(axis=1).mean()), 1e-12)
        self.params = SvmParams(mode="regression", kernel=kernel, gamma=gamma / unit)
        self._kernel = Kernel(self.params, self.support)
        values, turns = np.linalg.eigh(self._kernel(self.support))
        good = values > 1e-7 * max(float(values[-1]), 1e-12)
        self.whitening: Wide = turns[:, good] / np.sqrt(values[good])

    def __call__(self, vectors: Matrix) -> Wide:
        blocks = [self._kernel(vectors[start : start + 512]).T @ self.whitening for start in range(0, len(vectors), 512)]
        return np.concatenate(blocks)


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: SvmSettings, groups: NDArray[np.intp]) -> SvmStrategy:
    """See `Fit`."""
    del groups
    features = _Features(vectors, settings.kernel, settings.gamma or 1.0, settings.support, seed)
    weights, bias = Ridge(features(vectors), data.scores, data.known).solve(settings.penalty or 1.0)
    none = np.zeros(len(data.models), np.int64)
    coefficients = np.ascontiguousarray(features.whitening @ weights.T)
    return SvmStrategy(data.models, features.support, coefficients, bias, none, features.params)


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: SvmSettings, groups: NDArray[np.intp], progress: Progress
) -> SvmSettings:
    """See `Choose`."""
    if settings.gamma is not None and settings.penalty is not None:
        return settings
    gammas = [settings.gamma] if settings.gamma else list(GAMMAS if settings.kernel == "rbf" else GAMMAS[1:2])
    penalties = [settings.penalty] if settings.penalty else list(PENALTIES)
    errors = {(gamma, penalty): 0.0 for gamma in gammas for penalty in penalties}
    for learn, check in folds(groups, seed):
        for gamma in gammas:
            features = _Features(vectors[learn], settings.kernel, gamma, min(SAMPLE, settings.support), seed)
            ridge, unseen = Ridge(features(vectors[learn]), data.scores[learn], data.known[learn]), features(vectors[check])
            for penalty in penalties:
                predicted = _apply(ridge.solve(penalty), unseen)
                errors[gamma, penalty] += squared_error(predicted, data.scores[check], data.known[check])
    gamma, penalty = min(errors, key=lambda pair: (errors[pair], pair[0], -pair[1]))
    error = errors[gamma, penalty] / max(float(data.known.sum()), 1.0)
    progress(f"gamma = {gamma:g}, penalty = {penalty:g}; squared error {error:.4f}")
    return settings.model_copy(update={"gamma": gamma, "penalty": penalty})


def _apply(found: Affine, features: Wide) -> Wide:
    weights, bias = found
    predicted: Wide = features @ weights.T + bias
    return predicted


TRAINER = Trainer("svm", SvmSettings, fit, choose)
