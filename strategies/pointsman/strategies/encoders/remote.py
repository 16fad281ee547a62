"""`remote`: an embedding model of the gateway's own. A text leaves the machine for a decision; it waits, under a deadline.

What is here is the part that a bundle holds: the model's name, and the vectors of the probes, so that a bundle can be verified
with no network. Serving is `pointsman.strategies.embedding`. Of a text the first `max_characters` count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pointsman.errors import BundleError
from pointsman.strategies.arrays import ArraySpec, ParamsModel, check_arrays, check_params
from pointsman.strategies.base import Arrays, Matrix, Params, UnavailableError
from pointsman.strategies.encoders.hashing import unit
from pointsman.strategies.encoders.text import head

__all__ = ["RemoteEncoder", "RemoteParams"]


class RemoteParams(ParamsModel):
    """`model`: as a request to the gateway would name it."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    dimensions: Annotated[int, Field(ge=1, le=65_536)]
    max_characters: Annotated[int, Field(ge=1, le=100_000)] = 8192
    timeout_ms: Annotated[float, Field(gt=0, le=10_000)] = 1000.0
    cache: Annotated[int, Field(ge=0, le=65_536)] = 4096


class RemoteEncoder:
    """See the module.

    Args:
        params: see `RemoteParams`.
        known: SHA-256 of a text as it is sent -> its vector.
        embed: texts to vectors, for training; a gateway has none here.
    """

    kind: ClassVar[str] = "remote"

    def __init__(
        self,
        params: RemoteParams,
        known: dict[bytes, NDArray[np.float32]] | None = None,
        embed: Callable[[Sequence[str]], Matrix] | None = None,
    ) -> None:
        self.settings = params
        self._known = dict(known or {})
        self._embed = embed

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.settings.dimensions

    def sent(self, text: str) -> str:
        """What of a text is sent."""
        return head(text, self.settings.max_characters)

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Vectors of texts that are known (a bundle's probes), or with the trainer's `embed`.

        Raises:
            UnavailableError: `remote_only`: a text is not known, and nothing here may wait for a network.
        """
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        cut = [self.sent(text) for text in texts]
        missing = [row for row, text in enumerate(cut) if text and _key(text) not in self._known]
        if missing:
            if self._embed is None:
                raise UnavailableError("remote_only", f"{self.settings.model} is asked by the gateway only, not here")
            for row, vector in zip(
                missing, self.checked(self._embed([cut[row] for row in missing]), len(missing)), strict=True
            ):
                vectors[row] = vector
        for row, text in enumerate(cut):
            if text and (vector := self._known.get(_key(text))) is not None:
                vectors[row] = vector
        return vectors

    def checked(self, answer: Any, count: int) -> Matrix:
        """A provider's answer as vectors of length 1.

        Raises:
            UnavailableError: `remote_answer`: other numbers than it should have.
        """
        try:
            vectors = np.asarray(answer, np.float32)
        except (ValueError, TypeError, OverflowError):
            vectors = np.empty(0, np.float32)
        if vectors.shape != (count, self.dimensions) or not bool(np.isfinite(vectors).all()):
            raise UnavailableError(
                "remote_answer", f"{self.settings.model} answers {vectors.shape}, not {(count, self.dimensions)} finite numbers"
            )
        return unit(vectors)

    def with_probes(self, texts: Sequence[str]) -> RemoteEncoder:
        """The encoder as a bundle holds it: with the vectors of its probes and of nothing else."""
        vectors = self.encode(texts)
        return RemoteEncoder(
            self.settings, {_key(self.sent(text)): vector for text, vector in zip(texts, vectors, strict=True)}
        )

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""
        return self.settings.model_dump()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""
        keys = sorted(self._known)
        vectors = np.array([self._known[key] for key in keys], np.float32).reshape(len(keys), self.dimensions)
        return {"keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 32), "vectors": vectors}

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""
        checked = check_params(RemoteParams, params, "encoder")
        specs: dict[str, ArraySpec] = {
            "keys": (("uint8",), ("probes", 32)),
            "vectors": (("float32",), ("probes", "dimensions")),
        }
        dims = check_arrays(arrays, specs, "encoder", {"dimensions": checked.dimensions})
        if dims["probes"] > 64:
            raise BundleError("more vectors than a bundle has probes", code="E4307", where="encoder vectors")
        keys = [row.tobytes() for row in arrays["keys"]]
        return cls(checked, dict(zip(keys, arrays["vectors"], strict=True)))


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
