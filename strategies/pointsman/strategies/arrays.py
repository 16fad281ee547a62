"""Checks on the arrays and parameters that a bundle brings, with errors that name the offender."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pointsman.errors import BundleError
from pointsman.strategies.base import Arrays, Matrix, Params

__all__ = ["ArraySpec", "ParamsModel", "check_arrays", "check_params", "finite"]

ArraySpec = tuple[tuple[str, ...], tuple[str | int, ...]]
"""Allowed dtypes and a shape; a name in the shape stands for one length that is the same wherever the name stands."""


class ParamsModel(BaseModel):
    """Base of the parameters of encoders and strategies."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=ParamsModel)


def check_params(model: type[M], params: Params, where: str) -> M:
    """Validate parameters.

    Raises:
        BundleError: E4306.
    """
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"{where}: parameter {key!r}: {first['msg']}", code="E4306", where=f"manifest.json {where}"
        ) from error


def check_arrays(
    arrays: Arrays, specs: Mapping[str, ArraySpec], where: str, dims: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Check names, dtypes, shapes and that every float is finite.

    Args:
        arrays: what the bundle holds.
        specs: what it must hold, no more and no less.
        where: for messages, e.g. `encoder`.
        dims: lengths known beforehand.

    Returns:
        The length that each name in the shapes turned out to stand for.

    Raises:
        BundleError: E4307 (names, types, shapes), E4308 (NaN or infinity).
    """
    known: dict[str, int] = dict(dims or {})
    if set(arrays) != set(specs):
        missing, surplus = sorted(set(specs) - set(arrays)), sorted(set(arrays) - set(specs))
        raise BundleError(f"{where}: arrays missing: {missing}, unknown: {surplus}", code="E4307", where=where)
    for name, (dtypes, shape) in specs.items():
        array = arrays[name]
        if array.dtype.name not in dtypes:
            raise BundleError(
                f"array {name!r} is {array.dtype.name}, not {' or '.join(dtypes)}", code="E4307", where=f"{where} {name}"
            )
        if array.ndim != len(shape):
            raise BundleError(f"array {name!r} has {array.ndim} axes, not {len(shape)}", code="E4307", where=f"{where} {name}")
        for axis, (length, wanted) in enumerate(zip(array.shape, shape, strict=True)):
            expected = known.setdefault(wanted, length) if isinstance(wanted, str) else wanted
            if length != expected:
                raise BundleError(
                    f"array {name!r} has shape {array.shape}; axis {axis} must be {expected} ({wanted})",
                    code="E4307",
                    where=f"{where} {name}",
                )
        if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
            raise BundleError(f"array {name!r} holds NaN or infinity", code="E4308", where=f"{where} {name}")
    return known


LARGEST = 1e30
"""Of a score. Far beyond any that means something, and sums of several stay finite."""


def finite(scores: NDArray[Any]) -> Matrix:
    """Scores as float32 that are finite whatever the weights were: absurd ones may overflow, and then say nothing (0)."""
    with np.errstate(over="ignore"):
        return np.nan_to_num(scores.astype(np.float32), nan=0.0, posinf=LARGEST, neginf=-LARGEST)
