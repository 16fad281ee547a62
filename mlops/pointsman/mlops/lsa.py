"""Fits the `tfidf` encoder: a vocabulary, its weights, and the projection by a truncated singular value decomposition.

The decomposition is the randomised one with power iterations (Halko, Martinsson, Tropp, 2011) on a sparse matrix, in plain
NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pointsman.strategies.base import Matrix
from pointsman.strategies.encoders.features import features
from pointsman.strategies.encoders.tfidf import TfidfEncoder

__all__ = ["fit_tfidf"]

MAX_VOCABULARY = 16_384
OVERSAMPLE = 32
POWER_ITERATIONS = 4
DENSE_ROWS = 512
"""Up to so many rows the decomposition is exact."""
BLOCK = 512


@dataclass(frozen=True, slots=True)
class _Sparse:
    """Compressed rows: row i has `values[starts[i]:starts[i + 1]]` at the columns `columns[...]`."""

    starts: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: NDArray[np.float32]
    width: int

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    def times(self, dense: Matrix) -> Matrix:
        """The product with a dense matrix (width, d), block by block: the products of a block are held in memory."""
        result = np.zeros((self.rows, dense.shape[1]), np.float32)
        for begin in range(0, self.rows, BLOCK):
            end = min(begin + BLOCK, self.rows)
            low, high = self.starts[begin], self.starts[end]
            if low == high:
                continue
            products = dense[self.columns[low:high]] * self.values[low:high, None]
            offsets = self.starts[begin:end] - low
            filled = np.flatnonzero(self.starts[begin + 1 : end + 1] > self.starts[begin:end])
            result[begin + filled] = np.add.reduceat(products, offsets[filled], axis=0)
        return result

    def transposed(self) -> _Sparse:
        row_of = np.repeat(np.arange(self.rows), np.diff(self.starts))
        order = np.argsort(self.columns, kind="stable")
        starts = np.concatenate((np.zeros(1, np.intp), np.cumsum(np.bincount(self.columns, minlength=self.width))))
        return _Sparse(starts.astype(np.intp), row_of[order], self.values[order], self.rows)

    def dense(self) -> Matrix:
        result = np.zeros((self.rows, self.width), np.float32)
        result[np.repeat(np.arange(self.rows), np.diff(self.starts)), self.columns] = self.values
        return result


def fit_tfidf(texts: Sequence[str], dimensions: int = 192, *, seed: int = 0) -> TfidfEncoder:
    """Fit the encoder on `texts`.

    Args:
        texts: at least one with a word in it.
        dimensions: of the projection; fewer if the texts span fewer.
        seed: of the randomised decomposition.

    Raises:
        ValueError: no text has a word.
    """
    found = [np.unique(features(text)) for text in texts]
    names, counts = np.unique(np.concatenate(found), return_counts=True)
    if not names.size:
        raise ValueError("no text has a word")
    often = counts >= (2 if len(texts) >= 100 else 1)  # what stands in one text says nothing of others
    if not often.any():
        often[:] = True
    names, counts = names[often], counts[often]
    if names.size > MAX_VOCABULARY:
        most = np.sort(np.lexsort((names, -counts))[:MAX_VOCABULARY])
        names, counts = names[most], counts[most]
    idf = (np.log((1 + len(texts)) / (1 + counts)) + 1).astype(np.float32)
    bare = TfidfEncoder(names, idf, np.zeros((names.size, 1), np.float16))
    weighted = [bare.weights(text) for text in texts]
    starts = np.concatenate((np.zeros(1, np.intp), np.cumsum([index.size for index, _ in weighted])))
    matrix = _Sparse(
        starts.astype(np.intp),
        np.concatenate([index for index, _ in weighted]),
        np.concatenate([values for _, values in weighted]),
        names.size,
    )
    return TfidfEncoder(names, idf, _right_vectors(matrix, dimensions, seed).astype(np.float16))


def _orthonormal(vectors: Matrix) -> Matrix:
    """An orthonormal basis of the columns' span, by the eigenvectors of their Gram matrix, twice for accuracy.

    For tall matrices this is matrix products only, some twenty times faster than Householder's QR; directions that rounding
    drowns are left out.
    """
    for _ in range(2):
        values, turns = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
        good = values > 1e-10 * values[-1]
        vectors = vectors @ (turns[:, good] / np.sqrt(values[good])).astype(np.float32)
    return vectors


def _right_vectors(matrix: _Sparse, dimensions: int, seed: int) -> Matrix:
    """The first right singular vectors as columns, (width, at most `dimensions`), each with its largest entry positive."""
    if min(matrix.rows, matrix.width) <= max(DENSE_ROWS, dimensions + OVERSAMPLE):
        _, values, right = np.linalg.svd(matrix.dense(), full_matrices=False)
    else:
        transposed = matrix.transposed()
        start = np.random.default_rng(seed).standard_normal((matrix.width, dimensions + OVERSAMPLE), np.float32)
        basis = _orthonormal(matrix.times(start))
        for _ in range(POWER_ITERATIONS):
            basis = _orthonormal(matrix.times(_orthonormal(transposed.times(basis))))
        projected = transposed.times(basis).T
        squares, left = np.linalg.eigh((projected @ projected.T).astype(np.float64))
        values = np.sqrt(np.maximum(squares[::-1], 0.0))
        right = left[:, ::-1].T.astype(np.float32) @ projected / np.maximum(values, 1e-12)[:, None]
    count = min(dimensions, int((values > 1e-5 * values[0]).sum()))
    vectors: Matrix = right[:count].T
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(count)])
    result: Matrix = (vectors * signs).astype(np.float32)
    return result
