"""`mf`: matrix factorisation of the scores: prompts and models meet in a latent space of r dimensions.

For the vector x of a prompt and the model m, value_m = p_m . (T x) + b_m, with T of shape (r, d) and p_m of length r. Nothing
stands between T and p_m, so a bundle holds their product, one matrix W = P T of shape (m, d), and scores are W x + b.

LLMRouter's `MFRouter` is the bilinear model of RouteLLM (Ong et al., 2024): w . (p_m / |p_m| * (T x)), which is such a W as
well (b = 0, `link` identity: only the order means something). Ours (`pointsman.mlops.trainers.mf`) fits scores (`link` unit).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale
from pointsman.strategies.links import Link, apply_link, scale_of

__all__ = ["MfStrategy"]


class MfParams(ParamsModel):
    link: Link


class MfStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        weights: float32 (m, d), W.
        bias: float32 (m,), b.
        link: from value to score.
    """

    kind: ClassVar[str] = "mf"

    def __init__(self, models: tuple[str, ...], weights: NDArray[np.float32], bias: NDArray[np.float32], link: Link) -> None:
        self._models, self._weights, self._bias, self._link = models, weights, bias, link

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
        """Expected scores where it was fitted on scores; else ranks."""
        return scale_of(self._link)

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        with np.errstate(all="ignore"):  # absurd weights overflow; `apply_link` makes numbers of that
            return apply_link(vectors @ self._weights.T + self._bias, self._link)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"link": self._link}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"weights": self._weights, "bias": self._bias}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(MfParams, params, "strategy")
        specs = {"weights": (("float32",), ("models", "dimensions")), "bias": (("float32",), ("models",))}
        check_arrays(arrays, specs, "strategy", {"models": len(models)})
        return cls(models, arrays["weights"], arrays["bias"], checked.link)
