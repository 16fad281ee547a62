"""`concat`: the vectors of several encoders side by side, each multiplied by its weight; for strategies that look at slices.

Members nest one level only. Member i's arrays and files are the bundle's `i.<name>`. With members of length 1 and weights whose
squares sum to 1 the whole has length 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ParamsModel, check_params
from pointsman.strategies.base import Arrays, Encoder, Matrix, Params, WithFiles

__all__ = ["MOST", "ConcatEncoder"]

MOST = 6
"""Members."""


class Member(ParamsModel):
    kind: str
    params: dict[str, Any]
    weight: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ConcatParams(ParamsModel):
    # A tuple in JSON is a list, which a strict model takes for no tuple.
    members: Annotated[list[Member], Field(min_length=2, max_length=MOST)]


class ConcatEncoder:
    """See the module.

    Args:
        members: encoders, no `concat` and no `remote` among them.
        weights: of each, in (0, 1]; by default equal, so that the whole has length 1.

    Raises:
        BundleError: E4306.
    """

    kind: ClassVar[str] = "concat"

    def __init__(self, members: Sequence[Encoder], weights: Sequence[float] | None = None) -> None:
        chosen = tuple(weights) if weights is not None else (float(len(members) ** -0.5),) * len(members)
        if not 2 <= len(members) <= MOST or len(chosen) != len(members):
            raise BundleError(f"2 to {MOST} members with a weight each", code="E4306", where="encoder concat")
        for member in members:
            _check_kind(member.kind)
        self._members, self._weights = tuple(members), chosen

    @property
    def slices(self) -> tuple[slice, ...]:
        """Which columns are whose."""
        ends = np.cumsum([0, *(member.dimensions for member in self._members)]).tolist()
        return tuple(slice(begin, end) for begin, end in pairwise(ends))

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return sum(member.dimensions for member in self._members)

    def encode(self, texts: Sequence[str]) -> Matrix:
        """See `Encoder.encode`."""
        parts = [member.encode(texts) * np.float32(weight) for member, weight in zip(self._members, self._weights, strict=True)]
        return np.concatenate(parts, axis=1)

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return {
            "members": [
                {"kind": member.kind, "params": member.params(), "weight": weight}
                for member, weight in zip(self._members, self._weights, strict=True)
            ]
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        return {f"{i}.{name}": array for i, member in enumerate(self._members) for name, array in member.arrays().items()}

    def digests(self) -> Mapping[str, str]:
        """See `WithFiles.digests`."""
        return {
            f"{i}.{name}": digest
            for i, member in enumerate(self._members)
            if isinstance(member, WithFiles)
            for name, digest in member.digests().items()
        }

    def files(self) -> dict[str, bytes]:
        """See `WithFiles.files`."""
        return {
            f"{i}.{name}": data
            for i, member in enumerate(self._members)
            if isinstance(member, WithFiles)
            for name, data in member.files().items()
        }

    def put_files_away(self) -> None:
        """See `WithFiles.put_files_away`."""
        for member in self._members:
            if isinstance(member, WithFiles):
                member.put_files_away()

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`; for members without files."""
        return cls.from_files(params, arrays, {})

    @classmethod
    def from_files(cls, params: Params, arrays: Arrays, files: Mapping[str, bytes]) -> Self:
        """See `WithFiles.from_files`."""
        from pointsman.strategies.kinds import make_encoder  # which has this class in its table

        checked = check_params(ConcatParams, params, "encoder")
        for member in checked.members:
            _check_kind(member.kind)
        count = len(checked.members)
        of_arrays, of_files = _divide(arrays, count), _divide(files, count)
        members = [
            make_encoder(member.kind, member.params, of_arrays[i], of_files[i]) for i, member in enumerate(checked.members)
        ]
        return cls(members, [member.weight for member in checked.members])


def _check_kind(kind: str) -> None:
    from pointsman.strategies.kinds import ENCODERS

    if kind not in ENCODERS or kind in ("concat", "remote"):
        raise BundleError(f"an encoder {kind!r} cannot be a member of a concat", code="E4306", where="encoder concat members")


def _divide(named: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in named.items():
        number, dot, rest = name.partition(".")
        if not dot or not rest or number not in {str(i) for i in range(count)}:
            raise BundleError(f"{name!r} belongs to no member", code="E4307", where=f"encoder concat {name}")
        parts[int(number)][rest] = value
    return parts
