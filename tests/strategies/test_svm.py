"""SVM: against scikit-learn's SVC, in each kernel, with any number of models, votes that tie included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC

from pointsman.errors import BundleError
from pointsman.strategies.svm import SvmParams, SvmStrategy

KERNELS: dict[str, dict[str, Any]] = {
    "rbf": {"kernel": "rbf", "gamma": 0.7},
    "linear": {"kernel": "linear"},
    "poly": {"kernel": "poly", "gamma": 0.5, "coef0": 1.0, "degree": 3},
    "sigmoid": {"kernel": "sigmoid", "gamma": 0.2, "coef0": -0.1},
}


def taken_out(model: SVC, dtype: type = np.float64) -> SvmStrategy:
    """The strategy of a trained SVC."""
    params = SvmParams(
        mode="classifier",
        kernel=model.kernel,
        gamma=float(model._gamma),
        coef0=float(model.coef0),
        degree=int(model.degree),
        break_ties=bool(model.break_ties),
    )
    return SvmStrategy(
        tuple(str(name) for name in model.classes_),
        model.support_vectors_.astype(dtype),
        model._dual_coef_,
        model._intercept_,
        model._n_support.astype(np.int64),
        params,
    )


def problem(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, labels of which each class has some, and queries."""
    chance = np.random.default_rng(seed)
    rows = 8 * classes
    vectors = chance.standard_normal((rows, 5)).astype(np.float32)
    labels = np.array([f"m{number % classes}" for number in range(rows)])
    return vectors, labels, chance.standard_normal((60, 5)).astype(np.float32)


@pytest.mark.strategy("formula", "svm")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("break_ties", [False, True])
@given(seed=st.integers(0, 1000), classes=st.integers(2, 7))
@settings(max_examples=15)
def test_it_chooses_as_scikit_learn_does(kernel: str, break_ties: bool, seed: int, classes: int) -> None:
    vectors, labels, queries = problem(seed, classes)
    model = SVC(C=2.0, break_ties=break_ties, **KERNELS[kernel]).fit(vectors, labels)
    strategy = taken_out(model)
    scores = strategy.score(queries)
    assert [strategy.models[place] for place in scores.argmax(axis=1)] == list(model.predict(queries))
    decisions = model.decision_function(queries)
    ours = strategy.decisions(queries)
    if classes == 2:
        np.testing.assert_allclose(ours[:, 0], -decisions, atol=1e-9)
    else:
        model.decision_function_shape = "ovo"
        np.testing.assert_allclose(ours, model.decision_function(queries), atol=1e-9)
        if break_ties:
            np.testing.assert_allclose(scores, decisions, atol=1e-6)


def test_tied_votes_go_to_the_first_as_libsvm_has_it() -> None:
    """Three models that beat each other in a circle: each has a vote."""
    seen = 0
    for seed in range(40):
        vectors, labels, queries = problem(seed, 3)
        model = SVC(**KERNELS["sigmoid"]).fit(vectors, labels)
        strategy = taken_out(model)
        decisions = strategy.decisions(queries)
        circle = (decisions[:, 0] > 0) & (decisions[:, 1] < 0) & (decisions[:, 2] > 0)
        circle |= (decisions[:, 0] < 0) & (decisions[:, 1] > 0) & (decisions[:, 2] < 0)
        scores = strategy.score(queries)
        assert (scores[circle].argmax(axis=1) == 0).all()
        assert list(model.predict(queries[circle])) == ["m0"] * int(circle.sum()) if circle.any() else True
        seen += int(circle.sum())
    assert seen > 20, "there were such queries"


def test_single_precision_costs_little() -> None:
    vectors, labels, queries = problem(3, 4)
    model = SVC(**KERNELS["rbf"]).fit(vectors, labels)
    np.testing.assert_allclose(taken_out(model, np.float32).score(queries), taken_out(model).score(queries), atol=1e-5)


@pytest.mark.strategy("formula", "svm")
def test_regression_is_its_formula() -> None:
    chance = np.random.default_rng(1)
    vectors, queries = (chance.standard_normal((rows, 4)).astype(np.float32) for rows in (20, 9))
    coefficients, bias = chance.standard_normal((20, 3)) / 10, np.array([0.4, 0.5, 0.6])
    strategy = SvmStrategy(
        ("a", "b", "c"),
        vectors,
        coefficients,
        bias,
        np.zeros(3, np.int64),
        SvmParams(mode="regression", kernel="rbf", gamma=0.3),
    )
    kernel = np.exp(-0.3 * ((queries[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2))
    np.testing.assert_allclose(strategy.score(queries), np.clip(kernel @ coefficients + bias, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("support", np.array([5, 5, 3], np.int64)),
        ("support", np.array([13, -1, 0], np.int64)),
        ("support", np.array([2**62, 2**62, 12], np.int64)),
        ("coefficients", np.zeros((3, 12))),
        ("bias", np.zeros(2)),
        ("vectors", np.zeros((12, 0), np.float32)),
        ("vectors", np.zeros((0, 4), np.float32)),
    ],
)
def test_hostile_arrays(name: str, value: np.ndarray) -> None:
    params = SvmParams(mode="classifier", kernel="rbf")
    support = np.array([4, 4, 4], np.int64)
    good = SvmStrategy(("a", "b", "c"), np.ones((12, 4), np.float32), np.zeros((2, 12)), np.zeros(3), support, params)
    SvmStrategy.from_parts(good.models, good.params(), good.arrays())
    with pytest.raises(BundleError) as caught:
        SvmStrategy.from_parts(good.models, good.params(), {**good.arrays(), name: value})
    assert caught.value.code == "E4307"


def test_a_classifier_of_very_many_models_is_refused() -> None:
    """Pairs grow with the square: a small bundle must not make much work."""
    models = tuple(f"m{number}" for number in range(1000))
    with pytest.raises(BundleError, match="256") as caught:
        SvmStrategy.from_parts(models, {"mode": "classifier", "kernel": "rbf"}, {})
    assert caught.value.code == "E4306"
