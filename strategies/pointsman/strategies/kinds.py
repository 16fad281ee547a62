"""Which encoders and strategies exist, by the `kind` that manifests name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pointsman.strategies.base import Encoder, Strategy
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.encoders.nothing import NoEncoder
from pointsman.strategies.encoders.tfidf import TfidfEncoder
from pointsman.strategies.graph import GraphStrategy
from pointsman.strategies.hybrid import HybridStrategy
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.mf import MfStrategy
from pointsman.strategies.personalized import PersonalizedStrategy
from pointsman.strategies.routerdc import RouterDcStrategy

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
STRATEGIES: Mapping[str, type[Strategy]] = MappingProxyType(
    {
        kind.kind: kind
        for kind in (
            GraphStrategy,
            HybridStrategy,
            KnnStrategy,
            MfStrategy,
            PersonalizedStrategy,
            RouterDcStrategy,
        )
    }
)
