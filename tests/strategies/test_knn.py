"""kNN: against its formula, with missing scores, ties, and many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.mlops.lsa import fit_tfidf
from pointsman.strategies.base import Encoder, Strategy
from pointsman.strategies.encoders.hashing import HashingEncoder, unit
from pointsman.strategies.encoders.tfidf import TfidfEncoder
from pointsman.strategies.kinds import ENCODERS, STRATEGIES
from pointsman.strategies.knn import KnnStrategy

MODELS = ("a", "b", "c")


def make(rows: int, seed: int, k: int, missing: float = 0.0) -> KnnStrategy:
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((rows, 8)).astype(np.float32))
    known = (random.random((rows, 3)) >= missing).astype(np.uint8)
    return KnnStrategy(MODELS, vectors, random.random((rows, 3)).astype(np.float32), known, k)


def by_formula(knn: KnnStrategy, vector: np.ndarray) -> np.ndarray:
    """The definition, in double precision, row by row."""
    parts = knn.arrays()
    vectors, scores, known = (parts[name].astype(np.float64) for name in ("vectors", "scores", "known"))
    similar = vectors @ vector.astype(np.float64)
    near = np.argsort(-similar, kind="stable")[: knn.params()["k"]]
    result = []
    for column in range(len(MODELS)):
        weights = np.maximum(similar[near], 0) * known[near, column]
        has = known[:, column] == 1
        prior = scores[has, column].mean() if has.any() else 0.5
        result.append((weights @ scores[near, column] + 1e-6 * prior) / (weights.sum() + 1e-6))
    return np.array(result)


@pytest.mark.strategy("formula", "knn")
@given(st.integers(1, 60), st.integers(0, 10_000), st.integers(1, 80), st.sampled_from([0.0, 0.3, 0.9]))
def test_it_is_the_weighted_mean_of_the_nearest(rows: int, seed: int, k: int, missing: float) -> None:
    knn = make(rows, seed, k, missing)
    queries = unit(np.random.default_rng(seed + 1).standard_normal((4, 8)).astype(np.float32))
    batch = knn.score(queries)
    for number, query in enumerate(queries):
        np.testing.assert_allclose(batch[number], by_formula(knn, query), atol=2e-4)
        np.testing.assert_allclose(knn.score(query[None])[0], batch[number], atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_the_order_of_rows_decides_nothing(seed: int, k: int) -> None:
    """Copies of one prompt with different scores all count, wherever they stand."""
    knn = make(12, seed, k)
    parts = {name: np.concatenate((array, array[:6])) for name, array in knn.arrays().items()}
    parts["scores"][12:] = 1 - parts["scores"][12:]
    order = np.random.default_rng(seed + 2).permutation(18)
    one = KnnStrategy(MODELS, parts["vectors"], parts["scores"], parts["known"], k)
    other = KnnStrategy(MODELS, parts["vectors"][order], parts["scores"][order], parts["known"][order], k)
    np.testing.assert_allclose(one.score(knn.arrays()["vectors"]), other.score(knn.arrays()["vectors"]), atol=1e-5)


def test_nothing_similar_gives_the_overall_mean() -> None:
    knn = make(20, 1, 5)
    np.testing.assert_allclose(knn.score(np.zeros((1, 8), np.float32))[0], knn.prior, atol=1e-6)


def test_a_model_that_no_neighbour_knows_gets_its_overall_mean() -> None:
    vectors = np.eye(4, dtype=np.float32)
    scores = np.array([[1, 0, 0], [0, 1, 0], [0, 0.5, 0], [0, 0.2, 0]], np.float32)
    known = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]], np.uint8)
    got = KnnStrategy(MODELS, vectors, scores, known, 1).score(vectors[:1])[0]
    np.testing.assert_allclose(got, [1.0, (1 + 0.5 + 0.2) / 3, 0.5], atol=1e-5)


def test_threads_share_one_strategy() -> None:
    knn = make(500, 3, 20)
    queries = unit(np.random.default_rng(4).standard_normal((64, 8)).astype(np.float32))
    expected = knn.score(queries)
    with ThreadPoolExecutor(8) as pool:
        for number, got in enumerate(pool.map(lambda row: knn.score(queries[row % 64][None])[0], range(640))):
            np.testing.assert_allclose(got, expected[number % 64], atol=1e-5)


def test_a_batch_larger_than_a_block() -> None:
    knn = make(40, 5, 3)
    queries = unit(np.random.default_rng(6).standard_normal((700, 8)).astype(np.float32))
    got = knn.score(queries)
    assert got.shape == (700, 3)
    np.testing.assert_allclose(got[699], knn.score(queries[699:])[0], atol=1e-5)
    assert knn.score(queries[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"k": 0}, "E4306"),
        ({"k": "5"}, "E4306"),
        ({"k": True}, "E4306"),
        ({"k": 5, "more": 1}, "E4306"),
        ({"k": 5, "mode": "regresion"}, "E4306"),
        ({}, "E4306"),
    ],
)
def test_bad_parameters(change: dict[str, object], code: str) -> None:
    with pytest.raises(BundleError) as caught:
        KnnStrategy.from_parts(MODELS, change, make(5, 1, 2).arrays())
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("scores", np.full((5, 3), 1.5, np.float32), "E4307"),
        ("scores", np.full((5, 3), -0.1, np.float32), "E4307"),
        ("scores", np.full((5, 3), np.nan, np.float32), "E4308"),
        ("scores", np.zeros((5, 2), np.float32), "E4307"),
        ("known", np.full((5, 3), 2, np.uint8), "E4307"),
        ("known", np.ones((5, 3), np.int64), "E4307"),
        ("vectors", np.zeros((4, 8), np.float32), "E4307"),
        ("vectors", np.zeros((5,), np.float32), "E4307"),
        ("vectors", np.zeros((5, 0), np.float32), "E4307"),
        ("vectors", np.full((5, 8), np.inf, np.float16), "E4308"),
    ],
)
def test_bad_arrays(name: str, value: np.ndarray, code: str) -> None:
    with pytest.raises(BundleError) as caught:
        KnnStrategy.from_parts(MODELS, {"k": 2}, {**make(5, 1, 2).arrays(), name: value})
    assert caught.value.code == code


def test_no_rows_is_refused() -> None:
    empty = {
        "vectors": np.zeros((0, 8), np.float32),
        "scores": np.zeros((0, 3), np.float32),
        "known": np.zeros((0, 3), np.uint8),
    }
    with pytest.raises(BundleError) as caught:
        KnnStrategy.from_parts(MODELS, {"k": 2}, empty)
    assert caught.value.code == "E4307"


def test_every_kind_fits_its_protocol() -> None:
    for name, kind in ENCODERS.items():
        assert kind.kind == name
    for name, kind in STRATEGIES.items():
        assert kind.kind == name
    assert isinstance(HashingEncoder(8), Encoder)
    assert isinstance(make(3, 1, 1), Strategy)


TEXTS = ["red apples and green pears", "red cars", "green cars drive fast", "the theorem on primes", "primes and theorems"]


def test_tfidf_puts_like_to_like() -> None:
    encoder = fit_tfidf(TEXTS, 4)
    vectors = encoder.encode(TEXTS)
    query = encoder.encode(["a theorem about primes, please"])[0]
    assert int((vectors @ query).argmax()) == 3
    assert not encoder.encode(["words never seen before"]).any()
    assert not encoder.encode([""]).any()


def test_tfidf_survives_its_parts() -> None:
    encoder = fit_tfidf(TEXTS, 4)
    again = TfidfEncoder.from_parts(encoder.params(), encoder.arrays())
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.dimensions == encoder.dimensions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocabulary", np.array([3, 2], np.uint64)),
        ("vocabulary", np.array([2, 2], np.uint64)),
        ("vocabulary", np.array([1, 2], np.int64)),
        ("idf", np.ones(3, np.float32)),
        ("projection", np.ones((2, 0), np.float16)),
        ("projection", np.ones((2, 2), np.float64)),
    ],
)
def test_bad_encoder_arrays(name: str, value: np.ndarray) -> None:
    good = {
        "vocabulary": np.array([1, 2], np.uint64),
        "idf": np.ones(2, np.float32),
        "projection": np.ones((2, 3), np.float16),
    }
    TfidfEncoder.from_parts({}, good)
    with pytest.raises(BundleError) as caught:
        TfidfEncoder.from_parts({}, {**good, name: value})
    assert caught.value.code == "E4307"
