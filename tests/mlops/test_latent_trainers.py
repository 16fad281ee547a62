"""Trainers of mf, hybrid, graph, routerdc, personalized: ties, order, what there is to learn, and each one's own promises.

What holds for every trainer (the order of rows, a bundle from a file) is in test_trainers.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.mlops.data import Dataset
from pointsman.mlops.trainers import TRAINERS, fit_strategy, predict
from pointsman.mlops.trainers.affine import Ridge
from pointsman.mlops.trainers.graph import neighbours, spread
from pointsman.mlops.trainers.personalized import shrunk
from pointsman.mlops.trainers.routerdc import losses
from pointsman.strategies.encoders.hashing import unit
from pointsman.strategies.hybrid import HybridStrategy
from pointsman.strategies.personalized import PersonalizedStrategy

MODELS = ("a", "b", "c")
CHOICES: dict[str, dict[str, Any]] = {"routerdc": {"space": 8}, "hybrid": {"weak": "a", "strong": "c"}}
kinds = pytest.mark.parametrize("kind", ["graph", "hybrid", "mf", "personalized", "routerdc"])


def made(rows: int, seed: int, *, missing: float = 0.0, steep: float = 6.0, taste: float = 0.0) -> tuple[Any, Dataset]:
    """Vectors with something in them to learn, right or wrong answers, and users: the later ones like model b less."""
    chance = np.random.default_rng(seed)
    vectors = unit(chance.standard_normal((rows, 12)).astype(np.float32))
    truth = np.random.default_rng(99).standard_normal((12, 3))
    user = chance.integers(0, 6, rows)
    raised = 1 / (1 + np.exp(-steep * vectors @ truth))
    raised[:, 1] = np.clip(raised[:, 1] + taste * np.where(user < 3, 1, -1), 0, 1)
    scores = (chance.random((rows, 3)) < raised).astype(np.float32)
    known = chance.random(scores.shape) >= missing
    known[:2] = True
    queries = tuple(f"query {number}" for number in range(rows))
    users = tuple(f"user {number}" for number in user)
    return vectors, Dataset(queries, ("",) * rows, MODELS, np.where(known, scores, 0), known, None, "0" * 64, users)


def trained(kind: str, vectors: Any, data: Dataset, **more: Any) -> Any:
    return fit_strategy(TRAINERS[kind], vectors, data, settings=CHOICES.get(kind, {}) | more)


def turned(data: Dataset) -> Dataset:
    """The columns the other way round."""
    return Dataset(
        data.queries, data.tasks, data.models[::-1], data.scores[:, ::-1], data.known[:, ::-1], None, data.sha256, data.users
    )


@kinds
@given(seed=st.integers(0, 1000), missing=st.sampled_from([0.0, 0.3]))
@settings(max_examples=3)
def test_the_order_of_models_and_of_rows_decides_nothing(kind: str, seed: int, missing: float) -> None:
    vectors, data = made(70, seed, missing=missing)
    one, chosen = trained(kind, vectors, data)
    expected = predict(one, vectors, data)
    order = np.random.default_rng(seed).permutation(70)
    other, same = trained(kind, vectors[order], data.take(order))
    assert same == chosen
    assert np.array_equal(predict(other, vectors, data), expected)
    other, _ = trained(kind, vectors, turned(data))
    np.testing.assert_allclose(predict(other, vectors, turned(data))[:, ::-1], expected, atol=2e-3)


@kinds
def test_equal_models_get_equal_scores(kind: str) -> None:
    """LLMRouter would give every prompt to the one that stands first."""
    vectors, data = made(120, 5)
    scores = data.scores.copy()
    scores[:, 2] = scores[:, 0]
    same = Dataset(data.queries, data.tasks, data.models, scores, data.known, None, data.sha256, data.users)
    strategy, _ = trained(kind, vectors, same)
    got = predict(strategy, vectors, same)
    if kind == "hybrid":  # the pair is a and c: no gain anywhere
        np.testing.assert_allclose(got[:, 0], got[:, 2], atol=1e-5)
    np.testing.assert_allclose(got[:, 0], got[:, 2], atol=1e-5)


@kinds
def test_it_predicts_scores_better_than_each_models_mean(kind: str) -> None:
    """On rows that it never saw: a clearly smaller squared error, and better choices than the best single model's."""
    vectors, data = made(600, 1, missing=0.1)
    unseen, judge = made(400, 2)
    strategy, _ = trained(kind, vectors, data)
    got = predict(strategy, unseen, judge)
    if kind == "hybrid":
        picks = np.where(got[:, 0] >= got[:, 2], 0, 2)
        pair = judge.scores[:, [0, 2]]
        assert judge.scores[np.arange(400), picks].mean() > pair.mean(axis=0).max() + 0.05
        assert strategy.scale == "rank"
        return
    means = data.scores.sum(axis=0) / data.known.sum(axis=0)
    assert ((got - judge.scores) ** 2).mean() < 0.85 * ((means - judge.scores) ** 2).mean()
    assert judge.scores[np.arange(400), got.argmax(axis=1)].mean() > judge.scores.mean(axis=0).max() + 0.05
    assert strategy.scale == "quality"


@pytest.mark.parametrize("kind", ["graph", "mf", "personalized", "routerdc"])
def test_what_was_seen_is_about_what_was_said(kind: str) -> None:
    """Calibrated, over the tenths of predictions, where scores are not mostly certain: the maps are straight lines."""
    vectors, data = made(900, 1, steep=2.5)
    unseen, judge = made(900, 2, steep=2.5)
    strategy, _ = trained(kind, vectors, data)
    got = predict(strategy, unseen, judge)
    order = np.argsort(got, axis=None)
    said, seen = got.reshape(-1)[order], judge.scores.reshape(-1)[order]
    apart = [abs(part.mean() - real.mean()) for part, real in zip(np.split(said, 10), np.split(seen, 10), strict=True)]
    assert float(np.mean(apart)) < 0.05


@kinds
def test_with_nothing_to_learn_it_says_the_means(kind: str) -> None:
    chance = np.random.default_rng(3)
    vectors, data = made(400, 4, steep=0.0)
    strategy, _ = trained(kind, vectors, data)
    got = strategy.score(unit(chance.standard_normal((50, 12)).astype(np.float32)))
    if kind != "hybrid":
        assert float(np.abs(got - data.scores.mean(axis=0)).max()) < 0.15


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_hybrid_sends_the_wanted_share_to_the_strong_model(share: float) -> None:
    vectors, data = made(600, 6)
    unseen, _ = made(1000, 7)
    strategy, chosen = trained("hybrid", vectors, data, share=share)
    assert isinstance(strategy, HybridStrategy)
    scores = strategy.score(unseen)
    assert abs(float((scores[:, 1] > scores[:, 0]).mean()) - share) < (0.06 if 0 < share < 1 else 1e-9)
    assert (chosen["weak"], chosen["strong"], strategy.models) == ("a", "c", ("a", "c"))


def test_hybrid_takes_the_best_and_the_cheapest_of_the_others() -> None:
    vectors, data = made(100, 8)
    scores = np.where(np.arange(3) == 1, 1.0, data.scores).astype(np.float32)
    costs = np.tile([0.3, 0.9, 0.1], (100, 1))
    known = Dataset(data.queries, data.tasks, MODELS, scores, data.known, costs, data.sha256)
    strategy, _ = fit_strategy(TRAINERS["hybrid"], vectors, known)
    assert strategy.models == ("c", "b")
    for wrong in ({"weak": "nobody"}, {"weak": "a", "strong": "a"}):
        with pytest.raises(BundleError) as caught:
            fit_strategy(TRAINERS["hybrid"], vectors, known, settings=wrong)
        assert caught.value.code == "E4320"
    apart = known.known.copy()
    apart[::2, 1] = apart[1::2, 2] = False
    with pytest.raises(BundleError, match="both"):
        fit_strategy(TRAINERS["hybrid"], vectors, Dataset(data.queries, data.tasks, MODELS, scores, apart, None, data.sha256))


def test_personalized_learns_who_likes_what() -> None:
    """Closer to each user's scores than the common answer; a stranger gets the common one."""
    vectors, data = made(900, 9, taste=0.35)
    unseen, judge = made(600, 10, taste=0.35)
    strategy, _ = trained("personalized", vectors, data)
    assert isinstance(strategy, PersonalizedStrategy)
    assert strategy.known_users == 6
    own, common = predict(strategy, unseen, judge), strategy.score(unseen)
    assert ((own - judge.scores) ** 2).mean() < ((common - judge.scores) ** 2).mean() - 0.005
    assert strategy.score_for(unseen, ["user 0"] * 600)[:, 1].mean() > strategy.score_for(unseen, ["user 5"] * 600)[:, 1].mean()
    assert np.array_equal(strategy.score_for(unseen, ["somebody else"] * 600), common)


def test_personalized_leaves_users_alone_who_are_like_everybody() -> None:
    vectors, data = made(900, 11)
    strategy, _ = trained("personalized", vectors, data)
    for name, neutral in (("scales", 1.0), ("shifts", 0.0)):
        assert float(np.abs(strategy.arrays()[name] - neutral).mean()) < 0.06


def test_personalized_wants_users_and_leaves_out_those_with_few_rows() -> None:
    vectors, data = made(60, 12)
    users = ("often",) * 50 + ("rare",) * 2 + (None,) * 8
    some = Dataset(data.queries, data.tasks, MODELS, data.scores, data.known, None, data.sha256, users)
    strategy, _ = trained("personalized", vectors, some)
    assert strategy.known_users == 1
    assert np.array_equal(strategy.score_for(vectors, ["rare"] * 60), strategy.score(vectors))
    nobody = Dataset(data.queries, data.tasks, MODELS, data.scores, data.known, None, data.sha256)
    with pytest.raises(BundleError) as caught:
        trained("personalized", vectors, nobody)
    assert caught.value.code == "E4320"


@given(st.integers(0, 1000), st.floats(0.0, 3.0), st.floats(0.05, 2.0))
def test_shrinking_never_raises_and_never_turns_round(seed: int, spread_of: float, noise: float) -> None:
    chance = np.random.default_rng(seed)
    values = spread_of * chance.standard_normal(30) + noise * chance.standard_normal(30)
    got = shrunk(values, np.full(30, noise**2))
    assert (np.abs(got) <= np.abs(values) + 1e-12).all()
    assert (got * values >= 0).all()
    assert not shrunk(values, np.full(30, np.inf)).any()


def test_ridge_is_the_solution_of_its_equations() -> None:
    chance = np.random.default_rng(13)
    x, y = chance.standard_normal((40, 5)), chance.random((40, 2))
    known = chance.random((40, 2)) < 0.8
    weights, bias = Ridge(x, y, known).solve(0.7)
    for column in range(2):
        rows = known[:, column]
        part, aim = x[rows] - x[rows].mean(axis=0), y[rows, column]
        unit_penalty = 0.7 * (x * x).sum(axis=1).mean()
        wanted = np.linalg.solve(part.T @ part + unit_penalty * np.eye(5), part.T @ (aim - aim.mean()))
        np.testing.assert_allclose(weights[column], wanted, atol=1e-9)
        assert bias[column] == pytest.approx(aim.mean() - x[rows].mean(axis=0) @ wanted)


def test_scores_flow_along_the_graph() -> None:
    """By the definition, with a dense matrix."""
    vectors, data = made(50, 14, missing=0.4)
    sources, targets, weights = neighbours(vectors, 4)
    dense = np.zeros((50, 50))
    dense[sources, targets] = weights
    assert not dense.diagonal().any()
    assert (np.count_nonzero(dense, axis=1) <= 4).all()
    np.testing.assert_allclose(dense.sum(axis=1)[dense.any(axis=1)], 1)
    start = np.where(data.known, data.scores - 0.5, 0.0)
    flow, linked = start.copy(), dense.any(axis=1)[:, None]
    for _ in range(10):
        moved = dense @ flow
        flow = np.where(linked, np.where(data.known, 0.4 * start + 0.6 * moved, moved), start)
    np.testing.assert_allclose(spread((sources, targets, weights), start, data.known, 0.6), flow, atol=1e-12)


def test_the_gradients_are_those_of_the_losses() -> None:
    chance = np.random.default_rng(15)
    x, y = chance.standard_normal((9, 6)), chance.random((9, 4))
    known = chance.random((9, 4)) < 0.7
    a, e = chance.standard_normal((3, 6)), chance.standard_normal((4, 3))
    _, a_back, e_back = losses(x, y, known, a, e)
    for array, back in ((a, a_back), (e, e_back)):
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + 1e-6
            above, _, _ = losses(x, y, known, a, e)
            array[place] = kept - 1e-6
            below, _, _ = losses(x, y, known, a, e)
            array[place] = kept
            assert back[place] == pytest.approx((above - below) / 2e-6, abs=1e-6)
