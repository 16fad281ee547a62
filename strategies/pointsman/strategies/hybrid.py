"""`hybrid`: two models; a small regression says whether the weak one will do for the prompt (Ding et al.: Hybrid LLM, 2024).

A feed-forward network gives one value v(x): h_0 = x, h_i = f(W_i h_(i-1) + c_i), and v the last layer's, without f. Two ways
(`mode`) make scores of it, in the order of the candidates (weak, strong):

- `keep`, LLMRouter's: s = v cut to [0, 1] is how sure it is that the weak model is as good; the weak one is taken where s is at
  least the threshold t. The scores are (s, t), t lowered by `TIE` where the two would be equal.
- `gain`, ours: v is the strong model's score less the weak one's, as expected. The strong one is taken where v is above t,
  which is set so that a share of prompts goes there. The scores are (1/2 - g, 1/2 + g) with g = (v - t) / 4.

Only the order of the two means something; scores of the two ways cannot be compared.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ArraySpec, ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale
from pointsman.strategies.links import LIMIT, logistic

__all__ = ["MAX_LAYERS", "Activation", "HybridStrategy", "Mode"]

MAX_LAYERS = 16
TIE = np.float32(1e-6)
"""By how much the weak model leads where value and threshold are equal: more than float32 loses near 1."""

Activation = Literal["identity", "logistic", "tanh", "relu"]
Mode = Literal["keep", "gain"]
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


class HybridParams(ParamsModel):
    mode: Mode
    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    activation: Activation
    threshold: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class HybridStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: the weak one and the strong one.
        layers: weights float32 (inputs, outputs) and bias float32 (outputs,) of each; the last has one output.
        activation: f, between the layers.
        mode: what the value means.
        threshold: t.
    """

    kind: ClassVar[str] = "hybrid"

    def __init__(
        self, models: tuple[str, ...], layers: tuple[Layer, ...], activation: Activation, mode: Mode, threshold: float
    ) -> None:
        self._models, self._layers, self._activation, self._mode, self._threshold = models, layers, activation, mode, threshold

    @property
    def models(self) -> tuple[str, ...]:
        """The weak one and the strong one."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int(self._layers[0][0].shape[0])

    @property
    def scale(self) -> Scale:
        """Ranks: the threshold is part of the scores."""
        return "rank"

    @property
    def threshold(self) -> float:
        """t."""
        return self._threshold

    def value(self, vectors: Matrix) -> NDArray[np.float32]:
        """v, see the module: (len(vectors),)."""
        hidden = vectors
        with np.errstate(all="ignore"):  # absurd weights overflow; what comes of it is cut below
            for number, (weights, bias) in enumerate(self._layers):
                hidden = np.nan_to_num(hidden @ weights + bias, nan=0.0, posinf=float(LIMIT), neginf=-float(LIMIT))
                if number + 1 < len(self._layers):
                    hidden = _activate(hidden, self._activation)
        result: NDArray[np.float32] = np.clip(hidden[:, 0], -LIMIT, LIMIT).astype(np.float32, copy=False)
        return result

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        value, threshold = self.value(vectors), np.float32(self._threshold)
        if self._mode == "keep":
            weak = np.clip(value, np.float32(0), np.float32(1))
            # A threshold of 0 or 1 is met exactly by every value that was cut: the weak model must win there, as upstream.
            strong = np.where(weak >= threshold, np.minimum(threshold, weak - TIE), threshold)
        else:
            gain = (value - threshold) / np.float32(4)
            # Equal goes to the weak one, which is the first.
            weak, strong = np.float32(0.5) - gain, np.float32(0.5) + gain
        return np.stack((weak, strong), axis=1).astype(np.float32, copy=False)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {
            "mode": self._mode,
            "layers": len(self._layers),
            "activation": self._activation,
            "threshold": self._threshold,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        named: dict[str, NDArray[Any]] = {}
        for number, (weights, bias) in enumerate(self._layers):
            named |= {f"weights_{number}": weights, f"bias_{number}": bias}
        return named

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(HybridParams, params, "strategy")
        if len(models) != 2:
            raise BundleError(
                f"a hybrid has two models, the weak one and the strong one, not {len(models)}",
                code="E4306",
                where="manifest.json models",
            )
        lengths = ["dimensions", *(f"layer {number}" for number in range(checked.layers - 1)), "value"]
        specs: dict[str, ArraySpec] = {}
        for number, (inputs, outputs) in enumerate(pairwise(lengths)):
            specs[f"weights_{number}"] = (("float32",), (inputs, outputs))
            specs[f"bias_{number}"] = (("float32",), (outputs,))
        check_arrays(arrays, specs, "strategy", {"value": 1})
        layers = tuple((arrays[f"weights_{number}"], arrays[f"bias_{number}"]) for number in range(checked.layers))
        return cls(models, layers, checked.activation, checked.mode, checked.threshold)


def _activate(values: Matrix, activation: Activation) -> Matrix:
    if activation == "relu":
        return np.maximum(values, np.float32(0))
    if activation == "tanh":
        return np.tanh(values)
    return logistic(values) if activation == "logistic" else values
