"""`linear`: the score of a model is a weighted sum of the vector's entries, one set of weights a model.

score = x W + b, as it is (`identity`, from ridge regression) or through 1 / (1 + exp(-z)) (`logistic`); cut to [0, 1].
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params, finite
from pointsman.strategies.base import Arrays, Matrix, Params, Scale

__all__ = ["LinearStrategy", "Link"]

Link = Literal["identity", "logistic"]


class LinearParams(ParamsModel):
    link: Link


class LinearStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        weights: float32 (d, m).
        bias: float32 (m,).
        link: what the sum goes through.
    """

    kind: ClassVar[str] = "linear"

    def __init__(self, models: tuple[str, ...], weights: Matrix, bias: NDArray[np.float32], link: Link) -> None:
        self._models, self._weights, self._bias, self._link = models, weights, bias, link

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int(self._weights.shape[0])

    @property
    def scale(self) -> Scale:
        """Expected scores."""
        return "quality"

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        with np.errstate(over="ignore", invalid="ignore"):
            scores = vectors @ self._weights + self._bias
            if self._link == "logistic":
                scores = 1 / (1 + np.exp(-scores))
        return np.clip(finite(scores), 0.0, 1.0)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"link": self._link}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"weights": self._weights, "bias": self._bias}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(LinearParams, params, "strategy")
        specs = {"weights": (("float32",), ("dimensions", "models")), "bias": (("float32",), ("models",))}
        if not check_arrays(arrays, specs, "strategy", {"models": len(models)})["dimensions"]:
            raise BundleError("array 'weights' is empty", code="E4307", where="strategy weights")
        return cls(models, arrays["weights"], arrays["bias"], checked.link)
