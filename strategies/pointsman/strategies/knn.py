"""`knn`: the score of a model for a prompt is the mean of its scores for the k most similar prompts, weighted by similarity.

This is the mode `regression`, our trainer's; LLMRouter's is `classifier` (`pointsman.strategies.knn_classifier`).

For the candidate m and neighbours i with cosine s_i, weights w_i = max(s_i, 0): score_m = sum(w_i y_im) / sum(w_i) over the
neighbours that have a score of m. Each model has a value of its own, so that ties between models do not depend on an order of
rows. Where no neighbour knows a model, or nothing is similar, it is the model's mean over all rows.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale

__all__ = ["KnnStrategy"]

PRIOR_WEIGHT = 1e-6
"""Weight of a model's overall mean beside its neighbours': decides only where they have none."""

TIE = 1e-6
"""Neighbours less than this worse than the k-th count as well: equal prompts (copies in the data) must not be cut by row order,
nor by the last bits of a matrix product, which differ between machines."""

BLOCK = 256
SIMILARITIES = 2**24
"""Prompts of a batch that are compared at once, and similarities that are held at once (64 MiB)."""


class KnnParams(ParamsModel):
    k: Annotated[int, Field(ge=1, le=1_000_000)]


class KnnStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        vectors: (n, d) floating, of length 1 (or zero), kept as float32.
        scores: float32 (n, m) in [0, 1]; a missing one is any number where `known` is 0.
        known: uint8 (n, m), 1 where there is a score.
        k: how many neighbours count; more than n means all.
    """

    kind: ClassVar[str] = "knn"

    def __init__(
        self, models: tuple[str, ...], vectors: NDArray[Any], scores: NDArray[np.float32], known: NDArray[np.uint8], k: int
    ) -> None:
        self._models, self._k = models, k
        self._stored = vectors
        self._vectors = np.ascontiguousarray(vectors, np.float32)
        self._scores, self._known = scores, known
        present = known.astype(np.float32)
        self._weights = np.concatenate((scores * present, present), axis=1)  # one product gives both sums
        count = present.sum(axis=0, dtype=np.float64)
        total = self._weights[:, : len(models)].sum(axis=0, dtype=np.float64)
        self._prior: Matrix = np.divide(total, count, out=np.full(len(models), 0.5), where=count > 0).astype(np.float32)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int(self._vectors.shape[1])

    @property
    def scale(self) -> Scale:
        """Means of scores."""
        return "quality"

    @property
    def prior(self) -> Matrix:
        """Each model's mean over all rows, (m,)."""
        return self._prior

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        block = max(1, min(BLOCK, SIMILARITIES // len(self._vectors)))
        blocks = [self._score(vectors[start : start + block]) for start in range(0, len(vectors), block)]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self._models)), np.float32)

    def _score(self, vectors: Matrix) -> Matrix:
        # One row is a matrix-vector product, which reads the index once and needs no copy of it.
        similar: Matrix = (self._vectors @ vectors[0])[None] if len(vectors) == 1 else vectors @ self._vectors.T
        rows, m = similar.shape[1], len(self._models)
        scores: Matrix = np.empty((len(vectors), m), np.float32)
        for number, line in enumerate(similar):
            if self._k < rows:
                threshold = np.partition(line, rows - self._k)[rows - self._k] - TIE
                near = np.flatnonzero(line >= threshold)
            else:
                near = np.arange(rows)
            sums = np.maximum(line[near], 0.0) @ self._weights[near]
            scores[number] = (sums[:m] + PRIOR_WEIGHT * self._prior) / (sums[m:] + PRIOR_WEIGHT)
        return np.clip(scores, 0.0, 1.0, out=scores)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"k": self._k}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"vectors": self._stored, "scores": self._scores, "known": self._known}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        if params.get("mode") == "classifier":
            from pointsman.strategies.knn_classifier import KnnClassifier  # a subclass, which imports this module

            return cast("Self", KnnClassifier.from_parts(models, params, arrays))
        checked = check_params(KnnParams, params, "strategy")
        specs = {
            "vectors": (("float16", "float32"), ("rows", "dimensions")),
            "scores": (("float32",), ("rows", "models")),
            "known": (("uint8",), ("rows", "models")),
        }
        dims = check_arrays(arrays, specs, "strategy", {"models": len(models)})
        if not dims["rows"] or not dims["dimensions"]:
            raise BundleError("the strategy has no rows, or empty ones", code="E4307", where="strategy vectors")
        scores, known = arrays["scores"], arrays["known"]
        if float(scores.min()) < 0 or float(scores.max()) > 1:
            raise BundleError("a score is outside [0, 1]", code="E4307", where="strategy scores")
        if int(known.max()) > 1:
            raise BundleError("array 'known' holds other values than 0 and 1", code="E4307", where="strategy known")
        return cls(models, arrays["vectors"], scores, known, checked.k)
