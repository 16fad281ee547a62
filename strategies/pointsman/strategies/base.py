"""The two protocols of this room: an encoder turns text into vectors, a strategy turns vectors into scores.

Both are immutable once made, so any number of threads may use one at the same time. Both are plain data: parameters
(JSON) and arrays (safetensors); neither is ever pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Encoder", "Matrix", "Params", "Strategy"]

Matrix: TypeAlias = NDArray[np.float32]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Params: TypeAlias = Mapping[str, Any]


@runtime_checkable
class Encoder(Protocol):
    """Text to vector."""

    kind: ClassVar[str]

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Vectors of `texts`: float32, (len(texts), dimensions), of length 1, or of zeros where a text says nothing."""

    def params(self) -> dict[str, Any]:
        """What `from_parts` needs besides the arrays; JSON values only."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_parts` needs of arrays, by name; empty for an encoder that learns nothing."""

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """Build it from what a bundle holds.

        Raises:
            BundleError: E4306 (parameters), E4307 (names, shapes, types of arrays).
        """


@runtime_checkable
class Strategy(Protocol):
    """Vector to scores."""

    kind: ClassVar[str]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants; 0: any."""

    def score(self, vectors: Matrix) -> Matrix:
        """Expected quality in [0, 1]: float32, (len(vectors), len(models)). Always finite."""

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
