"""`none`: looks at no text. For strategies that prefer the same model always, whatever is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params

__all__ = ["NoEncoder"]


class NoEncoder:
    """See the module. Its vectors have one dimension, which is zero."""

    kind: ClassVar[str] = "none"

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return 1

    def encode(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder.encode`."""
        return np.zeros((len(texts), 1), np.float32)

    def params(self) -> dict[str, Any]:
        """None."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """None."""
        return {}

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        check_params(ParamsModel, params, "encoder")
        check_arrays(arrays, {}, "encoder")
        return cls()
