"""Which encoders and strategies exist, by the `kind` that manifests name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pointsman.errors import BundleError
from pointsman.strategies.base import Arrays, Encoder, Params, Strategy, WithFiles
from pointsman.strategies.constant import LargestStrategy, SmallestStrategy
from pointsman.strategies.elo import EloStrategy
from pointsman.strategies.encoders.concat import ConcatEncoder
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.encoders.nothing import NoEncoder
from pointsman.strategies.encoders.onnx import LongformerEncoder, MinilmEncoder, OnnxEncoder
from pointsman.strategies.encoders.remote import RemoteEncoder
from pointsman.strategies.encoders.static import StaticEncoder
from pointsman.strategies.encoders.tfidf import TfidfEncoder
from pointsman.strategies.ensemble import EnsembleStrategy
from pointsman.strategies.graph import GraphStrategy
from pointsman.strategies.hybrid import HybridStrategy
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.linear import LinearStrategy
from pointsman.strategies.mf import MfStrategy
from pointsman.strategies.mlp import MlpStrategy
from pointsman.strategies.personalized import PersonalizedStrategy
from pointsman.strategies.routerdc import RouterDcStrategy
from pointsman.strategies.svm import SvmStrategy

__all__ = ["ENCODERS", "STRATEGIES", "make_encoder"]

ENCODERS: Mapping[str, type[Encoder]] = MappingProxyType(
    {
        kind.kind: kind
        for kind in (
            ConcatEncoder,
            HashingEncoder,
            LongformerEncoder,
            MinilmEncoder,
            NoEncoder,
            OnnxEncoder,
            RemoteEncoder,
            StaticEncoder,
            TfidfEncoder,
        )
    }
)
STRATEGIES: Mapping[str, type[Strategy]] = MappingProxyType(
    {
        kind.kind: kind
        for kind in (
            EloStrategy,
            EnsembleStrategy,
            GraphStrategy,
            HybridStrategy,
            KnnStrategy,
            LargestStrategy,
            LinearStrategy,
            MfStrategy,
            MlpStrategy,
            PersonalizedStrategy,
            RouterDcStrategy,
            SmallestStrategy,
            SvmStrategy,
        )
    }
)


def make_encoder(kind: str, params: Params, arrays: Arrays, files: Mapping[str, bytes]) -> Encoder:
    """The encoder of a bundle or of an encoder file.

    Args:
        kind: a key of `ENCODERS`.
        params, arrays, files: what it brings.

    Raises:
        BundleError: as `Encoder.from_parts` and `WithFiles.from_files`; E4306, files for a kind that has none.
    """
    encoder_type = ENCODERS[kind]
    if issubclass(encoder_type, WithFiles):
        return encoder_type.from_files(params, arrays, files)
    if files:
        raise BundleError(f"an encoder of the kind {kind!r} has no files: {sorted(files)}", code="E4306", where="encoder files")
    return encoder_type.from_parts(params, arrays)
