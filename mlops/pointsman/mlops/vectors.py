"""From prompts to the vectors that strategies learn from: which encoder, fitted on what."""

from __future__ import annotations

from pathlib import Path

from pointsman.errors import BundleError, ConfigError
from pointsman.mlops.data import Dataset
from pointsman.mlops.lsa import fit_tfidf
from pointsman.strategies.base import Encoder, Matrix
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.encoders.file import is_encoder_file, load_encoder
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.encoders.nothing import NoEncoder

__all__ = ["FITTED", "Vectors", "encoder_from_bundle", "ready_encoder"]

FITTED = {"tfidf": 192, "hashing": 1024, "none": 1}
"""Encoders that training makes itself, and their dimensions by default."""


def encoder_from_bundle(path: Path) -> Encoder:
    """An encoder file's encoder, or a bundle's, so that another strategy can be trained on, or imported to, the same vectors.

    Raises:
        BundleError, SourceError: see `load_bundle`.
    """
    return load_encoder(path) if is_encoder_file(path) else load_bundle(path).encoder


def ready_encoder(name: str) -> Encoder:
    """An encoder that needs no fitting: `none`, `hashing`, `hashing:768`, or that of a bundle (a path that ends in `.zip`).

    Raises:
        ConfigError: E4204, there is no such encoder.
        BundleError, SourceError: see `load_bundle`.
    """
    kind, _, number = name.partition(":")
    if name == "none":
        return NoEncoder()
    if kind == "hashing" and (not number or number.isdecimal()):
        return HashingEncoder(int(number or FITTED["hashing"]))
    if name.endswith(".zip"):
        return encoder_from_bundle(Path(name))
    raise ConfigError(
        f"there is no encoder {name!r} that is ready to use",
        code="E4204",
        where="--encoder",
        mend="none, hashing, hashing:DIMENSIONS, or the path of a bundle whose encoder is taken",
    )


class Vectors:
    """Makes an encoder for some rows, and their vectors.

    Args:
        encoder: `tfidf` (fitted on the rows), `hashing`, `none`, or one that is ready and learns nothing more.
        dimensions: of the vectors, for those that are made here; by default `FITTED`.
        seed: of the fit.

    Raises:
        BundleError: E4320, there is no such encoder.
    """

    def __init__(self, encoder: str | Encoder, dimensions: int | None, seed: int) -> None:
        if isinstance(encoder, str) and encoder not in FITTED:
            raise BundleError(
                f"encoder={encoder!r}: training makes {', '.join(FITTED)}", code="E4320", where="arguments encoder"
            )
        self._encoder, self._dimensions, self._seed = encoder, dimensions, seed

    def __call__(self, data: Dataset) -> tuple[Encoder, Matrix]:
        """An encoder, and the vectors of `data` by it: float32 (n, d).

        Raises:
            BundleError: E4320, no text has a word.
        """
        encoder = self._encoder if not isinstance(self._encoder, str) else self._make(self._encoder, data)
        return encoder, encoder.encode(data.queries)

    def _make(self, kind: str, data: Dataset) -> Encoder:
        dimensions = self._dimensions or FITTED[kind]
        if kind == "none":
            return NoEncoder()
        if kind == "hashing":
            return HashingEncoder(dimensions)
        try:
            return fit_tfidf(data.queries, dimensions, seed=self._seed)
        except ValueError as error:
            raise BundleError(str(error), code="E4320", where="queries") from error
