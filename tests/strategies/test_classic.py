"""What holds for each of the strategies here: bundles, one query like many, absurd numbers, hostile arrays, threads, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.strategies.base import Strategy
from pointsman.strategies.bundle import build_bundle, parse_bundle
from pointsman.strategies.constant import LargestStrategy, SmallestStrategy
from pointsman.strategies.elo import EloStrategy
from pointsman.strategies.encoders.hashing import HashingEncoder, unit
from pointsman.strategies.ensemble import EnsembleStrategy, Member
from pointsman.strategies.kinds import STRATEGIES
from pointsman.strategies.knn_classifier import KnnClassifier, KnnClassifierParams
from pointsman.strategies.linear import LinearStrategy
from pointsman.strategies.manifest import Provenance
from pointsman.strategies.mlp import MlpStrategy
from pointsman.strategies.svm import SvmParams, SvmStrategy

MODELS = ("a", "b", "c")
D = 16
Make = Callable[[np.random.Generator, int], Strategy]


def knn_classifier(random: np.random.Generator, rows: int) -> Strategy:
    params = KnnClassifierParams(mode="classifier", k=min(5, rows), weights="distance")
    vectors = unit(random.standard_normal((rows, D)).astype(np.float32))
    return KnnClassifier(MODELS, vectors, random.integers(0, 3, rows).astype(np.int32), params)


def svc(random: np.random.Generator, rows: int) -> Strategy:
    support = np.array([rows - 2 * (rows // 3), rows // 3, rows // 3], np.int64)
    vectors = unit(random.standard_normal((rows, D)).astype(np.float32))
    params = SvmParams(mode="classifier", kernel="rbf", gamma=1.0)
    return SvmStrategy(MODELS, vectors, random.standard_normal((2, rows)), random.standard_normal(3), support, params)


def kernel_ridge(random: np.random.Generator, rows: int) -> Strategy:
    vectors = unit(random.standard_normal((rows, D)).astype(np.float32))
    params = SvmParams(mode="regression", kernel="rbf", gamma=0.5)
    return SvmStrategy(
        MODELS, vectors, random.standard_normal((rows, 3)) / rows, np.full(3, 0.5), np.zeros(3, np.int64), params
    )


def mlp(random: np.random.Generator, rows: int) -> Strategy:
    del rows
    sizes = ((8, D), (4, 8), (3, 4))
    weights = [random.standard_normal(size).astype(np.float32) for size in sizes]
    biases = [random.standard_normal(size[0]).astype(np.float32) for size in sizes]
    return MlpStrategy(MODELS, weights, biases, "relu", "logits")


def linear(random: np.random.Generator, rows: int) -> Strategy:
    del rows
    return LinearStrategy(MODELS, random.standard_normal((D, 3)).astype(np.float32), np.zeros(3, np.float32), "logistic")


def elo(random: np.random.Generator, rows: int) -> Strategy:
    del rows
    return EloStrategy(MODELS, 1000 + 100 * random.standard_normal(3))


def smallest(random: np.random.Generator, rows: int) -> Strategy:
    del rows
    return SmallestStrategy(MODELS, random.integers(1, 4, 3).astype(np.float64))


def largest(random: np.random.Generator, rows: int) -> Strategy:
    del rows
    return LargestStrategy(MODELS, random.integers(1, 4, 3).astype(np.float64))


def ensemble(random: np.random.Generator, rows: int) -> Strategy:
    members = [Member(make(random, rows), 0, D, 0.5) for make in (svc, linear, elo)]
    return EnsembleStrategy(MODELS, members, "standard")


MAKERS: dict[str, Make] = {
    make.__name__: make for make in (knn_classifier, svc, kernel_ridge, mlp, linear, elo, smallest, largest, ensemble)
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def queries(random: np.random.Generator, count: int) -> np.ndarray:
    return unit(random.standard_normal((count, D)).astype(np.float32))


@each
@given(seed=st.integers(0, 10_000), rows=st.integers(3, 60), count=st.integers(0, 9))
def test_one_by_one_like_all_at_once(make: Make, seed: int, rows: int, count: int) -> None:
    random = np.random.default_rng(seed)
    strategy, vectors = make(random, rows), queries(random, count)
    batch = strategy.score(vectors)
    assert (batch.shape, batch.dtype) == ((count, 3), np.float32)
    assert np.isfinite(batch).all()
    if strategy.scale == "quality":
        assert ((batch >= 0) & (batch <= 1)).all()
    for number in range(count):
        np.testing.assert_allclose(strategy.score(vectors[number : number + 1])[0], batch[number], atol=2e-5)


@each
def test_it_survives_a_bundle(make: Make) -> None:
    random = np.random.default_rng(1)
    strategy, encoder = make(random, 30), HashingEncoder(D)
    data = build_bundle(
        name="test",
        version="1",
        encoder=encoder,
        strategy=strategy,
        provenance=Provenance(code_version="0", seed=0, rows=0),
        probe_texts=["one text", "another one"],
    )
    bundle = parse_bundle(data, where="test")
    vectors = queries(random, 50)
    assert np.array_equal(bundle.score_vectors(vectors), strategy.score(vectors))
    assert bundle.scale == strategy.scale
    assert bundle.strategy.params() == strategy.params()


def mutate(random: np.random.Generator, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One array of another shape, type or content, one too many, or one missing."""
    changed = {name: array.copy() for name, array in arrays.items()}
    name = str(random.choice(sorted(changed)))
    array = changed[name]
    absurd = np.array([0, 1, -1, 1e38, -1e38, 1e-38, np.nan, np.inf, 3, 2**31 - 1])
    choices: list[Callable[[], Any]] = [
        lambda: changed.pop(name),
        lambda: changed.update({f"{name}x": array}),
        lambda: changed.update({name: array[..., :-1]}),
        lambda: changed.update({name: np.concatenate((array, array))}),
        lambda: changed.update({name: array[None]}),
        lambda: changed.update({name: array.astype(random.choice(["int8", "float64", "uint64", "float16"]))}),
        lambda: changed.update({name: array[:0]}),
    ]
    with np.errstate(all="ignore"):
        if random.random() < 0.6:
            array.reshape(-1)[:] = random.choice(absurd, array.size).astype(array.dtype)
        else:
            random.choice(np.array(choices, object))()
    return changed


def load(kind: str, params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Strategy | None:
    """The strategy, or None where it was refused for what it should be refused for."""
    try:
        return STRATEGIES[kind].from_parts(MODELS, params, arrays)
    except BundleError as error:
        if error.code not in {"E4306", "E4307", "E4308"}:
            raise
        return None


@each
@given(seed=st.integers(0, 2**32 - 1))
def test_hostile_arrays_are_refused_or_harmless(make: Make, seed: int) -> None:
    """What loads gives finite scores; what does not is refused by name, never by an accident."""
    random = np.random.default_rng(seed)
    strategy = make(random, 12)
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(RuntimeWarning)
        arrays = mutate(random, strategy.arrays())
    loaded = load(strategy.kind, strategy.params(), arrays)
    if loaded is None or loaded.dimensions not in (0, D):
        return  # the bundle's loader compares this with the encoder's
    scores = loaded.score(queries(random, 3))
    assert scores.shape == (3, 3)
    assert np.isfinite(scores).all()


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
)


@each
@given(data=st.data())
def test_hostile_parameters_are_refused_or_harmless(make: Make, data: st.DataObject) -> None:
    random = np.random.default_rng(0)
    strategy = make(random, 12)
    params: dict[str, Any] = dict(strategy.params())
    params[data.draw(st.sampled_from([*params, "more"]))] = data.draw(JUNK)
    loaded = load(strategy.kind, params, strategy.arrays())
    assert loaded is None or np.isfinite(loaded.score(queries(random, 2))).all()


@each
def test_threads_share_one(make: Make) -> None:
    random = np.random.default_rng(3)
    strategy, vectors = make(random, 100), queries(random, 32)
    expected = strategy.score(vectors)
    with ThreadPoolExecutor(8) as pool:
        for number, got in enumerate(pool.map(lambda row: strategy.score(vectors[row % 32][None])[0], range(256))):
            np.testing.assert_allclose(got, expected[number % 32], atol=2e-5)


@each
def test_a_decision_takes_microseconds(make: Make) -> None:
    """6,000 rows: a tenth of the deadline on any machine; measured it is a tenth of that."""
    random = np.random.default_rng(4)
    strategy, vectors = make(random, 6000), queries(random, 40)
    times = []
    for vector in vectors:
        start = time.perf_counter()
        strategy.score(vector[None])
        times.append(time.perf_counter() - start)
    assert float(np.median(times)) < 5e-3
