"""`static`: one vector a token, looked up and averaged; no network of any kind.

A token's vector is what a sentence encoder says to the token alone, projected and weighted by how rare it is
(`pointsman.mlops.distil`); a text's vector is the mean of its tokens' vectors, of length 1. Tokens come from WordPiece, words
that it does not know count for nothing.

Of a longer text the first `HEAD` and the last `TAIL` characters count, as they do (in bytes) for `hashing` and `tfidf`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params
from pointsman.strategies.encoders.hashing import unit
from pointsman.strategies.encoders.text import ends
from pointsman.strategies.encoders.wordpiece import unpack_vocabulary, wordpiece

__all__ = ["HEAD", "TAIL", "StaticEncoder"]

HEAD, TAIL = 6144, 2048


class StaticParams(ParamsModel):
    lowercase: bool = True


class StaticEncoder:
    """See the module. Immutable, thread-safe.

    Args:
        vocabulary: uint8, tokens as `pack_vocabulary` makes it, v of them.
        table: float16, float32 or int8 (v, d), the tokens' vectors, weights included; a row of zeros counts for nothing.
        scales: float32 (v,), by which each row of an int8 table is multiplied; ones otherwise.
        lowercase: of the tokeniser.
    """

    kind: ClassVar[str] = "static"

    def __init__(
        self, vocabulary: NDArray[np.uint8], table: NDArray[Any], scales: NDArray[np.float32], *, lowercase: bool = True
    ) -> None:
        tokens = unpack_vocabulary(vocabulary)
        if len(tokens) != len(table):
            raise BundleError(f"{len(tokens)} tokens and {len(table)} vectors", code="E4307", where="encoder table")
        self._vocabulary, self._table, self._scales, self._lowercase = vocabulary, table, scales, lowercase
        self._tokenizer = wordpiece(tokens, lowercase=lowercase)

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self._table.shape[1])

    def encode(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder.encode`."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            ids = self._tokenizer.encode(ends(text, HEAD, TAIL), add_special_tokens=False).ids
            if ids:
                # A token's place does not matter, so that each is looked up once, with its number as weight.
                found, counts = np.unique(np.asarray(ids, np.intp), return_counts=True)
                weights = counts.astype(np.float32) * self._scales[found]
                vectors[row] = weights @ self._table[found].astype(np.float32)
        return unit(vectors)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {"lowercase": self._lowercase}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"vocabulary": self._vocabulary, "table": self._table, "scales": self._scales}

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(StaticParams, params, "encoder")
        specs = {
            "vocabulary": (("uint8",), ("bytes",)),
            "table": (("float16", "float32", "int8"), ("tokens", "dimensions")),
            "scales": (("float32",), ("tokens",)),
        }
        dims = check_arrays(arrays, specs, "encoder")
        if not dims["tokens"] or not dims["dimensions"]:
            raise BundleError("the encoder has no tokens or no dimensions", code="E4307", where="encoder table")
        for name in ("scales", "table"):
            if max(abs(float(arrays[name].max())), abs(float(arrays[name].min()))) > 1e6:  # sums must not overflow
                raise BundleError(f"array {name!r} holds a number over 1e6", code="E4307", where=f"encoder {name}")
        return cls(arrays["vocabulary"], arrays["table"], arrays["scales"], lowercase=checked.lowercase)
