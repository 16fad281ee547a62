"""Networks and linear models: against scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPRegressor

from pointsman.errors import BundleError
from pointsman.strategies.linear import LinearStrategy
from pointsman.strategies.mlp import MlpStrategy

MODELS = ("a", "b", "c")


@pytest.mark.strategy("formula", "mlp")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
@pytest.mark.parametrize("output", ["score", "logits"])
@pytest.mark.parametrize("hidden", [(8,), (6, 4)])
def test_it_is_scikit_learns_network(activation: Any, output: Any, hidden: tuple[int, ...]) -> None:
    chance = np.random.default_rng(1)
    vectors, targets = chance.standard_normal((60, 5)).astype(np.float32), chance.random((60, 3))
    model = MLPRegressor(hidden_layer_sizes=hidden, activation=activation, max_iter=30, random_state=0).fit(vectors, targets)
    weights = [np.ascontiguousarray(part.T.astype(np.float32)) for part in model.coefs_]
    strategy = MlpStrategy(MODELS, weights, [part.astype(np.float32) for part in model.intercepts_], activation, output)
    expected = model.predict(vectors)
    np.testing.assert_allclose(strategy.score(vectors), np.clip(expected, 0, 1) if output == "score" else expected, atol=1e-5)
    assert strategy.scale == ("quality" if output == "score" else "rank")
    again = MlpStrategy.from_parts(MODELS, strategy.params(), strategy.arrays())
    assert np.array_equal(again.score(vectors), strategy.score(vectors))
    assert again.dimensions == 5


def test_layers_must_fit_each_other() -> None:
    weights = [np.zeros((4, 5), np.float32), np.zeros((3, 4), np.float32)]
    good = MlpStrategy(MODELS, weights, [np.zeros(4, np.float32), np.zeros(3, np.float32)], "relu", "score")
    for name, value in (
        ("weight.1", np.zeros((3, 5), np.float32)),
        ("weight.0", np.zeros((0, 5), np.float32)),
        ("bias.0", np.zeros(3, np.float32)),
        ("weight.1", np.zeros((2, 4), np.float32)),
        ("weight.0", np.zeros((4, 5), np.float64)),
    ):
        with pytest.raises(BundleError) as caught:
            MlpStrategy.from_parts(MODELS, good.params(), {**good.arrays(), name: value})
        assert caught.value.code == "E4307"
    for change in ({"layers": 9}, {"layers": 0}, {"activation": "gelu"}, {"output": "softmax"}):
        with pytest.raises(BundleError) as caught:
            MlpStrategy.from_parts(MODELS, {**good.params(), **change}, good.arrays())
        assert caught.value.code == "E4306"


def test_absurd_weights_give_finite_scores() -> None:
    weights = [np.full((4, 5), 3e38, np.float32), np.array([[3e38, -3e38, 3e38, -3e38]] * 3, np.float32)]
    biases = [np.zeros(4, np.float32), np.zeros(3, np.float32)]
    for output in ("score", "logits"):
        strategy = MlpStrategy(MODELS, weights, biases, "relu", output)  # type: ignore[arg-type]
        assert np.isfinite(strategy.score(np.ones((2, 5), np.float32))).all()


@pytest.mark.strategy("formula", "linear")
def test_linear_is_scikit_learns() -> None:
    chance = np.random.default_rng(2)
    vectors = chance.standard_normal((80, 6))
    targets = chance.random((80, 3))
    ridge = Ridge(alpha=2.0).fit(vectors, targets)
    strategy = LinearStrategy(MODELS, ridge.coef_.T.astype(np.float32), ridge.intercept_.astype(np.float32), "identity")
    wide = vectors.astype(np.float32)
    np.testing.assert_allclose(strategy.score(wide), np.clip(ridge.predict(vectors), 0, 1), atol=1e-5)
    logistic = LogisticRegression().fit(vectors, targets[:, 0] > 0.5)
    weights = np.repeat(logistic.coef_.T, 3, axis=1).astype(np.float32)
    strategy = LinearStrategy(MODELS, weights, np.repeat(logistic.intercept_, 3).astype(np.float32), "logistic")
    np.testing.assert_allclose(strategy.score(wide)[:, 1], logistic.predict_proba(vectors)[:, 1], atol=1e-5)
    with pytest.raises(BundleError):
        LinearStrategy.from_parts(MODELS, {"link": "identity"}, {"weights": np.zeros((0, 3), np.float32), "bias": np.zeros(3)})
