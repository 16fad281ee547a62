"""`smallest` and `largest`: the order of the models' sizes, whatever is asked.

Of equal sizes the one that stands first in `models` is preferred. Scores are the places: 1 for the first of m, then
1 - 1/m, and so on.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale

__all__ = ["LargestStrategy", "SmallestStrategy"]


class _BySize:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        sizes: float64 (m,), billions of parameters, not negative.
    """

    kind: ClassVar[str]
    direction: ClassVar[float]

    def __init__(self, models: tuple[str, ...], sizes: NDArray[np.float64]) -> None:
        self._models, self._sizes = models, sizes
        places = np.empty(len(models), np.intp)
        places[np.argsort(self.direction * sizes, kind="stable")] = np.arange(len(models))
        self._row: Matrix = (1 - places / len(models)).astype(np.float32)[None]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Any: it looks at no vector."""
        return 0

    @property
    def scale(self) -> Scale:
        """Places."""
        return "rank"

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        return np.repeat(self._row, len(vectors), axis=0)

    def params(self) -> dict[str, Any]:
        """None."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"sizes": self._sizes}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        check_params(ParamsModel, params, "strategy")
        check_arrays(arrays, {"sizes": (("float64",), ("models",))}, "strategy", {"models": len(models)})
        if float(arrays["sizes"].min()) < 0:
            raise BundleError("a size is negative", code="E4307", where="strategy sizes")
        return cls(models, arrays["sizes"])


class SmallestStrategy(_BySize):
    """The smallest model first."""

    kind: ClassVar[str] = "smallest"
    direction: ClassVar[float] = 1.0


class LargestStrategy(_BySize):
    """The largest model first."""

    kind: ClassVar[str] = "largest"
    direction: ClassVar[float] = -1.0
