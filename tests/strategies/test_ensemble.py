"""Ensembles and constants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.mlops.sizes import billions, make_by_size
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.constant import LargestStrategy, SmallestStrategy
from pointsman.strategies.elo import EloStrategy
from pointsman.strategies.ensemble import EnsembleStrategy, Member
from pointsman.strategies.linear import LinearStrategy

MODELS = ("a", "b", "c")


def linear(seed: int, width: int) -> LinearStrategy:
    weights = np.random.default_rng(seed).standard_normal((width, 3)).astype(np.float32)
    return LinearStrategy(MODELS, weights, np.full(3, 0.5, np.float32), "identity")


@pytest.mark.strategy("formula", "ensemble")
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0.01, 1))
def test_the_mean_of_members_on_slices(seed: int, first: float, second: float) -> None:
    members = [Member(linear(seed, 3), 0, 3, first), Member(linear(seed + 1, 4), 3, 7, second)]
    ensemble = EnsembleStrategy(MODELS, members, "direct")
    vectors = np.random.default_rng(seed).standard_normal((5, 7)).astype(np.float32)
    parts = [np.clip(m.strategy.score(np.ascontiguousarray(vectors[:, m.start : m.stop])), 0, 1) for m in members]
    expected = (first * parts[0] + second * parts[1]) / (first + second)
    np.testing.assert_allclose(ensemble.score(vectors), expected, atol=1e-5)
    assert ensemble.dimensions == 7
    again = EnsembleStrategy.from_parts(MODELS, ensemble.params(), ensemble.arrays())
    assert np.array_equal(again.score(vectors), ensemble.score(vectors))
    assert sorted(ensemble.arrays()) == ["0.bias", "0.weights", "1.bias", "1.weights"]


def test_members_that_only_rank_can_be_standardised_and_not_averaged() -> None:
    elo = EloStrategy(MODELS, np.array([1100.0, 1000.0, 900.0]))
    ensemble = EnsembleStrategy(MODELS, [Member(elo, 0, 3, 1.0)], "standard")
    np.testing.assert_allclose(ensemble.score(np.zeros((1, 3), np.float32))[0], [1.5**0.5, 0, -(1.5**0.5)], atol=1e-6)
    assert ensemble.scale == "rank"
    with pytest.raises(BundleError, match="only rank"):
        EnsembleStrategy.from_parts(MODELS, {**ensemble.params(), "combine": "direct"}, ensemble.arrays())


@pytest.mark.parametrize(
    ("change", "arrays", "code"),
    [
        ({"kind": "ensemble"}, {}, "E4306"),
        ({"kind": "nothing"}, {}, "E4306"),
        ({"start": 2}, {}, "E4307"),
        ({"start": 9}, {}, "E4307"),
        ({"weight": 0.0}, {}, "E4306"),
        ({"weight": float("nan")}, {}, "E4306"),
        ({"params": {"link": "cubic"}}, {}, "E4306"),
        ({}, {"1.weights": np.zeros((3, 3), np.float32)}, "E4307"),
        ({}, {"00.weights": np.zeros((3, 3), np.float32)}, "E4307"),
        ({}, {"0.": np.zeros(3, np.float32)}, "E4307"),
        ({}, {"weights": np.zeros(3, np.float32)}, "E4307"),
        ({}, {f"{'9' * 5000}.weights": np.zeros(3, np.float32)}, "E4307"),
    ],
)
def test_what_is_refused(change: dict[str, Any], arrays: dict[str, Any], code: str) -> None:
    good = EnsembleStrategy(MODELS, [Member(linear(0, 3), 0, 3, 1.0)], "direct")
    params = good.params()
    params["members"] = [{**params["members"][0], **change}]
    with pytest.raises(BundleError) as caught:
        EnsembleStrategy.from_parts(MODELS, params, {**good.arrays(), **arrays})
    assert caught.value.code == code


def test_many_members_are_refused() -> None:
    good = EnsembleStrategy(MODELS, [Member(linear(0, 3), 0, 3, 1.0)], "direct")
    with pytest.raises(BundleError):
        EnsembleStrategy.from_parts(MODELS, {**good.params(), "members": good.params()["members"] * 17}, good.arrays())


@pytest.mark.strategy("formula", "smallest", "largest")
def test_sizes_are_an_order_and_ties_go_to_the_first() -> None:
    sizes = np.array([7.0, 3.0, 7.0])
    query = np.zeros((1, 1), np.float32)
    np.testing.assert_allclose(SmallestStrategy(MODELS, sizes).score(query)[0], [2 / 3, 1, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(LargestStrategy(MODELS, sizes).score(query)[0], [1, 1 / 3, 2 / 3], atol=1e-6)
    with pytest.raises(BundleError):
        SmallestStrategy.from_parts(MODELS, {}, {"sizes": np.array([1.0, -1.0, 2.0])})


def test_an_absurd_rating_is_refused() -> None:
    with pytest.raises(BundleError):
        EloStrategy.from_parts(MODELS, {}, {"ratings": np.array([1e7, 0, 0])})


@pytest.mark.parametrize(
    ("size", "value"),
    [("7B", 7), ("3b", 3), (" 1.5T ", 1500), ("512M", 0.512), ("90K", 9e-5), ("8", 8), (8, 8), (0.5, 0.5)],
)
def test_sizes_are_read(size: Any, value: float) -> None:
    assert billions(size) == pytest.approx(value)


@pytest.mark.parametrize(
    "size", ["unknown", "B", "unknownB", "-7B", "7BB", "", None, True, [7], "1e3B", "inf", "9" * 5000 + "B"]
)
def test_what_is_no_size(size: Any) -> None:
    assert billions(size) is None


@pytest.mark.requirement("R-5.2")
@pytest.mark.parametrize(("kind", "first"), [("smallest", "c"), ("largest", "a")])
def test_a_bundle_from_the_models_sizes(kind: str, first: str, tmp_path: Path) -> None:
    path = tmp_path / "llm.json"
    path.write_text(json.dumps({"a": {"size": "70B"}, "b": {"size": "70B"}, "c": {"size": "900M"}, "d": {"size": "?"}}))
    said: list[str] = []
    bundle = load_bundle(make_by_size(kind, path, tmp_path / "out", progress=said.append), expect_name=f"llmrouter-{kind}")
    scores = bundle.score("anything")
    assert max(scores, key=scores.__getitem__) == first
    assert set(scores) == {"a", "b", "c"}
    assert "no size is known of d" in said[0]
    assert bundle.size < 4000
    path.write_text(json.dumps({"a": {"size": "?"}}))
    with pytest.raises(BundleError) as caught:
        make_by_size(kind, path, tmp_path / "out")
    assert caught.value.code == "E4320"
