"""Trains `knn`: keeps the rows, chooses k."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.base import Progress, Settings, Trainer, folds
from pointsman.strategies.base import Matrix
from pointsman.strategies.knn import KnnStrategy

__all__ = ["TRAINER", "KnnSettings"]

NEIGHBOURS = (5, 10, 20, 50, 100, 200)


class KnnSettings(Settings):
    """`k`: neighbours; by default the number with the least squared error in a cross-validation."""

    k: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: KnnSettings, groups: NDArray[np.intp]) -> KnnStrategy:
    """See `Fit`. Vectors are kept as float16: half the size, and differences far below those between neighbours."""
    del seed, groups
    k = settings.k if settings.k is not None else NEIGHBOURS[0]
    return KnnStrategy(
        data.models, vectors.astype(np.float16), data.scores, data.known.astype(np.uint8), max(1, min(k, len(data)))
    )


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: KnnSettings, groups: NDArray[np.intp], progress: Progress
) -> KnnSettings:
    """See `Choose`. The encoder was fitted on all of these rows: it saw texts, never scores."""
    options = [k for k in NEIGHBOURS if k <= len(data) // 2]
    if settings.k is not None or len(options) < 2:
        return settings if settings.k is not None else KnnSettings(k=options[0] if options else 1)
    squared = dict.fromkeys(options, 0.0)
    for learn, check in folds(groups, seed):
        part, judge = data.take(learn), data.take(check)
        for k in options:
            knn = fit(vectors[learn], part, seed=seed, settings=KnnSettings(k=k), groups=groups[learn])
            errors = (knn.score(vectors[check]) - judge.scores) ** 2
            squared[k] += float(errors[judge.known].sum(dtype=np.float64))
    total = max(float(data.known.sum()), 1.0)
    best = min(options, key=lambda k: (squared[k], k))
    progress(f"k = {best}; squared errors: " + ", ".join(f"{k}: {error / total:.4f}" for k, error in squared.items()))
    return KnnSettings(k=best)


TRAINER = Trainer("knn", KnnSettings, fit, choose)
