"""The two protocols of this room: an encoder turns text into vectors, a strategy turns vectors into scores.

Both are immutable once made, so any number of threads may use one at the same time. Both are plain data: parameters
(JSON) and arrays (safetensors); neither is ever pickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import PointsmanError

__all__ = [
    "Arrays",
    "AsyncScorer",
    "Encoder",
    "Matrix",
    "Params",
    "Personal",
    "Query",
    "Scale",
    "Strategy",
    "UnavailableError",
    "WithFiles",
]

Matrix: TypeAlias = NDArray[np.float32]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Params: TypeAlias = Mapping[str, Any]
Scale: TypeAlias = Literal["quality", "rank"]
"""What a score means. `quality`: the expected score of the model's answer, in [0, 1], so that a cost can be weighed against it.
`rank`: only the order means something (votes, decision values, similarities); any finite number."""


@runtime_checkable
class Encoder(Protocol):
    """Text to vector."""

    kind: ClassVar[str]

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Vectors of `texts`: float32, (len(texts), dimensions), of length 1, or of zeros where a text says nothing.

        An encoder whose parameters say `unit: false` gives them as they are (`longformer`, whose users learned from such).
        """

    def params(self) -> dict[str, Any]:
        """What `from_parts` needs besides the arrays; JSON values only."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_parts` needs of arrays, by name; empty for an encoder that learns nothing."""

    @classmethod
    def from_parts(cls, params: Params, arrays: Arrays) -> Self:
        """Build it from what a bundle holds.

        Raises:
            BundleError: E4306 (parameters), E4307 (names, shapes, types of arrays).
        """


@runtime_checkable
class WithFiles(Protocol):
    """An encoder that brings files for native code besides its arrays: `model.onnx`, `tokenizer.json`."""

    def digests(self) -> Mapping[str, str]:
        """Name -> SHA-256 of each file. `assemble.encoder_digest` covers them."""

    def files(self) -> dict[str, bytes]:
        """Name -> content, for making a bundle.

        Raises:
            BundleError: they were put away.
        """

    def put_files_away(self) -> None:
        """Forget the contents: an encoder that only serves needs them no longer."""

    @classmethod
    def from_files(cls, params: Params, arrays: Arrays, files: Mapping[str, bytes]) -> Encoder:
        """As `Encoder.from_parts`; also E4315, a file is not accepted."""


@runtime_checkable
class Strategy(Protocol):
    """Vector to scores."""

    kind: ClassVar[str]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the candidates, in the order of the scores' columns."""

    @property
    def dimensions(self) -> int:
        """Length of the vectors that it wants; 0: any."""

    @property
    def scale(self) -> Scale:
        """What its scores mean."""

    def score(self, vectors: Matrix) -> Matrix:
        """Higher is better, see `Scale`: float32, (len(vectors), len(models)). Always finite."""

    def params(self) -> dict[str, Any]:
        """See `Encoder.params`."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See `Encoder.arrays`."""

    @classmethod
    def from_parts(cls, models: tuple[str, ...], params: Params, arrays: Arrays) -> Self:
        """See `Encoder.from_parts`."""


@runtime_checkable
class Personal(Protocol):
    """A strategy that knows users. Without one, or for one that it does not know, it answers as `Strategy.score` does."""

    def score_for(self, vectors: Matrix, users: Sequence[str | None]) -> Matrix:
        """As `Strategy.score`; `users` has a name or None for each row."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a strategy may look at.

    Attributes:
        text: of the request, as `strategies.<name>.text` composes it; never empty.
        user: who asks (the request's `user`, else the key's), or None.
        group: model group that the client asked for.
    """

    text: str
    user: str | None = None
    group: str = ""


class UnavailableError(PointsmanError):
    """A strategy cannot decide now; `reason` (one word: `starting`, `worker_died`, `worker_memory`, ...) goes into
    `x-pointsman-fallback` and the metric."""

    default_code = "E4710"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@runtime_checkable
class AsyncScorer(Protocol):
    """A strategy that waits for something: another process, a plugin, a remote encoder. Declared so, and under a deadline."""

    version: str
    kind: str
    models: tuple[str, ...]
    """Empty: it answers with names of its own, which are matched with the candidates."""

    @property
    def scale(self) -> Scale:
        """See `Strategy.scale`."""

    async def score_async(self, query: Query) -> Mapping[str, float]:
        """Model -> score. May be cancelled at any await, and must clean up then.

        Raises:
            UnavailableError: it cannot decide now.
        """
