"""Trains `mlp`: a network that predicts the scores of all models at once.

Squared error over what is known, Adam with decoupled weight decay (Kingma and Ba, 2015; Loshchilov and Hutter, 2019), in
NumPy. How many epochs, and how much decay, is chosen on folds; the bundle's network is then trained for so many on all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers.base import Progress, Settings, Trainer, folds
from pointsman.strategies.base import Matrix
from pointsman.strategies.mlp import Activation, MlpStrategy

__all__ = ["TRAINER", "MlpSettings"]

DECAYS = (0.03, 0.3, 1.0)
PATIENCE = 8
CHECKED_FOLDS = 2
"""Enough to tell when learning turns into memory; each is a whole training."""


class MlpSettings(Settings):
    """`hidden`: widths of the layers between. `epochs`, `decay`: by default chosen on folds; `epochs` is then the most."""

    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(max_length=4)] = (64,)
    activation: Activation = "relu"
    rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    batch: Annotated[int, Field(ge=1, le=10_000)] = 64
    epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    decay: Annotated[float, Field(ge=0, le=100)] | None = None


class _Network:
    """Weights, and what Adam remembers of them."""

    def __init__(self, sizes: list[int], activation: Activation, means: Matrix, random: np.random.Generator) -> None:
        self.activation = activation
        self.weights = [
            (random.standard_normal((out, inward)) * np.sqrt(2 / inward)).astype(np.float32) for inward, out in pairwise(sizes)
        ]
        self.biases = [np.zeros(out, np.float32) for out in sizes[1:]]
        self.weights[-1] *= np.float32(0.1)  # begin near the models' means
        self.biases[-1] = means.copy()
        self._moments = [(np.zeros_like(part), np.zeros_like(part)) for part in (*self.weights, *self.biases)]
        self._step = 0

    def learn(self, rows: Matrix, scores: Matrix, known: Matrix, rate: float, decay: float) -> None:
        """One step on a batch."""
        layers = [rows]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layers.append(self._between(layers[-1] @ weight.T + bias))
        error = (layers[-1] @ self.weights[-1].T + self.biases[-1] - scores) * known
        error *= np.float32(2 / max(len(rows), 1))
        gradients: list[tuple[Matrix, Matrix]] = []
        for number in range(len(self.weights) - 1, -1, -1):
            gradients.append((error.T @ layers[number], error.sum(axis=0)))
            if number:
                error = (error @ self.weights[number]) * self._slope(layers[number])
        gradients.reverse()
        self._step += 1
        flat = [weight for weight, _ in gradients] + [bias for _, bias in gradients]
        for place, (part, gradient) in enumerate(zip((*self.weights, *self.biases), flat, strict=True)):
            first, second = self._moments[place]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            mean, power = first / (1 - 0.9**self._step), second / (1 - 0.999**self._step)
            shrink = np.float32(1 - rate * decay if place < len(self.weights) else 1)
            part[...] = shrink * part - np.float32(rate) * mean / (np.sqrt(power) + np.float32(1e-8))

    def _between(self, values: Matrix) -> Matrix:
        if self.activation == "relu":
            return np.maximum(values, 0)
        if self.activation == "tanh":
            return np.tanh(values)
        if self.activation == "logistic":
            return (1 / (1 + np.exp(-values))).astype(np.float32)
        return values

    def _slope(self, values: Matrix) -> Matrix:
        """Of the activation, told from its value."""
        if self.activation == "relu":
            return (values > 0).astype(np.float32)
        if self.activation == "tanh":
            return 1 - values * values
        if self.activation == "logistic":
            return values * (1 - values)
        return np.ones_like(values)


def _train(
    vectors: Matrix,
    data: Dataset,
    settings: MlpSettings,
    epochs: int,
    decay: float,
    seed: int,
    watch: Callable[[int, MlpStrategy], bool] = lambda epoch, strategy: True,
) -> MlpStrategy:
    """The network after so many epochs; `watch` is shown it after each, and may end the training by False."""
    random = np.random.default_rng(seed)
    known = data.known.astype(np.float32)
    counts = known.sum(axis=0)
    means = np.divide((data.scores * known).sum(axis=0), counts, out=np.full(counts.shape, 0.5, np.float32), where=counts > 0)
    network = _Network([vectors.shape[1], *settings.hidden, len(data.models)], settings.activation, means, random)
    strategy = _strategy(data, network)
    for epoch in range(1, epochs + 1):
        order = random.permutation(len(vectors))
        for start in range(0, len(order), settings.batch):
            rows = order[start : start + settings.batch]
            network.learn(vectors[rows], data.scores[rows], known[rows], settings.rate, decay)
        strategy = _strategy(data, network)
        if not watch(epoch, strategy):
            break
    return strategy


def _strategy(data: Dataset, network: _Network) -> MlpStrategy:
    weights, biases = [part.copy() for part in network.weights], [part.copy() for part in network.biases]
    return MlpStrategy(data.models, weights, biases, network.activation, "score")


def fit(vectors: Matrix, data: Dataset, *, seed: int, settings: MlpSettings, groups: NDArray[np.intp]) -> MlpStrategy:
    """See `Fit`."""
    del groups
    decay = DECAYS[0] if settings.decay is None else settings.decay
    return _train(vectors, data, settings, settings.epochs or 20, decay, seed)


def choose(
    vectors: Matrix, data: Dataset, *, seed: int, settings: MlpSettings, groups: NDArray[np.intp], progress: Progress
) -> MlpSettings:
    """See `Choose`: the mean error of two folds after each epoch, until neither falls any more."""
    if settings.epochs is not None and settings.decay is not None:
        return settings
    parts = list(folds(groups, seed))[:CHECKED_FOLDS]
    most = settings.epochs or 100
    best: tuple[float, int, float] | None = None
    for decay in DECAYS if settings.decay is None else (settings.decay,):
        curves = [_curve(vectors, data, settings, most, decay, seed, part) for part in parts]
        length = min((len(curve) for curve in curves), default=0)
        for epoch in range(length):
            found = (sum(curve[epoch] for curve in curves), epoch + 1, decay)
            best = found if best is None or found < best else best
    if best is None:
        return settings.model_copy(update={"epochs": 20, "decay": DECAYS[0] if settings.decay is None else settings.decay})
    error, epochs, decay = best
    progress(f"{epochs} epochs, decay {decay:g}; squared error {error / len(parts):.4f}")
    return settings.model_copy(update={"epochs": epochs, "decay": decay})


def _curve(
    vectors: Matrix,
    data: Dataset,
    settings: MlpSettings,
    most: int,
    decay: float,
    seed: int,
    part: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> list[float]:
    """The squared error on the rows held out, after each epoch."""
    learn, check = part
    judge, errors = data.take(check), list[float]()

    def watch(epoch: int, strategy: MlpStrategy) -> bool:
        squared = (strategy.score(vectors[check]) - judge.scores) ** 2
        errors.append(float(squared[judge.known].mean(dtype=np.float64)) if judge.known.any() else 0.0)
        return epoch - int(np.argmin(errors)) <= PATIENCE

    _train(vectors[learn], data.take(learn), settings, most, decay, seed, watch)
    return errors


TRAINER = Trainer("mlp", MlpSettings, fit, choose)
