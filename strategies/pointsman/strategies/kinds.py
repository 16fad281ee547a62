"""Which encoders and strategies exist, by the `kind` that manifests name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pointsman.strategies.base import Encoder, Strategy
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.encoders.nothing import NoEncoder
from pointsman.strategies.encoders.tfidf import TfidfEncoder
from pointsman.strategies.knn import KnnStrategy

__all__ = ["ENCODERS", "STRATEGIES"]

ENCODERS: Mapping[str, type[Encoder]] = MappingProxyType(
    {
        kind.kind: kind
        for kind in (
            HashingEncoder,
            NoEncoder,
            TfidfEncoder,
        )
    }
)
STRATEGIES: Mapping[str, type[Strategy]] = MappingProxyType({kind.kind: kind for kind in (KnnStrategy,)})
