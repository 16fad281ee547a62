"""`routerdc`: prompts and models in one space; the one that points the prompt's way wins (Chen et al.: RouterDC, 2024).

For the vector x of a prompt: z = A x (A of shape (k, d); without one z = x), value_m = cos(z, e_m), or z . e_m where
`similarity` is `inner`, divided by a temperature. LLMRouter's `DCRouter` is this without A, with x the first token's state of
its encoder (mDeBERTa); only the order means something. Ours (`pointsman.mlops.trainers.routerdc`) learns A and e on frozen
vectors, and a line from similarity to score for each model: slope_m value_m + offset_m, cut to [0, 1].
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.strategies.arrays import ArraySpec, ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale
from pointsman.strategies.links import Link, apply_link, scale_of

__all__ = ["RouterDcStrategy", "Similarity"]

Similarity = Literal["cos", "inner"]


class RouterDcParams(ParamsModel):
    similarity: Similarity
    temperature: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
    link: Link
    projected: bool


class RouterDcStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        embeddings: float32 (m, k), e.
        slope, offset: float32 (m,) each; 1 and 0 leave the similarity as it is.
        similarity, temperature, link: see the module.
        projection: float32 (k, d), A; None: k = d.
    """

    kind: ClassVar[str] = "routerdc"

    def __init__(
        self,
        models: tuple[str, ...],
        embeddings: NDArray[np.float32],
        slope: NDArray[np.float32],
        offset: NDArray[np.float32],
        *,
        similarity: Similarity = "cos",
        temperature: float = 1.0,
        link: Link = "identity",
        projection: NDArray[np.float32] | None = None,
    ) -> None:
        self._models, self._embeddings, self._slope, self._offset = models, embeddings, slope, offset
        self._similarity, self._temperature, self._link, self._projection = similarity, temperature, link, projection
        # Made here and not in a request; the bundle holds the embeddings as they were trained.
        self._targets = _directions(embeddings) if similarity == "cos" else embeddings

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int((self._embeddings if self._projection is None else self._projection).shape[1])

    @property
    def scale(self) -> Scale:
        """Expected scores where lines to scores were fitted; else ranks."""
        return scale_of(self._link)

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        with np.errstate(all="ignore"):  # absurd weights overflow; `apply_link` makes numbers of that
            placed = vectors if self._projection is None else vectors @ self._projection.T
            if self._similarity == "cos":
                placed = _directions(placed)
            values = (placed @ self._targets.T) / np.float32(self._temperature) * self._slope + self._offset
            return apply_link(values.astype(np.float32, copy=False), self._link)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {
            "similarity": self._similarity,
            "temperature": self._temperature,
            "link": self._link,
            "projected": self._projection is not None,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        projection = {} if self._projection is None else {"projection": self._projection}
        return {"embeddings": self._embeddings, "slope": self._slope, "offset": self._offset, **projection}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(RouterDcParams, params, "strategy")
        specs: dict[str, ArraySpec] = {
            "embeddings": (("float32",), ("models", "space")),
            "slope": (("float32",), ("models",)),
            "offset": (("float32",), ("models",)),
        }
        if checked.projected:
            specs["projection"] = (("float32",), ("space", "dimensions"))
        check_arrays(arrays, specs, "strategy", {"models": len(models)})
        return cls(
            models,
            arrays["embeddings"],
            arrays["slope"],
            arrays["offset"],
            similarity=checked.similarity,
            temperature=checked.temperature,
            link=checked.link,
            projection=arrays["projection"] if checked.projected else None,
        )


def _directions(rows: NDArray[np.float32]) -> Matrix:
    """Rows of length 1, in float64 inside, so that neither huge nor tiny ones overflow; a row of zeros stays one."""
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    result: Matrix = (wide / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return result
