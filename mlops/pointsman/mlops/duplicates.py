"""Groups of near-duplicate prompts, and a split that never puts one group on both sides.

A random split of real traffic tests memory: the same question, a typo apart, stands on both sides. Prompts whose sets of words
and word pairs have a Jaccard similarity of about 0.75 or more form a group, found by MinHash with banding (Broder, 1997).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pointsman.strategies.encoders.features import features, mix

__all__ = ["group", "split"]

HASHES = 64
BANDS = 16
SIMILAR = 0.75
REPRESENTATIVES = 8
"""Prompts of one bucket that a further one is compared with; bounds the work where thousands share a template."""


def _signatures(texts: Sequence[str]) -> NDArray[np.uint64]:
    # Odd multipliers make bijections of 64-bit integers; fixed, so that groups depend on the texts alone.
    numbers = mix(np.arange(1, 2 * HASHES + 1, dtype=np.uint64))
    factors, offsets = numbers[:HASHES, None] | np.uint64(1), numbers[HASHES:, None]
    signatures = np.zeros((len(texts), HASHES), np.uint64)
    for row, text in enumerate(texts):
        found = np.unique(features(text))
        if found.size:
            signatures[row] = mix(found[None, :] * factors + offsets).min(axis=1)
    return signatures


def group(texts: Sequence[str]) -> NDArray[np.intp]:
    """The number of the group that each text belongs to: the row of the group's first text."""
    signatures = _signatures(texts)
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    width = HASHES // BANDS
    for band in range(BANDS):
        buckets: defaultdict[bytes, list[int]] = defaultdict(list)
        for row in range(len(texts)):
            bucket = buckets[signatures[row, band * width : (band + 1) * width].tobytes()]
            for other in bucket:
                if root(row) == root(other):
                    break
                if float((signatures[row] == signatures[other]).mean()) >= SIMILAR:
                    low, high = sorted((root(row), root(other)))
                    parent[high] = low
                    break
            else:
                if len(bucket) < REPRESENTATIVES:
                    bucket.append(row)
    return np.array([root(row) for row in range(len(texts))], np.intp)


def split(groups: NDArray[np.intp], share: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to learn from and rows to hold out, by whole groups chosen at random.

    Args:
        groups: from `group`.
        share: of the rows to hold out, about; a group that would overshoot it by a quarter is left out.
        seed: of the choice.
    """
    names, counts = np.unique(groups, return_counts=True)
    target, taken, held = share * len(groups), 0, []
    for number in np.random.default_rng(seed).permutation(len(names)):
        if taken >= target:
            break
        if taken + counts[number] <= 1.25 * target:
            held.append(names[number])
            taken += int(counts[number])
    mask = np.isin(groups, held)
    return np.flatnonzero(~mask), np.flatnonzero(mask)
