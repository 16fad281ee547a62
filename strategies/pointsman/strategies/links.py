"""From a model's raw value to its score."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from pointsman.strategies.base import Matrix, Scale

__all__ = ["LIMIT", "Link", "apply_link", "logistic", "scale_of"]

Link: TypeAlias = Literal["identity", "unit", "logistic"]
"""`identity`: the value itself, of which only the order means something. `unit`: cut to [0, 1]. `logistic`: 1 / (1 + e^-v)."""

LIMIT = np.float32(1e30)
"""Raw values are cut to this, so that weights near float32's end never give infinity or NaN."""


def logistic(values: Matrix) -> Matrix:
    """1 / (1 + e^-value) in float32, without overflow; any shape."""
    small = np.exp(-np.abs(values))
    result: Matrix = np.asarray(np.where(values >= 0, np.ones_like(small), small) / (1 + small), np.float32)
    return result


def apply_link(values: Matrix, link: Link) -> Matrix:
    """Scores of raw values, any shape; always finite (NaN, from sums of infinities of both signs, counts as 0)."""
    values = np.clip(np.nan_to_num(values, nan=0.0, posinf=float(LIMIT), neginf=-float(LIMIT)), -LIMIT, LIMIT).astype(
        np.float32, copy=False
    )
    if link == "logistic":
        return logistic(values)
    return np.clip(values, np.float32(0), np.float32(1)) if link == "unit" else values


def scale_of(link: Link) -> Scale:
    """What scores with this link mean: those that were fitted on scores (`unit`) are qualities."""
    return "quality" if link == "unit" else "rank"
