"""Every trainer: the order of rows and models decides nothing, equal models stay equal, what there is to learn is learned."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.mlops.data import Dataset
from pointsman.mlops.evaluate import Prices
from pointsman.mlops.train import train
from pointsman.mlops.trainers import TRAINERS, fit_strategy, predict
from pointsman.mlops.trainers.elo import ratings, wins
from pointsman.mlops.trainers.ensemble import simplex_weights
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.encoders.hashing import unit

QUICK: dict[str, dict[str, Any]] = {
    "mlp": {"epochs": 12, "decay": 0.03, "hidden": [16]},
    "svm": {"support": 60},
    "ensemble": {"members": "knn,linear"},
}
"""Settings that spare time; the rest is chosen as usual."""
SUBJECTS = {
    "strong": ["integral", "theorem", "proof", "lemma", "manifold", "derivative", "tensor", "prime", "matrix", "vector"],
    "cheap": ["bread", "butter", "apple", "recipe", "kitchen", "sugar", "coffee", "lemon", "salad", "dinner"],
}
PRICES = {"strong": Prices(10, 30), "cheap": Prices(0.5, 0.5)}
CONSTANT = {"elo"}
kinds = pytest.mark.parametrize("kind", sorted(TRAINERS))
classic = pytest.mark.parametrize("kind", ["elo", "ensemble", "knn", "linear", "mlp", "svm"])


def dataset(
    rows: int, seed: int, models: tuple[str, ...] = ("a", "b", "c"), missing: float = 0.0
) -> tuple[np.ndarray, Dataset]:
    """Vectors and scores with something in them to learn; few different scores, so that many are equal."""
    chance = np.random.default_rng(seed)
    vectors = unit(chance.standard_normal((rows, 12)).astype(np.float32))
    chances = 1 / (1 + np.exp(-3 * vectors @ chance.standard_normal((12, len(models)))))
    scores = (chance.random(chances.shape) < chances).astype(np.float32)
    known = chance.random(scores.shape) >= missing
    known[0] = True
    users = tuple(chance.choice(["ann", "bob"]) for _ in range(rows))
    queries = tuple(f"query {number}" for number in range(rows))
    data = Dataset(queries, ("",) * rows, models, np.where(known, scores, 0), known, None, "0" * 64, users)
    return vectors, data


@kinds
def test_the_order_of_rows_decides_nothing(kind: str) -> None:
    """To the last bit."""
    vectors, data = dataset(90, 1, missing=0.1)
    groups = np.arange(90) // 2
    order = np.random.default_rng(2).permutation(90)
    one, chosen = fit_strategy(TRAINERS[kind], vectors, data, seed=3, settings=QUICK.get(kind), groups=groups)
    other, same = fit_strategy(
        TRAINERS[kind], vectors[order], data.take(order), seed=3, settings=QUICK.get(kind), groups=groups[order] + 100
    )
    assert chosen == same
    assert np.array_equal(predict(one, vectors, data), predict(other, vectors, data))


@classic
def test_the_order_of_models_decides_nothing(kind: str) -> None:
    """The columns turned round: the same scores, by name. A network starts at random, so its are only about the same."""
    vectors, data = dataset(90, 4)
    turned = Dataset(
        data.queries, data.tasks, data.models[::-1], data.scores[:, ::-1], data.known[:, ::-1], None, data.sha256, data.users
    )
    one, _ = fit_strategy(TRAINERS[kind], vectors, data, settings=QUICK.get(kind))
    other, _ = fit_strategy(TRAINERS[kind], vectors, turned, settings=QUICK.get(kind))
    tolerance = 0.25 if kind == "mlp" else 1e-4
    np.testing.assert_allclose(one.score(vectors), other.score(vectors)[:, ::-1], atol=tolerance)


@classic
def test_equal_models_get_equal_scores(kind: str) -> None:
    """LLMRouter would give every prompt to the one that stands first."""
    vectors, data = dataset(90, 5)
    scores = data.scores.copy()
    scores[:, 2] = scores[:, 0]
    same = Dataset(data.queries, data.tasks, data.models, scores, data.known, None, data.sha256)
    strategy, _ = fit_strategy(TRAINERS[kind], vectors, same, settings=QUICK.get(kind))
    got = strategy.score(vectors)
    np.testing.assert_allclose(got[:, 0], got[:, 2], atol=0.3 if kind == "mlp" else 1e-5)


def lines(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of two subjects, each answered well by the model of its name."""
    chance = random.Random(seed)
    result = []
    for number in range(count):
        subject = chance.choice(list(SUBJECTS))
        words = [
            *chance.choices(SUBJECTS[subject], k=4),
            *chance.choices(["please", "tell", "me", "about"], k=4),
            f"nr{number}",
        ]
        right = subject if chance.random() > 0.1 else next(name for name in SUBJECTS if name != subject)
        user = chance.choice(["ann", "bob"])
        result.append(
            {"query": " ".join(words), "task": subject, "user": user, "scores": {m: float(m == right) for m in SUBJECTS}}
        )
    return result


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.strategy(
    "training", "knn", "svm", "mlp", "mf", "elo", "hybrid", "graph", "routerdc", "personalized", "linear", "ensemble"
)
@pytest.mark.requirement("R-5.2", "P-14")
@kinds
def test_it_trains_to_a_bundle_that_loads_and_is_right(kind: str, tmp_path: Path) -> None:
    """And a file with its lines and models the other way round gives the same strategy and the same evaluation."""
    rows = lines(300, 1)
    options: dict[str, Any] = {"settings": QUICK.get(kind), "prices": PRICES, "version": "1", "dimensions": 48}
    bundle = load_bundle(train(kind, write(tmp_path / "data.jsonl", rows), tmp_path / "one", **options))
    assert bundle.kind == kind
    assert bundle.name == (f"llmrouter-{kind}" if kind not in {"linear", "ensemble"} else kind)
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    table = {line.name: line for line in evaluation.table}
    if kind in CONSTANT:
        assert table["strategy"].quality == table["best_single"].quality
        assert evaluation.brier is None
        assert "knn" not in table
    else:
        assert table["strategy"].quality > table["best_single"].high, "clearly better than always the same"
        assert table["knn"].quality > table["best_single"].high
        scores = bundle.score("the proof of a lemma on a prime", "ann")
        assert scores["strong"] > scores["cheap"]
    turned = [{**row, "scores": dict(reversed(row["scores"].items()))} for row in reversed(rows)]
    again = load_bundle(train(kind, write(tmp_path / "turned.jsonl", turned), tmp_path / "two", **options))
    texts = [row["query"] for row in rows[:40]]
    assert np.array_equal(bundle.score_batch(texts), again.score_batch(texts))
    assert again.manifest.evaluation == evaluation


@pytest.mark.strategy("formula", "elo")
@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0, 0.6))
@settings(max_examples=30)
def test_elo_is_the_maximum_of_the_likelihood(seed: int, count: int, missing: float) -> None:
    """At it each model is expected to win as often as it did, the comparisons that nobody saw included."""
    _, data = dataset(40, seed, tuple(f"m{number}" for number in range(count)), missing)
    won = wins(data)
    found = ratings(won)
    assert found.mean() == pytest.approx(1000)
    strength = (found - 1000) / 400 * np.log(10)
    seen = won + 0.5 * (1 - np.eye(count))
    expected = ((seen + seen.T) / (1 + np.exp(strength[None, :] - strength[:, None]))).sum(axis=1)
    np.testing.assert_allclose(expected, seen.sum(axis=1), atol=1e-6)


def test_elo_counts_ties_half() -> None:
    _, data = dataset(1, 0, ("a", "b"))
    equal = Dataset(("q",), ("",), ("a", "b"), np.ones((1, 2), np.float32), np.ones((1, 2), np.bool_), None, "0" * 64)
    del data
    assert wins(equal).tolist() == [[0, 0.5], [0.5, 0]]
    assert ratings(wins(equal)).tolist() == [1000, 1000]


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=30)
def test_stacking_finds_the_best_mean(seed: int, count: int) -> None:
    """No point of a grid on the simplex is better."""
    chance = np.random.default_rng(seed)
    truth = chance.random(50)
    predictions = np.stack([truth + chance.normal(0, chance.uniform(0.1, 1), 50) for _ in range(count)])
    weights = simplex_weights(predictions, truth)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    grid = chance.dirichlet(np.ones(count), 300)
    best = float((((grid @ predictions) - truth) ** 2).mean(axis=1).min())
    assert float(((weights @ predictions - truth) ** 2).mean()) <= best + 1e-6


def test_logistic_regression_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, data = dataset(200, 7)
    wide = vectors.astype(np.float64)
    strategy, _ = fit_strategy(TRAINERS["linear"], vectors, data, settings={"link": "logistic", "penalty": 4.0})
    for column in range(3):
        model = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(wide, data.scores[:, column])
        np.testing.assert_allclose(strategy.score(vectors)[:, column], model.predict_proba(wide)[:, 1], atol=1e-5)


def test_kernel_ridge_is_scikit_learns() -> None:
    """With all rows as support vectors nothing is approximated. scikit-learn's has no intercept, so kernels are centred."""
    from sklearn.kernel_ridge import KernelRidge

    vectors, data = dataset(80, 8)
    features = {"gamma": 1.0, "penalty": 1.0, "support": 80}
    strategy, _ = fit_strategy(TRAINERS["svm"], vectors, data, settings=features)
    kernel = np.exp(-((vectors[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2))
    middle = np.eye(80) - 1 / 80
    targets = data.scores - data.scores.mean(axis=0)
    model = KernelRidge(alpha=1.0, kernel="precomputed").fit(middle @ kernel @ middle, targets)
    expected = middle @ kernel @ middle @ model.dual_coef_ + data.scores.mean(axis=0)
    np.testing.assert_allclose(strategy.score(vectors), np.clip(expected, 0, 1), atol=2e-3)


@pytest.mark.parametrize(
    ("kind", "values", "word"),
    [
        ("linear", {"link": "cubic"}, "link"),
        ("linear", {"k": 5}, "k"),
        ("mlp", {"epochs": 0}, "epochs"),
        ("ensemble", {"members": "knn,nothing"}, "nothing"),
        ("ensemble", {"members": "knn,ensemble"}, "ensemble"),
        ("ensemble", {"members": "knn,elo"}, "standard"),
        ("ensemble", {"members": [{"kind": "knn", "start": 4, "stop": 99}]}, "4:99"),
    ],
)
def test_bad_settings(kind: str, values: dict[str, Any], word: str) -> None:
    vectors, data = dataset(60, 6)
    with pytest.raises(BundleError, match=word) as caught:
        fit_strategy(TRAINERS[kind], vectors, data, settings=values)
    assert caught.value.code == "E4320"


def test_an_ensemble_on_slices_and_ranks() -> None:
    vectors, data = dataset(80, 9)
    members = [{"kind": "knn", "stop": 6}, {"kind": "linear", "start": 6}, "elo"]
    strategy, _ = fit_strategy(TRAINERS["ensemble"], vectors, data, settings={"members": members, "combine": "standard"})
    assert strategy.scale == "rank"
    parts = []
    for kind, part in (("knn", vectors[:, :6]), ("linear", vectors[:, 6:]), ("elo", vectors)):
        scores = fit_strategy(TRAINERS[kind], part, data)[0].score(np.ascontiguousarray(part)).astype(np.float64)
        parts.append((scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True))
    np.testing.assert_allclose(strategy.score(vectors), sum(parts) / 3, atol=1e-4)
