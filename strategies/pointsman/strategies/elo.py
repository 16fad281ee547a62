"""`elo`: the model with the highest rating, whatever is asked.

Ratings are on the scale of Elo: a model with 400 points more wins ten times as often (Bradley and Terry, 1952; Elo, 1978).
Scores are (rating - 1000) / 400, so that single precision loses nothing that matters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, Scale

__all__ = ["POINTS", "START", "EloStrategy"]

START = 1000.0
POINTS = 400.0
LIMIT = 1e6


class EloStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        ratings: float64 (m,), of at most a million points.
    """

    kind: ClassVar[str] = "elo"

    def __init__(self, models: tuple[str, ...], ratings: NDArray[np.float64]) -> None:
        self._models, self._ratings = models, ratings
        self._row: Matrix = ((ratings - START) / POINTS).astype(np.float32)[None]

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
        """Ratings."""
        return "rank"

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        return np.repeat(self._row, len(vectors), axis=0)

    def params(self) -> dict[str, Any]:
        """None."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {"ratings": self._ratings}

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        check_params(ParamsModel, params, "strategy")
        check_arrays(arrays, {"ratings": (("float64",), ("models",))}, "strategy", {"models": len(models)})
        if float(np.abs(arrays["ratings"]).max()) > LIMIT:
            raise BundleError(f"a rating is beyond {LIMIT:g}", code="E4307", where="strategy ratings")
        return cls(models, arrays["ratings"])
