"""Trains `elo`: the ratings under which the comparisons that were seen are the most likely (Bradley and Terry, 1952).

Each prompt compares each pair of models whose scores it knows: the higher one wins, equal ones win half each. So neither the
order of rows nor that of models decides anything, and models that are equally good get equal ratings. The most likely ratings
are found by Newton's method; a comparison that nobody saw (half won, half lost, with each other model) keeps them finite.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.base import Settings, Trainer
from pointsman.strategies.base import Matrix
from pointsman.strategies.elo import POINTS, START, EloStrategy

__all__ = ["TRAINER", "ratings", "wins"]

STEPS = 100


def wins(data: Dataset) -> NDArray[np.float64]:
    """How often model i beat model j, equal ones counted half: (m, m), zeros on the diagonal."""
    scores, known = data.scores, data.known
    count = scores.shape[1]
    result = np.zeros((count, count))
    for i in range(count):
        both = known & known[:, i : i + 1]
        won = (scores[:, i : i + 1] > scores) + 0.5 * (scores[:, i : i + 1] == scores)
        result[i] = (won * both).sum(axis=0)
    np.fill_diagonal(result, 0.0)
    return result


def ratings(won: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratings (m,) in Elo's points, with a mean of 1000."""
    count = len(won)
    won = won + 0.5 * (1 - np.eye(count))
    games = won + won.T
    strength = np.zeros(count)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        slope = (won - games * chance).sum(axis=1)
        spread = games * chance * (1 - chance)
        # Of the strengths only differences count: the matrix of ones fixes their mean at 0.
        curve = np.diag(spread.sum(axis=1)) - spread + 1.0
        step = np.clip(np.linalg.solve(curve, slope), -1.0, 1.0)
        strength += step - step.mean()
        if float(np.abs(step).max()) < 1e-12:
            break
    return START + strength * POINTS / math.log(10)


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: Settings, groups: NDArray[np.intp]) -> EloStrategy:
    """See `Fit`."""
    del vectors, seed, settings, groups
    return EloStrategy(data.models, ratings(wins(data)))


TRAINER = Trainer("elo", Settings, fit, encoder="none", max_rows=1_000_000)
