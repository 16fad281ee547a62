"""The arithmetic of `bench.strategies`, and a small run of it on the repository's own generator, without LLMRouter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.strategies import HEAVIEST, baselines, threshold_for, weight_for
from bench.strategies_data import ORDERS, paired, picked, ratio, read_sets, routing_rows, row_order, weighted
from bench.strategies_llmrouter import ROUTERS, timed_rows
from bench.strategies_tables import BESIDE, UNUSED

from support.marks import ROOT


def test_no_group_is_on_both_sides_and_the_same_seed_gives_the_same_split() -> None:
    (one,), (two,) = read_sets(None), read_sets(None)
    assert one.held.queries == two.held.queries
    assert not set(one.held_groups.tolist()) & set(one.train_groups.tolist())
    assert 0.15 < len(one.held) / (len(one.held) + len(one.train)) < 0.25


def test_rows_stand_in_the_order_that_is_named() -> None:
    (data,) = read_sets(None)
    names = {order: [data.train.models[column] for column in row_order(data, order)] for order in ORDERS}
    assert names["alphabetical"] == sorted(data.train.models)
    assert names["cheapest first"] == ["cheap-7b", "middle-13b", "dear-70b"]
    assert names["best first"][0] == "dear-70b"
    first = [row["model_name"] for _, row in zip(range(3), routing_rows(data, "cheapest first"), strict=False)]
    assert first == names["cheapest first"]


def test_a_pick_weighs_score_and_cost_and_ties_go_to_the_cheaper() -> None:
    scores, costs = np.array([[0.5, 0.9], [0.5, 0.5]], np.float32), np.array([[1.0, 4.0], [4.0, 1.0]])
    assert weighted(scores, costs, 0, 4).tolist() == [1, 1]
    assert weighted(scores, costs, 1, 4).tolist() == [0, 1]


def test_the_weight_is_the_smallest_that_keeps_to_the_budget() -> None:
    random = np.random.default_rng(0)
    scores, costs = random.random((300, 2)).astype(np.float32), np.tile([1.0, 10.0], (300, 1))

    def spent(weight: float) -> float:
        return float(costs[np.arange(300), weighted(scores, costs, weight, 10)].mean())

    for budget in (2.0, 4.0, 5.0):
        weight = weight_for(scores, costs, budget, 10)
        assert spent(weight) <= budget
        assert weight == 0 or spent(weight * (1 - 1e-6)) > budget
    assert weight_for(scores, costs, 100, 10) == 0
    assert weight_for(scores, costs, 0.5, 10) == HEAVIEST, "what cannot be kept to is told by the cost"


def test_the_threshold_is_the_lowest_that_keeps_to_the_budget() -> None:
    random = np.random.default_rng(0)
    margins = np.round(random.normal(size=400), 2)  # with ties, which stand on one side
    weak, strong = random.random(400), 5 + random.random(400)

    def spent(threshold: float) -> float:
        return float(np.where(margins > threshold, strong, weak).mean())

    for budget in (0.6, 2.0, 4.0):
        threshold = threshold_for(margins, weak, strong, budget)
        assert spent(threshold) <= budget
        assert spent(threshold - 0.01) > budget
    assert spent(threshold_for(margins, weak, strong, 100)) == pytest.approx(strong.mean())
    assert spent(threshold_for(margins, weak, strong, 0.1)) == pytest.approx(weak.mean())


def test_the_interval_is_by_groups() -> None:
    random = np.random.default_rng(1)
    values = random.normal(0.1, 1, 400)
    mean, low, high = paired(values, np.arange(400))
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    repeated = np.repeat(values, 4)
    assert paired(repeated, np.repeat(np.arange(400), 4))[1:] == pytest.approx((low, high), abs=0.02), "copies say nothing new"
    assert paired(repeated, np.arange(1600))[2] < high, "without groups they would"


def test_a_ratio_is_of_sums() -> None:
    over, under = np.array([1.0, 3.0] * 50), np.array([2.0, 2.0] * 50)
    mean, low, high = ratio(over, under, np.arange(100))
    assert mean == 1.0
    assert 0.85 < low < 1 < high < 1.15
    assert ratio(under, under, np.arange(100)) == (1.0, 1.0, 1.0)


def test_every_kind_is_measured_beside_llmrouters_or_says_why_not() -> None:
    from pointsman.mlops.trainers import TRAINERS

    assert {*TRAINERS, "smallest", "largest"} == {*ROUTERS, *BESIDE, *UNUSED}
    assert not (set(BESIDE) | set(UNUSED)) & set(ROUTERS)


def test_timed_rows_are_spread_over_all() -> None:
    assert timed_rows(3) == [0, 1, 2]
    rows = timed_rows(1290)
    assert len(set(rows)) == 400
    assert rows[0] == 0
    assert 1290 - 4 <= rows[-1] < 1290


def test_baselines() -> None:
    (data,) = read_sets(None)
    found = baselines(data)
    quality = {name.split(" (")[0]: value for name, (value, _) in found.items()}
    cost = {name.split(" (")[0]: value for name, (_, value) in found.items()}
    assert quality["oracle"] > quality["best single"] > quality["random"] > quality["cheapest"]
    assert cost["cheapest"] < cost["oracle"] < cost["best single"]
    everywhere = np.zeros(len(data.held), np.intp)
    assert picked(data, everywhere)[1].sum() == pytest.approx(data.costs(True)[:, 0].sum())


def test_a_small_run(tmp_path: Path) -> None:
    """On the generator a strategy that learns is about as good as the best model, and cheaper."""
    command = [sys.executable, "-m", "bench.strategies", "--work", str(tmp_path), "--json", str(tmp_path / "out.json")]
    subprocess.run(
        [*command, "--kinds", "linear", "knn", "elo", "hybrid", "smallest"], cwd=ROOT, check=True, capture_output=True
    )
    (result,) = json.loads((tmp_path / "out.json").read_text())
    rows = {row["kind"]: row for row in result["rows"]}
    best = next(value for name, value in result["baselines"].items() if name.startswith("best single"))
    cheapest = next(value for name, value in result["baselines"].items() if name.startswith("cheapest"))
    assert rows["elo"]["quality"] == pytest.approx(best[0]), "it is a constant"
    assert (rows["smallest"]["quality"], rows["smallest"]["cost"]) == pytest.approx(cheapest)
    assert rows["smallest"]["us_with_text"][0] < result["encoders"]["tfidf"][0], "it reads no text"
    assert cheapest[1] < rows["hybrid"]["cost"] < best[1]
    assert rows["linear"]["quality"] > best[0] - 0.05
    assert rows["linear"]["cost"] < best[1]
    assert all(0 < row["us"][0] <= row["us"][1] and row["us_with_text"][0] < 1e5 for row in rows.values())
    assert set(result["encoders"]) == {"hashing", "tfidf"}
