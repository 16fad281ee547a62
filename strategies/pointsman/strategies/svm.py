"""`svm`: sums of kernels over stored vectors.

Two modes. `regression` (our trainer's): for each model the expected score, sum over i of c_im k(v_i, x) + b_m, cut to
[0, 1]. `classifier` (LLMRouter's, from scikit-learn's SVC): one decision for each pair of models, each a vote.

For the classifier's pair i < j, with the dual coefficients a of libsvm's layout (row j - 1 for the support vectors of i, row i
for those of j): d_ij = sum over SV_i of a[j-1] k + sum over SV_j of a[i] k + b_ij; d_ij > 0 is a vote for i, else for j. A
model's score is its votes + s / (3 (|s| + 1)) where s is the sum of its decisions (scikit-learn's one-vs-rest decision
function). The most votes win; where several models have them the first one does, as libsvm has it, and its score is then
votes + 1/2; with `break_ties` the higher score does.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.arrays import check_arrays, check_params, finite
from pointsman.strategies.base import Arrays, Matrix, Params, Scale
from pointsman.strategies.kernels import Kernel, KernelParams

__all__ = ["SvmParams", "SvmStrategy"]

BLOCK = 64
"""Rows of a batch at once; bounds the memory of kernels."""
MAX_CLASSES = 256
"""Of a classifier: pairs of them are what it computes."""


class SvmParams(KernelParams):
    mode: Literal["regression", "classifier"]
    break_ties: bool = False


class SvmStrategy:
    """See the module. Immutable, thread-safe.

    Args:
        models: names of the m candidates.
        vectors: float32 or float64 (s, d).
        coefficients: float64; (s, m) for regression, (m - 1, s) for a classifier, whose vectors stand model by model.
        bias: float64; (m,) for regression, (m (m - 1) / 2,) for a classifier, pairs (0, 1), (0, 2), ... (m - 2, m - 1).
        support: int64 (m,), how many vectors each model has; all zero for regression.
        params: mode and kernel.
    """

    kind: ClassVar[str] = "svm"

    def __init__(
        self,
        models: tuple[str, ...],
        vectors: NDArray[Any],
        coefficients: NDArray[np.float64],
        bias: NDArray[np.float64],
        support: NDArray[np.int64],
        params: SvmParams,
    ) -> None:
        self._models, self._params, self._support = models, params, support
        self._vectors, self._coefficients, self._bias = vectors, coefficients, bias
        self._kernel = Kernel(params, vectors)
        self._ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(support)))
        self._pairs = np.triu_indices(len(models), 1)
        self._by_model = np.ascontiguousarray(coefficients.T) if params.mode == "regression" else coefficients

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""
        return self._models

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants."""
        return int(self._vectors.shape[1])

    @property
    def scale(self) -> Scale:
        """By mode."""
        return "quality" if self._params.mode == "regression" else "rank"

    def score(self, vectors: Matrix) -> Matrix:
        """See `Strategy.score`."""
        with np.errstate(over="ignore", invalid="ignore"):
            blocks = [self._score(vectors[start : start + BLOCK]) for start in range(0, len(vectors), BLOCK)]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self._models)), np.float32)

    def _score(self, vectors: Matrix) -> Matrix:
        kernel = self._kernel(vectors)
        if self._params.mode == "regression":
            return np.clip(finite((self._by_model @ kernel).T + self._bias), 0.0, 1.0)
        return finite(self._votes(self._decide(kernel)))

    def decisions(self, vectors: Matrix) -> NDArray[np.float64]:
        """The decision of each pair of a classifier, positive for the first of it: float64 (n, m (m - 1) / 2)."""
        return self._decide(self._kernel(vectors))

    def _decide(self, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        m, ends = len(self._models), self._ends
        # sums[i]: what the support vectors of model i say in its contests with each of the others, (m - 1, n).
        sums = np.stack([self._coefficients[:, ends[i] : ends[i + 1]] @ kernel[ends[i] : ends[i + 1]] for i in range(m)])
        first, second = self._pairs
        return (sums[first, second - 1] + sums[second, first]).T + self._bias

    def _votes(self, decisions: NDArray[np.float64]) -> NDArray[np.float64]:
        n, m = len(decisions), len(self._models)
        first, second = self._pairs
        contest, won = np.zeros((n, m, m)), np.zeros((n, m, m))
        contest[:, first, second], contest[:, second, first] = decisions, -decisions
        won[:, first, second] = decisions > 0
        won[:, second, first] = 1 - won[:, first, second]
        sums, votes = contest.sum(axis=2), won.sum(axis=2)
        scores: NDArray[np.float64] = votes + sums / (3 * (np.abs(sums) + 1))
        if not self._params.break_ties:
            rows = np.arange(n)
            winners = votes.argmax(axis=1)
            tied = scores.argmax(axis=1) != winners
            scores[rows[tied], winners[tied]] = votes[rows[tied], winners[tied]] + 0.5
        return scores

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return self._params.model_dump()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {
            "vectors": self._vectors,
            "coefficients": self._coefficients,
            "bias": self._bias,
            "support": self._support,
        }

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(SvmParams, params, "strategy")
        m = len(models)
        classifier = checked.mode == "classifier"
        if classifier and not 2 <= m <= MAX_CLASSES:
            raise BundleError(
                f"a classifier of {m} models; from 2 to {MAX_CLASSES} are possible", code="E4306", where="manifest.json models"
            )
        dims = check_arrays(
            arrays,
            {
                "vectors": (("float32", "float64"), ("rows", "dimensions")),
                "coefficients": (("float64",), (m - 1, "rows") if classifier else ("rows", m)),
                "bias": (("float64",), (m * (m - 1) // 2 if classifier else m,)),
                "support": (("int64",), (m,)),
            },
            "strategy",
        )
        support = arrays["support"]
        if not dims["rows"] or not dims["dimensions"]:
            raise BundleError("the strategy has no rows", code="E4307", where="strategy vectors")
        # Each is at most the whole before they are added: a sum of int64 may wrap around.
        if int(support.min()) < 0 or int(support.max()) > dims["rows"] or int(support.sum()) != classifier * dims["rows"]:
            raise BundleError("array 'support' does not divide the rows", code="E4307", where="strategy support")
        return cls(models, arrays["vectors"], arrays["coefficients"], arrays["bias"], support, checked)
