"""kNN as LLMRouter has it: against scikit-learn's KNeighborsClassifier, in each metric and weighting, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from pointsman.errors import BundleError
from pointsman.strategies.kinds import STRATEGIES
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.knn_classifier import TIE_STEP, KnnClassifier, KnnClassifierParams

METRICS: dict[str, dict[str, Any]] = {
    "euclidean": {"metric": "euclidean"},
    "manhattan": {"metric": "manhattan"},
    "chebyshev": {"metric": "chebyshev"},
    "minkowski": {"metric": "minkowski", "p": 3.0},
    "cosine": {"metric": "cosine"},
}
MODELS = ("a", "b", "c", "d")


def both(
    vectors: np.ndarray, labels: np.ndarray, k: int, weights: str, metric: dict[str, Any]
) -> tuple[KNeighborsClassifier, KnnClassifier]:
    """scikit-learn's and ours of the same rows."""
    theirs = KNeighborsClassifier(n_neighbors=k, weights=weights, **metric).fit(vectors, np.array(MODELS)[labels])
    place = {name: number for number, name in enumerate(theirs.classes_)}
    places = np.array([place[MODELS[label]] for label in labels], np.int32)
    params = KnnClassifierParams.model_validate({"mode": "classifier", "k": k, "weights": weights, **metric})
    return theirs, KnnClassifier(tuple(str(name) for name in theirs.classes_), vectors, places, params)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weights", ["uniform", "distance"])
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 80), k=st.integers(1, 12))
@settings(max_examples=20)
def test_shares_and_choices_are_scikit_learns(metric: str, weights: str, seed: int, rows: int, k: int) -> None:
    chance = np.random.default_rng(seed)
    vectors = chance.standard_normal((rows, 6)).astype(np.float32)
    queries = np.concatenate((chance.standard_normal((10, 6)).astype(np.float32), vectors[:3]))
    theirs, ours = both(vectors, chance.integers(0, 4, rows), min(k, rows), weights, METRICS[metric])
    got = ours.score(queries)
    np.testing.assert_allclose(got, theirs.predict_proba(queries), atol=1e-5)
    assert [ours.models[place] for place in got.argmax(axis=1)] == list(theirs.predict(queries))


@given(seed=st.integers(0, 10_000), k=st.integers(1, 9))
@settings(max_examples=40)
def test_prompts_at_the_same_distance(seed: int, k: int) -> None:
    """Copies of few different vectors: which of the equally distant count is decided by their place, here as there."""
    chance = np.random.default_rng(seed)
    vectors = chance.integers(0, 2, (40, 17)).astype(np.float32)[chance.integers(0, 6, 40)]
    queries = chance.integers(0, 2, (8, 17)).astype(np.float32)
    theirs, ours = both(vectors, chance.integers(0, 4, 40), k, "uniform", METRICS["euclidean"])
    distances, near = theirs.kneighbors(queries)
    for query, line in zip(queries, np.sort(distances, axis=1), strict=True):
        mine, _ = ours._nearest(query)
        np.testing.assert_allclose(mine, line, atol=1e-6)
    del near
    assert ours.score(queries).shape == (8, len(ours.models))


def test_equal_votes_leave_no_tie_for_others_to_break() -> None:
    """Gateways break ties by price; LLMRouter's is broken by the order of names, so that is in the scores."""
    vectors = np.eye(4, dtype=np.float32)
    _, ours = both(vectors, np.array([3, 2, 1, 0]), 4, "uniform", METRICS["euclidean"])
    scores = ours.score(np.zeros((1, 4), np.float32))[0]
    assert scores.argmax() == 0
    assert (np.diff(scores) < 0).all()
    assert scores[0] - scores[-1] < TIE_STEP


def test_a_prompt_of_the_training_set_decides_alone() -> None:
    vectors = np.eye(4, dtype=np.float32)
    _, ours = both(vectors, np.array([0, 1, 1, 1]), 4, "distance", METRICS["euclidean"])
    np.testing.assert_allclose(ours.score(vectors[:1])[0], [1, 0], atol=1e-5)


def test_the_mode_is_told_by_the_parameters() -> None:
    _, ours = both(np.eye(4, dtype=np.float32), np.array([0, 1, 2, 3]), 2, "uniform", METRICS["cosine"])
    again = STRATEGIES["knn"].from_parts(ours.models, ours.params(), ours.arrays())
    assert isinstance(again, KnnClassifier)
    assert again.scale == "rank"
    assert again.dimensions == 4
    assert np.array_equal(again.score(np.eye(4, dtype=np.float32)), ours.score(np.eye(4, dtype=np.float32)))


@pytest.mark.parametrize(
    ("params", "arrays", "code"),
    [
        ({"metric": "hamming"}, {}, "E4306"),
        ({"p": 0.5}, {}, "E4306"),
        ({"k": 5}, {}, "E4307"),
        ({}, {"labels": np.array([0, 1, 2, 4], np.int32)}, "E4307"),
        ({}, {"labels": np.array([0, 1, 2, -1], np.int32)}, "E4307"),
        ({}, {"vectors": np.full((4, 4), np.nan, np.float32)}, "E4308"),
        ({}, {"vectors": np.zeros((4, 0), np.float32)}, "E4307"),
    ],
)
def test_what_is_refused(params: dict[str, Any], arrays: dict[str, Any], code: str) -> None:
    _, ours = both(np.eye(4, dtype=np.float32), np.array([0, 1, 2, 3]), 2, "uniform", METRICS["cosine"])
    with pytest.raises(BundleError) as caught:
        KnnStrategy.from_parts(ours.models, {**ours.params(), **params}, {**ours.arrays(), **arrays})
    assert caught.value.code == code
