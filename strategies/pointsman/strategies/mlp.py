"""`mlp`: a small neural network from the vector to a number for each model.

Layers of h -> f(h W^T + b) with the activation f, and a last one without. The numbers are expected scores, cut to [0, 1]
(`output: score`, our trainer's), or logits of a classifier, of which only the order means something (`output: logits`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params, finite
from pointsman.strategies.base import Arrays, Matrix, Params, Scale

__all__ = ["Activation", "MlpStrategy", "Output"]

Activation = Literal["relu", "tanh", "logistic", "identity"]
Output = Literal["score", "logits"]
MAX_LAYERS = 8


def _logistic(values: Matrix) -> Matrix:
    result: Matrix = (1 / (1 + np.exp(-values))).astype(np.float32, copy=False)
    return result


_ACTIVATIONS: Mapping[str, Callable[[Matrix], Matrix]] = MappingProxyType(
    {
        "relu": lambda values: np.maximum(values, 0, out=values),
        "tanh": lambda values: np.tanh(values, out=values),
        "logistic": _logistic,
        "identity": lambda values: values,
    }
)


class MlpParams(ParamsModel):
    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    activation: Activation
    output: Output


class MlpStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        weights: float32 (out, in) of each layer; `in` of the first is d, `out` of the last is m.
        biases: float32 (out,) of each layer.
        activation: between layers.
        output: what the last one gives.
    """

    kind: ClassVar[str] = "mlp"

    def __init__(
        self,
        models: tuple[str, ...],
        weights: Sequence[Matrix],
        biases: Sequence[NDArray[np.float32]],
        activation: Activation,
        output: Output,
    ) -> None:
        self._models, self._activation, self._output = models, activation, output
        self._weights, self._biases = tuple(weights), tuple(biases)
        self._between = _ACTIVATIONS[activation]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int(self._weights[0].shape[1])

    @property
    def scale(self) -> Scale:
        """By `output`."""
        return "quality" if self._output == "score" else "rank"

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = vectors
            for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
                values = self._between(values @ weight.T + bias)
            scores = finite(values @ self._weights[-1].T + self._biases[-1])
        return np.clip(scores, 0.0, 1.0) if self._output == "score" else scores

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"layers": len(self._weights), "activation": self._activation, "output": self._output}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`: `weight.0`, `bias.0`, `weight.1`, ..."""
        return {
            name: array
            for number, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True))
            for name, array in ((f"weight.{number}", weight), (f"bias.{number}", bias))
        }

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(MlpParams, params, "strategy")
        specs: dict[str, tuple[tuple[str, ...], tuple[str | int, ...]]] = {}
        for number in range(checked.layers):
            out = f"width {number}" if number < checked.layers - 1 else "models"
            inward = f"width {number - 1}" if number else "dimensions"
            specs[f"weight.{number}"] = (("float32",), (out, inward))
            specs[f"bias.{number}"] = (("float32",), (out,))
        dims = check_arrays(arrays, specs, "strategy", {"models": len(models)})
        if not all(dims.values()):
            raise BundleError("a layer is empty", code="E4307", where="strategy")
        numbers = range(checked.layers)
        return cls(
            models,
            [arrays[f"weight.{number}"] for number in numbers],
            [arrays[f"bias.{number}"] for number in numbers],
            checked.activation,
            checked.output,
        )
