"""`hashing`: signed feature hashing, which learns nothing and needs no data.

Each feature adds or subtracts its weight at one of `dimensions` places, by bits of its hash (Weinberger et al.: "Feature
hashing for large scale multitask learning", ICML 2009). Inner products are then right on average; their error falls with the
square root of `dimensions`. For a strategy trained on data `tfidf` is the better choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params
from pointsman.strategies.encoders.features import features

__all__ = ["HashingEncoder", "unit"]


class HashingParams(ParamsModel):
    dimensions: Annotated[int, Field(ge=1, le=65_536)]


def unit(vectors: Matrix) -> Matrix:
    """Scale each row to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)


class HashingEncoder:
    """See the module. `dimensions`: 1 to 65,536."""

    kind: ClassVar[str] = "hashing"

    def __init__(self, dimensions: int = 1024) -> None:
        self._dimensions = check_params(HashingParams, {"dimensions": dimensions}, "encoder").dimensions

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._dimensions

    def encode(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder.encode`."""
        vectors = np.zeros((len(texts), self._dimensions), np.float32)
        for row, text in enumerate(texts):
            found, counts = np.unique(features(text), return_counts=True)
            places = (found % np.uint64(self._dimensions)).astype(np.intp)
            signs = np.where(found >> np.uint64(63), -1.0, 1.0)
            weights = (1.0 + np.log(counts)) * signs
            vectors[row] = np.bincount(places, weights=weights, minlength=self._dimensions)
        return unit(vectors)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"dimensions": self._dimensions}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """None: nothing is learned."""
        return {}

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        check_arrays(arrays, {}, "encoder")
        return cls(check_params(HashingParams, params, "encoder").dimensions)
