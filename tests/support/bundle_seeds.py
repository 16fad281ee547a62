"""A small good bundle of every kind of strategy and of every encoder, in each of their forms: what the fuzzer begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pointsman.mlops.lsa import fit_tfidf
from pointsman.strategies.base import Encoder, Strategy
from pointsman.strategies.bundle import build_bundle
from pointsman.strategies.constant import LargestStrategy, SmallestStrategy
from pointsman.strategies.elo import EloStrategy
from pointsman.strategies.encoders.concat import ConcatEncoder
from pointsman.strategies.encoders.hashing import HashingEncoder, unit
from pointsman.strategies.encoders.nothing import NoEncoder
from pointsman.strategies.encoders.onnx import LongformerEncoder, MinilmEncoder
from pointsman.strategies.encoders.remote import RemoteEncoder, RemoteParams
from pointsman.strategies.ensemble import EnsembleStrategy, Member
from pointsman.strategies.graph import GraphStrategy
from pointsman.strategies.hybrid import HybridStrategy
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.knn_classifier import KnnClassifier, KnnClassifierParams
from pointsman.strategies.linear import LinearStrategy
from pointsman.strategies.manifest import Provenance
from pointsman.strategies.mf import MfStrategy
from pointsman.strategies.mlp import MlpStrategy
from pointsman.strategies.personalized import PersonalizedStrategy, user_hashes
from pointsman.strategies.routerdc import RouterDcStrategy
from pointsman.strategies.svm import SvmParams, SvmStrategy
from support.encoders import tiny_onnx, tiny_static

__all__ = ["ENCODER_SEEDS", "NATIVE_SEEDS", "STRATEGY_SEEDS", "seed_bundle", "seed_bundles"]

MODELS = ("a", "b", "c")
ROWS, D = 12, 8
SALT = "0123456789abcdef" * 2
PROBES = ("What is an alpha particle?", "beta gamma")


def _floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _vectors(d: int) -> Any:
    return unit(_floats(ROWS, d))


def _knn(d: int) -> Strategy:
    scores = np.random.default_rng(1).random((ROWS, 3)).astype(np.float32)
    return KnnStrategy(MODELS, _vectors(d).astype(np.float16), scores, np.ones((ROWS, 3), np.uint8), 4)


def _knn_classifier(d: int) -> Strategy:
    params = KnnClassifierParams(mode="classifier", k=4, weights="distance")
    return KnnClassifier(MODELS, _vectors(d), (np.arange(ROWS) % 3).astype(np.int32), params)


def _svc(d: int) -> Strategy:
    params = SvmParams(mode="classifier", kernel="rbf", gamma=1.0)
    coefficients = _floats(2, ROWS).astype(np.float64)
    return SvmStrategy(MODELS, _vectors(d), coefficients, np.zeros(3), np.array([4, 4, 4], np.int64), params)


def _kernel_ridge(d: int) -> Strategy:
    params = SvmParams(mode="regression", kernel="poly", gamma=0.5, coef0=1.0)
    coefficients = _floats(ROWS, 3).astype(np.float64) / ROWS
    return SvmStrategy(MODELS, _vectors(d), coefficients, np.full(3, 0.5), np.zeros(3, np.int64), params)


def _mlp(d: int) -> Strategy:
    weights = [_floats(5, d), _floats(3, 5)]
    return MlpStrategy(MODELS, weights, [_floats(5), _floats(3)], "relu", "logits")


def _linear(d: int) -> Strategy:
    return LinearStrategy(MODELS, _floats(d, 3), _floats(3), "logistic")


def _hybrid(d: int) -> Strategy:
    layers = ((_floats(d, 4), _floats(4)), (_floats(4, 1), _floats(1)))
    return HybridStrategy(("a", "b"), layers, "relu", "keep", 0.5)


def _graph(d: int) -> Strategy:
    ends = np.stack((np.zeros(d), np.arange(d) % 2)).astype(np.float32)
    return GraphStrategy(MODELS, _floats(3, d), _floats(3), "logistic", ends)


def _routerdc(d: int) -> Strategy:
    lines = np.abs(_floats(3)), _floats(3)
    return RouterDcStrategy(MODELS, _floats(3, 5), *lines, link="unit", projection=_floats(5, d))


def _users() -> Any:
    return np.sort(user_hashes(SALT, ("ann", "bob", "cy")))


def _personalized(d: int) -> Strategy:
    parts = {
        "weights": _floats(3, d),
        "bias": _floats(3),
        "centre": np.full(3, 0.5, np.float32),
        "scales": np.abs(_floats(3)),
        "shifts": _floats(3, 3),
    }
    return PersonalizedStrategy(MODELS, "shift", SALT, _users(), parts)


def _personalized_graph(d: int) -> Strategy:
    parts = {"projection": _floats(4, d), "states": _floats(3, 3, 4), "bias": _floats(3, 3)}
    return PersonalizedStrategy(MODELS, "graph", SALT, _users(), parts)


def _ensemble(d: int) -> Strategy:
    return EnsembleStrategy(MODELS, [Member(make(d), 0, d, 0.5) for make in (_knn, _svc, _personalized)], "standard")


STRATEGY_SEEDS: Mapping[str, Callable[[int], Strategy]] = {
    "knn": _knn,
    "knn classifier": _knn_classifier,
    "svm": _svc,
    "svm regression": _kernel_ridge,
    "mlp": _mlp,
    "mf": lambda d: MfStrategy(MODELS, _floats(3, d), _floats(3), "unit"),
    "elo": lambda _: EloStrategy(MODELS, np.array([990.0, 1010.0, 1000.0])),
    "hybrid": _hybrid,
    "graph": _graph,
    "routerdc": _routerdc,
    "personalized": _personalized,
    "personalized graph": _personalized_graph,
    "smallest": lambda _: SmallestStrategy(MODELS, np.array([7.0, 8.0, 70.0])),
    "largest": lambda _: LargestStrategy(MODELS, np.array([7.0, 8.0, 70.0])),
    "linear": _linear,
    "ensemble": _ensemble,
}
"""The first word is the kind. Vectors' length -> strategy."""

ENCODER_SEEDS: Mapping[str, Callable[[], Encoder]] = {
    "hashing": lambda: HashingEncoder(D),
    "none": NoEncoder,
    "tfidf": lambda: fit_tfidf([*PROBES, "alpha beta gamma delta", "what is a particle"], 4),
    "static": tiny_static,
    "concat": lambda: ConcatEncoder([HashingEncoder(5), fit_tfidf([*PROBES, "alpha beta gamma"], 3)]),
    "remote": lambda: RemoteEncoder(
        RemoteParams(model="embedder", dimensions=4), embed=lambda texts: unit(_floats(len(texts), 4))
    ),
}
"""By kind: those whose files native code does not parse."""

NATIVE_SEEDS: Mapping[str, Callable[[], Encoder]] = {
    "minilm": lambda: tiny_onnx(MinilmEncoder),
    "longformer": lambda: tiny_onnx(LongformerEncoder),
    "onnx": tiny_onnx,
}
"""By kind: those that are verified in a process of their own."""


def seed_bundle(strategy: str, encoder: str) -> bytes:
    """One bundle."""
    made = (ENCODER_SEEDS.get(encoder) or NATIVE_SEEDS[encoder])()
    return build_bundle(
        name="seed",
        version="1",
        encoder=made,
        strategy=STRATEGY_SEEDS[strategy](made.dimensions),
        provenance=Provenance(code_version="test", seed=0, rows=ROWS),
        probe_texts=PROBES,
    )


def seed_bundles() -> dict[str, bytes]:
    """Every strategy with one encoder, every encoder with one strategy; but for native ones."""
    pairs = [(strategy, "hashing") for strategy in STRATEGY_SEEDS]
    pairs += [("linear", encoder) for encoder in ENCODER_SEEDS if encoder != "hashing"]
    return {f"{strategy} on {encoder}": seed_bundle(strategy, encoder) for strategy, encoder in pairs}
