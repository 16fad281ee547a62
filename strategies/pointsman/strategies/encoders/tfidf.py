"""`tfidf`: TF-IDF over hashed words and word pairs, projected to a few hundred dimensions (latent semantic analysis).

Weights are (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1); the projection is the right singular vectors of the training matrix
(Deerwester et al., 1990). The vocabulary is kept as 64-bit hashes: two features share one with a probability of some 1e-11,
a bundle reveals no text, and features that were never seen are left out exactly, whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params
from pointsman.strategies.encoders.features import Features, features
from pointsman.strategies.encoders.hashing import unit

__all__ = ["TfidfEncoder"]


class TfidfParams(ParamsModel):
    pass


class TfidfEncoder:
    """See the module.

    Args:
        vocabulary: uint64 (v,), hashes of the known features, rising.
        idf: float32 (v,), their weights.
        projection: float16 or float32 (v, d). Half precision suffices: it costs 1e-3 of a vector and halves the bundle.
    """

    kind: ClassVar[str] = "tfidf"

    def __init__(self, vocabulary: Features, idf: NDArray[np.float32], projection: NDArray[Any]) -> None:
        self._vocabulary, self._idf, self._projection = vocabulary, idf, projection

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self._projection.shape[1])

    def weights(self, text: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """The known features of a text (indices into the vocabulary, rising) and their TF-IDF weights, of length 1 together."""
        found, counts = np.unique(features(text), return_counts=True)
        at = np.searchsorted(self._vocabulary, found)
        known = self._vocabulary[np.minimum(at, self._vocabulary.size - 1)] == found
        index = at[known]
        values = (1.0 + np.log(counts[known])) * self._idf[index]
        length = np.sqrt(np.dot(values, values))
        return index, (values / length if length > 0 else values).astype(np.float32)

    def encode(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder.encode`."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            index, values = self.weights(text)
            if index.size:
                vectors[row] = values @ self._projection[index].astype(np.float32)
        return unit(vectors)

    def params(self) -> dict[str, Any]:
        """None: the arrays say everything."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"vocabulary": self._vocabulary, "idf": self._idf, "projection": self._projection}

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        check_params(TfidfParams, params, "encoder")
        specs = {
            "vocabulary": (("uint64",), ("features",)),
            "idf": (("float32",), ("features",)),
            "projection": (("float16", "float32"), ("features", "dimensions")),
        }
        dims = check_arrays(arrays, specs, "encoder")
        vocabulary = arrays["vocabulary"]
        if not dims["features"] or not dims["dimensions"]:
            raise BundleError("the encoder has no features or no dimensions", code="E4307", where="encoder")
        if not bool((vocabulary[1:] > vocabulary[:-1]).all()):
            raise BundleError("array 'vocabulary' must rise strictly", code="E4307", where="encoder vocabulary")
        return cls(vocabulary, arrays["idf"], arrays["projection"])
