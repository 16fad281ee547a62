"""Kernels of support vector machines, as libsvm defines them (Chang and Lin, 2011)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.strategies.arrays import ParamsModel

__all__ = ["Kernel", "KernelParams"]


class KernelParams(ParamsModel):
    """Of a kernel k(x, v): `linear` x.v; `poly` (gamma x.v + coef0)^degree; `rbf` exp(-gamma |x - v|^2); `sigmoid`
    tanh(gamma x.v + coef0)."""

    kernel: Literal["linear", "poly", "rbf", "sigmoid"]
    gamma: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 1.0
    coef0: Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)] = 0.0
    degree: Annotated[int, Field(ge=0, le=20)] = 3


class Kernel:
    """A kernel against s stored vectors. Immutable, thread-safe.

    Args:
        params: which one.
        vectors: float32 or float64 (s, d); products are computed in that precision.
    """

    def __init__(self, params: KernelParams, vectors: NDArray[Any]) -> None:
        self._params, self._vectors = params, np.ascontiguousarray(vectors)
        # Twice, because a row's squared length is subtracted from numbers of its own size: it must not be rounded first.
        self._lengths = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64) if params.kernel == "rbf" else None

    def __call__(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """k(v, x), float64 (s, n), for n queries (n, d)."""
        params, vectors = self._params, self._vectors
        rows = queries.astype(vectors.dtype, copy=False)
        # One row is a matrix-vector product, which reads the vectors once.
        products = (vectors @ rows[0])[:, None] if len(rows) == 1 else vectors @ rows.T
        inner: NDArray[np.float64] = products.astype(np.float64)
        if params.kernel == "linear":
            return inner
        if self._lengths is not None:
            own = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
            inner *= 2
            inner -= self._lengths[:, None]
            inner -= own
            np.minimum(inner, 0, out=inner)
            inner *= params.gamma
            np.exp(inner, out=inner)
            return inner
        inner *= params.gamma
        inner += params.coef0
        if params.kernel == "sigmoid":
            np.tanh(inner, out=inner)
        else:
            np.power(inner, params.degree, out=inner)
        return inner
