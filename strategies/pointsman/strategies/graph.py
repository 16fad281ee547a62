"""`graph`: a graph of prompts and models, learned before and frozen; a new prompt is one node more, which changes nothing else.

In LLMRouter's `GraphRouter` (after GraphRouter, Feng et al., 2024) edges run from prompts to models only, and those of the new
prompt are hidden. So the models' states h_m (H,) come from the training set alone, and the new node is its own features,
a = A z + c: score_m = logistic(mean(a * h_m)), which is one affine map a model, of the weights W_m = A^T h_m / H and the bias
c . h_m / H, on z, the vector x as its MinMaxScaler changes it. That scaler is fitted on the training vectors *and* x, so with
low and high the training columns' ends, z = (x - min(low, x)) / range for range = max(high, x) - min(low, x), where a range
below 10 eps counts as 1 (scikit-learn's rule: a dimension that never varied jumps to 0 or 1 by the sign of x).

Ours (`pointsman.mlops.trainers.graph`) smooths scores over the graph of similar prompts and fits the affine maps to that; there
z = x (`scaled` false), and scores are qualities.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ArraySpec, ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale
from pointsman.strategies.links import Link, apply_link, scale_of

__all__ = ["GraphStrategy"]

NARROW = np.float32(10) * np.finfo(np.float32).eps


class GraphParams(ParamsModel):
    link: Link
    scaled: bool


class GraphStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        weights: float32 (m, d), W.
        bias: float32 (m,).
        link: from value to score.
        ends: float32 (2, d), low and high of each dimension; None: vectors are taken as they are.
    """

    kind: ClassVar[str] = "graph"

    def __init__(
        self,
        models: tuple[str, ...],
        weights: NDArray[np.float32],
        bias: NDArray[np.float32],
        link: Link,
        ends: NDArray[np.float32] | None = None,
    ) -> None:
        self._models, self._weights, self._bias, self._link, self._ends = models, weights, bias, link, ends

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int(self._weights.shape[1])

    @property
    def scale(self) -> Scale:
        """Expected scores where it was fitted on scores; else ranks (LLMRouter's tell how likely a model is the first best)."""
        return scale_of(self._link)

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        with np.errstate(all="ignore"):  # absurd weights overflow; `apply_link` makes numbers of that
            placed = vectors if self._ends is None else _scaled(vectors, self._ends)
            return apply_link(placed @ self._weights.T + self._bias, self._link)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"link": self._link, "scaled": self._ends is not None}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        ends = {} if self._ends is None else {"ends": self._ends}
        return {"weights": self._weights, "bias": self._bias, **ends}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(GraphParams, params, "strategy")
        specs: dict[str, ArraySpec] = {
            "weights": (("float32",), ("models", "dimensions")),
            "bias": (("float32",), ("models",)),
        }
        if checked.scaled:
            specs["ends"] = (("float32",), (2, "dimensions"))
        check_arrays(arrays, specs, "strategy", {"models": len(models)})
        ends = arrays["ends"] if checked.scaled else None
        if ends is not None and bool((ends[0] > ends[1]).any()):
            raise BundleError("a dimension's low end is above its high end", code="E4307", where="strategy ends")
        return cls(models, arrays["weights"], arrays["bias"], checked.link, ends)


def _scaled(vectors: Matrix, ends: NDArray[np.float32]) -> Matrix:
    """z of the module, in scikit-learn's order of operations: x * (1 / range) - low * (1 / range)."""
    low, high = np.minimum(ends[0], vectors), np.maximum(ends[1], vectors)
    width = high - low
    factor = np.float32(1) / np.where(width < NARROW, np.float32(1), width)
    result: Matrix = vectors * factor - low * factor
    return result
