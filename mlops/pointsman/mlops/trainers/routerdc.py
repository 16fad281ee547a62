"""Trains `routerdc`: dual contrastive learning on frozen vectors, in NumPy.

After RouterDC (Chen et al., 2024), with soft labels in place of "the best" and "the worst" models and of clusters. For a batch
of prompts with z_i = A x_i / |A x_i|, models with e_m / |e_m|, and scores y:

- prompt and model: cross-entropy between q_i = softmax(y_i / `SOFT`) over the models that have a score, and
  p_i = softmax(cos(z_i, e) / t). Equal scores are equal labels, whatever the order of models. Among the models is one that
  does not exist and scores 1/2 everywhere, so that a prompt which all fail is not the same as one which none fails;
- prompt and prompt: cross-entropy between the affinities of their profiles of scores, proportional to
  exp(-|y_i - y_j|^2 / `ALIKE`) over the models that both know (mean square), and softmax(cos(z_i, z_j) / t2) over the others.

Adam (Kingma and Ba, 2015) for a number of passes that a validation set chooses, at most `MAX_STEPS` steps. Last, a line from
cosine to score for each model, by least squares; its slope is multiplied by how far the validation set bears it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.affine import Wide, calibration_slope, centred, squared_error
from pointsman.mlops.trainers.base import Progress, Settings, Trainer, folds
from pointsman.strategies.base import Matrix
from pointsman.strategies.routerdc import RouterDcStrategy

__all__ = ["TRAINER", "RouterDcSettings", "losses"]

SPACE = 32
PASSES = (3, 10, 30)
BATCH = 256
MAX_STEPS = 2000
RATE = 0.01
SOFT = 0.2
ALIKE = 0.25
TEMPERATURE, TEMPERATURE_ALIKE = 0.5, 0.5
WEIGHT_ALIKE = 1.0
DECAY = 1e-3
NOBODY = 0.5
"""Score of the model that does not exist."""


class RouterDcSettings(Settings):
    """`space`: dimensions that prompts and models share. `passes`: over the rows. `believe`: share of the lines' slopes."""

    space: Annotated[int, Field(ge=1, le=512)] = SPACE
    passes: Annotated[int, Field(ge=1, le=200)] | None = None
    believe: Annotated[float, Field(ge=0, le=2)] | None = None


@dataclass(slots=True)
class _Adam:
    """One array and its moments."""

    value: Wide
    first: Wide = field(init=False)
    second: Wide = field(init=False)
    step: int = 0

    def __post_init__(self) -> None:
        self.first, self.second = np.zeros_like(self.value), np.zeros_like(self.value)

    def move(self, gradient: Wide) -> None:
        """One step against the gradient."""
        self.step += 1
        self.first += 0.1 * (gradient - self.first)
        self.second += 0.001 * (gradient * gradient - self.second)
        mean, power = self.first / (1 - 0.9**self.step), self.second / (1 - 0.999**self.step)
        self.value -= RATE * (mean / (np.sqrt(power) + 1e-8) + DECAY * self.value)


def _softmax(values: Wide, allowed: NDArray[np.bool_]) -> Wide:
    """Along the rows, over what is allowed; zeros where nothing is."""
    masked = np.where(allowed, values, -np.inf)
    top = masked.max(axis=1, keepdims=True)
    raised = np.where(allowed, np.exp(masked - np.where(np.isfinite(top), top, 0.0)), 0.0)
    total = raised.sum(axis=1, keepdims=True)
    result: Wide = raised / np.where(total > 0, total, 1.0)
    return result


def _unit(rows: Wide) -> tuple[Wide, Wide]:
    lengths = np.maximum(np.sqrt((rows * rows).sum(axis=1, keepdims=True)), 1e-9)
    return rows / lengths, lengths


def losses(x: Wide, y: Wide, known: NDArray[np.bool_], a: Wide, e: Wide) -> tuple[float, Wide, Wide]:
    """The sum of both losses on a batch, and its gradients by A (k, d) and e (m, k)."""
    z, z_length = _unit(x @ a.T)
    direction, e_length = _unit(e)
    count = max(len(x), 1)
    logits = z @ direction.T / TEMPERATURE
    wanted, got = _softmax(y / SOFT, known), _softmax(logits, known)
    loss = -float((wanted * np.log(np.maximum(got, 1e-300))).sum()) / count
    back = (got - wanted) / (count * TEMPERATURE)
    z_back, e_back = back @ direction, back.T @ z

    both = known.astype(np.float64)
    shared = both @ both.T
    filled = np.where(known, y, 0.0)
    squares = (filled * filled) @ both.T
    apart = (squares + squares.T - 2 * filled @ filled.T) / np.maximum(shared, 1.0)
    others = (shared > 0) & ~np.eye(len(x), dtype=bool)
    alike = _softmax(-apart / ALIKE, others)
    near = _softmax(z @ z.T / TEMPERATURE_ALIKE, others)
    loss -= WEIGHT_ALIKE * float((alike * np.log(np.maximum(near, 1e-300))).sum()) / count
    pull = WEIGHT_ALIKE * (near - alike) / (count * TEMPERATURE_ALIKE)
    z_back = z_back + (pull + pull.T) @ z

    z_raw = (z_back - (z_back * z).sum(axis=1, keepdims=True) * z) / z_length
    e_raw = (e_back - (e_back * direction).sum(axis=1, keepdims=True) * direction) / e_length
    return loss, z_raw.T @ x, e_raw


def _learn(vectors: Matrix, data: Dataset, space: int, seed: int, stops: tuple[int, ...]) -> list[tuple[Wide, Wide]]:
    """A (k, d) and e (m, k) after each number of passes in `stops` (rising)."""
    chance = np.random.default_rng(seed)
    x, nobody = vectors.astype(np.float64), np.full((len(data), 1), NOBODY)
    y = np.concatenate((data.scores.astype(np.float64), nobody), axis=1)
    known = np.concatenate((data.known, nobody == NOBODY), axis=1)
    a = _Adam(chance.standard_normal((space, x.shape[1])) / np.sqrt(x.shape[1]))
    z, _ = _unit(x @ a.value.T)
    # Where prompts lie on which a model does better than models do on them; nothing by chance, so equal models start equal.
    rows = np.where(known, y, 0.0).sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    start, _ = _unit(z.mean(axis=0, keepdims=True))
    e = _Adam(_unit(np.where(known, y - rows, 0.0).T @ z)[0] + 0.1 * start)
    found, steps = [], 0
    for number in range(1, stops[-1] + 1):
        order = chance.permutation(len(x))
        for first in range(0, len(x), BATCH):
            if steps < MAX_STEPS:
                chosen = order[first : first + BATCH]
                _, a_back, e_back = losses(x[chosen], y[chosen], known[chosen], a.value, e.value)
                a.move(a_back)
                e.move(e_back)
                steps += 1
        if number in stops:
            found.append((a.value.copy(), e.value[:-1].copy()))
    return found


def _cosines(vectors: Matrix, a: Wide, e: Wide) -> Wide:
    return _unit(vectors.astype(np.float64) @ a.T)[0] @ _unit(e)[0].T


def _lines(cosines: Wide, data: Dataset) -> tuple[Wide, Wide, Wide]:
    """Slope (m,), mean cosine (m,) and mean score (m,) of each model, over the rows that know it."""
    mean_cosine, believed = centred(cosines, data.known)
    mean_score, seen = centred(data.scores, data.known)
    power = (believed * believed).sum(axis=0)
    # A little of what all models have in common steadies those with few rows; a falling line would turn the model's back on z.
    common = (believed * seen).sum() / max(float(power.sum()), 1e-9)
    weight = max(float(power.mean()), 1e-9) * 0.01
    return np.maximum(((believed * seen).sum(axis=0) + weight * common) / (power + weight), 0.0), mean_cosine, mean_score


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: RouterDcSettings, groups: NDArray[np.intp]) -> RouterDcStrategy:
    """See `Fit`."""
    del groups
    [(a, e)] = _learn(vectors, data, settings.space, seed, (settings.passes or PASSES[0],))
    slope, at, mean = _lines(_cosines(vectors, a, e), data)
    slope = slope * (1.0 if settings.believe is None else settings.believe)
    return RouterDcStrategy(
        data.models,
        e.astype(np.float32),
        slope.astype(np.float32),
        (mean - slope * at).astype(np.float32),
        link="unit",
        projection=a.astype(np.float32),
    )


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: RouterDcSettings, groups: NDArray[np.intp], progress: Progress
) -> RouterDcSettings:
    """See `Choose`: passes with the least squared error on one fold, learned on the others, and how far lines hold there."""
    stops = (settings.passes,) if settings.passes else PASSES
    split = next(folds(groups, seed), None)
    if split is None:
        return settings.model_copy(update={"passes": stops[0], "believe": 1.0})
    learn, check = split
    part, judge = data.take(learn), data.take(check)
    tried = []
    for passes, (a, e) in zip(stops, _learn(vectors[learn], part, settings.space, seed, stops), strict=True):
        slope, at, mean = _lines(_cosines(vectors[learn], a, e), part)
        predicted = mean + slope * (_cosines(vectors[check], a, e) - at)
        believe = calibration_slope(predicted, judge.scores, judge.known)
        calibrated = mean + believe * (predicted - mean)
        tried.append((squared_error(calibrated, judge.scores, judge.known), passes, believe))
    error, passes, believe = min(tried)
    believe = believe if settings.believe is None else settings.believe
    progress(f"{passes} passes, slopes times {believe:.2f}; squared error {error / max(int(judge.known.sum()), 1):.4f}")
    return RouterDcSettings(space=settings.space, passes=passes, believe=round(believe, 6))


TRAINER = Trainer("routerdc", RouterDcSettings, fit, choose)
