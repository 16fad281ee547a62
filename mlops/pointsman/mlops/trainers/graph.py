"""Trains `graph`: scores flow along a graph of similar prompts, then an affine map a model is fitted to what they became.

Each prompt is joined to its k most similar ones, by cosine. With P the weights of a prompt's edges (rows sum to 1), y the
differences of scores from their model's mean and a share `smoothing` = s: F <- (1 - s) y + s P F, `STEPS` times; a score that
is not known is P F alone. That is label spreading (Zhou et al., 2004) with the walk's matrix. Noise is averaged out over
prompts that are alike, and models get a guess where they have no score. How much to smooth is chosen by cross-validation; 0 is
among the choices, and then the graph plays no part.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.affine import (
    PENALTIES,
    Affine,
    Ridge,
    Wide,
    calibration_slope,
    centred,
    cross_fit,
    squared_error,
)
from pointsman.mlops.trainers.base import Progress, Settings, Trainer
from pointsman.strategies.base import Matrix
from pointsman.strategies.graph import GraphStrategy

__all__ = ["TRAINER", "GraphSettings", "neighbours", "spread"]

STEPS = 10
SMOOTHINGS = (0.0, 0.3, 0.6, 0.85)
K = 10
BLOCK = 256
TIE = 1e-6
"""Edges less than this weaker than the k-th are kept as well, so that copies of a prompt are not cut by chance."""
COLUMNS = 16
"""Models that flow at once; bounds the memory of the edges' products."""

Edges = tuple[NDArray[np.intp], NDArray[np.intp], Wide]
"""From, to (in rising order of `from`) and weight of each edge; the weights of a prompt's edges sum to 1."""


class GraphSettings(Settings):
    """`k`: edges of a prompt. `smoothing`: s. `penalty`: of the regressions. `slope`: how far predictions are believed."""

    k: Annotated[int, Field(ge=1, le=200)] = K
    smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    slope: Annotated[float, Field(ge=0, le=2)] | None = None


def neighbours(vectors: Matrix, k: int) -> Edges:
    """The graph of (n, d) vectors. n^2 d multiplications, a block of rows at a time."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    sources, targets, weights = [], [], []
    for start in range(0, len(unit), BLOCK):
        similar = unit[start : start + BLOCK] @ unit.T
        for offset, line in enumerate(similar):
            line[start + offset] = 0.0  # none to itself
            if k < len(line):
                least = max(float(np.partition(line, len(line) - k)[len(line) - k]) - TIE, TIE)
                near = np.flatnonzero(line >= least)
            else:
                near = np.flatnonzero(line >= TIE)
            sources.append(np.full(len(near), start + offset, np.intp))
            targets.append(near)
            weights.append(line[near].astype(np.float64))
    return _normal(np.concatenate(sources), np.concatenate(targets), np.concatenate(weights), len(unit))


def _normal(sources: NDArray[np.intp], targets: NDArray[np.intp], weights: Wide, count: int) -> Edges:
    total = np.bincount(sources, weights=weights, minlength=count)
    return sources, targets, weights / total[sources]


def _within(edges: Edges, rows: NDArray[np.intp], count: int) -> Edges:
    """The graph of some of the prompts, numbered anew."""
    number = np.full(count, -1, np.intp)
    number[rows] = np.arange(len(rows))
    sources, targets, weights = edges
    kept = (number[sources] >= 0) & (number[targets] >= 0)
    return _normal(number[sources[kept]], number[targets[kept]], weights[kept], len(rows))


def spread(edges: Edges, start: Wide, known: NDArray[np.bool_], smoothing: float) -> Wide:
    """F of the module. `start`: y, (n, m), 0 where not known."""
    sources, targets, weights = edges
    linked = np.zeros(len(start), np.bool_)
    linked[sources] = True
    result = start.copy()
    if not len(sources) or smoothing == 0:
        return result
    firsts = np.flatnonzero(np.diff(sources, prepend=-1))
    for first in range(0, start.shape[1], COLUMNS):
        own, seen = start[:, first : first + COLUMNS], known[:, first : first + COLUMNS]
        keep = np.where(linked[:, None], np.where(seen, 1 - smoothing, 0.0), 1.0)
        flow = own.copy()
        for _ in range(STEPS):
            moved = np.zeros(flow.shape)
            moved[sources[firsts]] = np.add.reduceat(weights[:, None] * flow[targets], firsts, axis=0)
            flow = keep * own + (1 - keep) * moved
        result[:, first : first + COLUMNS] = flow
    return result


def _ridge(vectors: Matrix, edges: Edges, scores: Matrix, known: NDArray[np.bool_], smoothing: float) -> Ridge:
    means, start = centred(scores, known)
    if smoothing == 0:
        return Ridge(vectors, scores, known)
    return Ridge(vectors, means + spread(edges, start, known, smoothing), np.ones_like(known))


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: GraphSettings, groups: NDArray[np.intp]) -> GraphStrategy:
    """See `Fit`."""
    del seed, groups
    smoothing, slope = settings.smoothing or 0.0, 1.0 if settings.slope is None else settings.slope
    edges = neighbours(vectors, settings.k) if smoothing else (np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0))
    weights, _ = _ridge(vectors, edges, data.scores, data.known, smoothing).solve(settings.penalty or 1.0)
    # What a model scores on average is known from the scores themselves; the graph tells differences.
    means, _ = centred(data.scores, data.known)
    at, _ = centred(vectors @ weights.T, data.known)
    bias = means - slope * np.where(data.known.any(axis=0), at, 0.0)
    return GraphStrategy(data.models, (slope * weights).astype(np.float32), bias.astype(np.float32), "unit")


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: GraphSettings, groups: NDArray[np.intp], progress: Progress
) -> GraphSettings:
    """See `Choose`: what to smooth and to penalise, by the least squared error on true scores in a cross-validation.

    A fold's graph has none of the prompts that it is checked on, as a new prompt will not be in the graph either.
    """
    count = len(data.models)
    smoothings = [settings.smoothing] if settings.smoothing is not None else list(SMOOTHINGS)
    penalties = [settings.penalty] if settings.penalty else list(PENALTIES)
    options = [(smoothing, penalty) for smoothing in smoothings for penalty in penalties]
    edges = neighbours(vectors, settings.k)

    def maps(rows: NDArray[np.intp]) -> list[Affine]:
        inner, known = _within(edges, rows, len(vectors)), data.known[rows]
        ridges = [_ridge(vectors[rows], inner, data.scores[rows], known, smoothing) for smoothing in smoothings]
        return [ridge.solve(penalty) for ridge in ridges for penalty in penalties]

    predictions = cross_fit(maps, vectors, count, groups, seed)
    if not predictions:
        return settings.model_copy(update={"smoothing": smoothings[0], "penalty": penalties[-1], "slope": 1.0})
    errors = [squared_error(each, data.scores, data.known & np.isfinite(each)) for each in predictions]
    best = min(range(len(options)), key=lambda number: (errors[number], options[number][0], -options[number][1]))
    smoothing, penalty = options[best]
    slope = settings.slope if settings.slope is not None else calibration_slope(predictions[best], data.scores, data.known)
    error = errors[best] / max(float(data.known.sum()), 1.0)
    progress(f"smoothing {smoothing:g}, penalty {penalty:g}, slope {slope:.2f}; squared error {error:.4f}")
    return GraphSettings(k=settings.k, smoothing=smoothing, penalty=penalty, slope=round(slope, 6))


TRAINER = Trainer("graph", GraphSettings, fit, choose, max_rows=10_000)
