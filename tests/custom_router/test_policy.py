"""Policies: what the weight, the target and exploration do to an order, and with which probability."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.conversation import Conversations, Turn, conversation_id
from pointsman.custom_router.cost import AnswerLengths, Expected, expected_costs, switching_costs
from pointsman.custom_router.pick import order
from pointsman.custom_router.policy import (
    Costs,
    Ranking,
    explore,
    goes_to_strong,
    propensities,
    rank_by_cost,
    rank_by_target,
    step_of,
)
from pointsman.custom_router.request import Candidate, Prices, candidate_of
from pointsman.mlops.calibrate import calibrate
from pointsman.mlops.train import train
from pointsman.policy_settings import ExploreSettings, PolicySettings, TargetSettings
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.manifest import Calibration

prices = st.builds(Prices, st.floats(0, 1e-3), st.floats(0, 1e-3), st.none() | st.floats(0, 1e-4))
names = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True)


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[Candidate], dict[str, float]]:
    candidates = [Candidate(name, f"x/{name}", (name,), None, draw(st.none() | prices)) for name in draw(names)]
    scored = {one.deployment_id: draw(st.floats(0, 1)) for one in candidates if draw(st.integers(0, 4))}
    return candidates, scored


@given(groups(), st.floats(0, 10), st.integers(0, 10_000))
def test_a_weighed_order_is_sorted_by_what_is_left_of_the_score(
    group: tuple[list[Candidate], dict[str, float]], weight: float, tokens: int
) -> None:
    candidates, scores = group
    costs = Costs(expected_costs(candidates, Expected(tokens, {one.deployment_id: 100 for one in candidates})))
    ranking = rank_by_cost(candidates, scores, "quality", weight, costs)
    assert sorted(ranking.order) == sorted(one.deployment_id for one in candidates)
    if ranking.policy == "cost":
        unit = max(costs.expected.values()) or 1.0
        worth = [scores[name] - weight * costs.expected[name] / unit for name in ranking.order if name in scores]
        assert worth == sorted(worth, reverse=True)
        assert all(0 <= cost / unit <= 1 for cost in costs.expected.values())
    else:
        assert ranking.order == order(candidates, scores)
        assert ranking.policy == ("argmax" if weight == 0 else "argmax:no_prices")
    without = [name for name in ranking.order if name not in scores]
    assert list(ranking.order[len(ranking.order) - len(without) :]) == without  # those come last


@given(groups(), st.floats(0.01, 5))
def test_more_weight_never_costs_more(group: tuple[list[Candidate], dict[str, float]], weight: float) -> None:
    candidates, scores = group
    costs = Costs(expected_costs(candidates, Expected(1000, {one.deployment_id: 100 for one in candidates})))
    if not scores or not costs.expected:
        return
    picks = [
        rank_by_cost(candidates, scores, "quality", value, costs).order[0] for value in (0.0, weight / 2, weight, 9 * weight)
    ]
    spent = [costs.expected[name] for name in picks]
    assert all(after <= before + 1e-12 for before, after in pairwise(spent))


def test_a_weight_says_where_it_cannot_be_applied() -> None:
    two = [Candidate(name, name, (name,), None) for name in "ab"]
    scores = {"a": 0.2, "b": 0.9}
    assert rank_by_cost(two, scores, "rank", 0.5, Costs({"a": 1.0, "b": 2.0})).policy == "argmax:rank"
    assert rank_by_cost(two, scores, "quality", 0.5, Costs({})).policy == "argmax:no_prices"
    assert rank_by_cost(two, scores, "quality", 0.5, Costs({"a": 0.0, "b": 0.0})).order == ("b", "a")
    assert rank_by_cost(two, scores, "quality", 0.8, Costs({"a": 1.0, "b": 100.0})).order == ("a", "b")
    # With a reference of one's own, the same prompt at a hundredth of it hardly weighs anything.
    assert rank_by_cost(two, scores, "quality", 0.8, Costs({"a": 1.0, "b": 100.0}), 10_000.0).order == ("b", "a")


def test_who_has_no_price_counts_as_the_dearest() -> None:
    three = [Candidate("a", "a", ("a",), None, Prices(1e-6, 2e-6)), Candidate("b", "b", ("b",), None, Prices(5e-6, 0.0))]
    three.append(Candidate("c", "c", ("c",), None))
    found = expected_costs(three, Expected(1000, {"a": 500, "b": 500, "c": 500}))
    assert found == pytest.approx({"a": 0.002, "b": 0.005, "c": 0.005})


def test_prices_come_from_the_file_and_then_from_the_map() -> None:
    def known(model: str) -> Prices | None:
        return Prices(3e-6, 15e-6, 3e-7) if model == "openai/m" else None

    def prices_of(**info: object) -> Prices | None:
        return candidate_of({"model_info": {"id": "d", **info}, "litellm_params": {"model": "openai/m"}}, known).prices

    assert prices_of() == Prices(3e-6, 15e-6, 3e-7)
    assert prices_of(input_cost_per_token=1e-6) == Prices(1e-6, 15e-6, None)
    assert prices_of(input_cost_per_token=0, output_cost_per_token=0) == Prices(0.0, 0.0, None)
    assert prices_of(input_cost_per_token=1e-6, cache_read_input_token_cost=1e-7) == Prices(1e-6, 15e-6, 1e-7)
    assert prices_of(input_cost_per_token=-1, output_cost_per_token=float("nan")) == Prices(3e-6, 15e-6, 3e-7)
    assert prices_of(base_model="other") is None


def test_leaving_a_warm_cache_costs_its_discount() -> None:
    two = [Candidate("a", "a", ("a",), None, Prices(3e-6, 0.0, 3e-7)), Candidate("b", "b", ("b",), None, Prices(1e-6, 0.0))]
    assert switching_costs(two, "a", 10_000) == pytest.approx({"b": 0.027})
    assert switching_costs(two, "b", 10_000) == {}  # no price for cached input: nothing is lost
    assert switching_costs(two, "gone", 10_000) == {}
    assert switching_costs(two, "a", 1023) == {}  # too short for a provider to cache
    costs = expected_costs(two, Expected(10_000, {"a": 100, "b": 100}))
    scores = {"a": 0.5, "b": 0.51}
    assert rank_by_cost(two, scores, "quality", 0.1, Costs(costs)).order[0] == "b"
    stays = rank_by_cost(two, scores, "quality", 0.1, Costs(costs, switching_costs(two, "a", 10_000)))
    assert (stays.order[0], stays.detail["switching"]) == ("a", pytest.approx({"b": 0.027}))


def test_conversations_are_told_by_key_session_and_opening() -> None:
    opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    later = [*opening, {"role": "assistant", "content": "hi"}, {"role": "user", "content": [{"type": "text", "text": "more"}]}]
    whose = ("g", "key", "team", None)
    first = conversation_id(whose, None, opening)
    assert first is not None
    assert first == conversation_id(whose, None, later)
    others = [
        conversation_id(whose, "s-1", opening),
        conversation_id(whose, None, opening[1:]),
        # The same session and the same words of somebody else: other key, other group, other team, logged in without a key.
        *(conversation_id(("g", *another), "s-1", opening) for another in ((None, None, "a"), (None, None, "b"))),
        *(conversation_id(other, None, opening) for other in (("g", "other", "team", None), ("h", "key", "team", None))),
        conversation_id(("g", "key", "other", None), None, opening),
        conversation_id(("gk", "ey", "team", None), None, opening),
    ]
    assert len({first, *others}) == 9
    assert conversation_id(whose, "s-1", []) == others[0]
    assert conversation_id(whose, None, [{"role": "assistant", "content": "x"}]) is None


def test_conversations_are_forgotten_after_a_while_and_over_a_bound() -> None:
    now = [0.0]
    memory = Conversations(ttl=300, bound=2, clock=lambda: now[0])
    for name in (b"1", b"2", b"3"):
        memory.served(name, Turn("a", 5))
    assert [memory.last(name) for name in (b"1", b"2", None)] == [None, Turn("a", 5), None]
    now[0] = 301.0
    assert memory.last(b"2") is None
    assert len(memory) == 1


def test_lengths_of_answers_are_learned_and_capped_by_the_request() -> None:
    lengths = AnswerLengths()
    one = [Candidate("a", "a", ("a",), None)]
    assert lengths.expect(one, 256, None) == {"a": 256}
    for _ in range(200):
        lengths.saw("a", 1000, 256)
    lengths.saw("a", 0, 256)  # no answer that was counted
    assert lengths.expect(one, 256, None) == {"a": 1000}
    assert lengths.expect(one, 256, 50) == {"a": 50}


explorations = st.builds(
    ExploreSettings,
    share=st.floats(0, 1),
    among=st.sampled_from(["all", "top2"]),
    how=st.sampled_from(["uniform", "softmax"]),
    temperature=st.floats(0.001, 1000),
)


@given(groups(), explorations)
def test_propensities_are_probabilities(group: tuple[list[Candidate], dict[str, float]], settings: ExploreSettings) -> None:
    candidates, scores = group
    ranked = order(candidates, scores)
    odds = propensities(ranked, scores, settings)
    assert sum(odds.values()) == pytest.approx(1.0)
    assert all(value >= 0 for value in odds.values())
    assert odds[ranked[0]] >= 1 - settings.share - 1e-9
    if settings.among == "top2":
        assert all(odds[name] == 0 for name in ranked[2:])


@given(groups(), explorations, st.integers(0, 2**32))
def test_whoever_is_picked_has_its_own_propensity(
    group: tuple[list[Candidate], dict[str, float]], settings: ExploreSettings, seed: int
) -> None:
    candidates, scores = group
    ranking = Ranking(order(candidates, scores))
    found = explore(ranking, scores, settings, random.Random(seed))
    assert sorted(found.order) == sorted(ranking.order)
    expected = propensities(ranking.order, scores, settings)[found.order[0]] if settings.share > 0 else 1.0
    assert found.propensity == pytest.approx(expected)
    assert found.propensity > 0
    assert found.policy == ("argmax+explore" if found.detail.get("explored") else "argmax")


def test_picks_come_as_often_as_their_propensity_says() -> None:
    """Inverse-propensity estimates are right only then; the greedy one counts whether chance took it or not."""
    scores = {"a": 0.9, "b": 0.7, "c": 0.1}
    ranking = Ranking(("a", "b", "c"))
    for settings in (
        ExploreSettings(share=0.3),
        ExploreSettings(share=0.5, how="softmax", temperature=0.3),
        ExploreSettings(share=1.0, among="top2"),
    ):
        chance, rounds = random.Random(7), 20_000
        counts = Counter(explore(ranking, scores, settings, chance).order[0] for _ in range(rounds))
        for name, odds in propensities(ranking.order, scores, settings).items():
            spread = 4 * (odds * (1 - odds) / rounds) ** 0.5
            assert counts[name] / rounds == pytest.approx(odds, abs=spread + 1e-9)
        rewards = {"a": 1.0, "b": 0.5, "c": 0.25}
        chance = random.Random(8)
        drawn = [explore(ranking, scores, settings, chance) for _ in range(rounds)]
        weighed = sum(rewards[one.order[0]] / one.propensity for one in drawn) / rounds
        reached = sum(rewards[name] for name, odds in propensities(ranking.order, scores, settings).items() if odds > 0)
        assert weighed == pytest.approx(reached, rel=0.1)


def table(quality: tuple[float, float] = (0.6, 0.8)) -> Calibration:
    margin = np.linspace(-1, 1, 200)
    weak, strong = np.full(200, quality[0]), np.full(200, quality[1])
    return calibrate("w", "s", margin, (weak, strong), np.stack((weak * 0 + 1.0, weak * 0 + 4.0), axis=1))


def test_the_step_of_a_target() -> None:
    calibration = table()
    assert step_of(TargetSettings(strong_share=0.2), calibration) == 20
    assert step_of(TargetSettings(quality=0.95), calibration) == 80  # 0.6 + 0.2 * 0.8 = 0.95 * 0.8
    assert step_of(TargetSettings(quality=0.5), calibration) == 0
    assert step_of(TargetSettings(cost=0.4), calibration) == 20  # (1 + 3 * 0.2) / 4
    assert step_of(TargetSettings(cost=0.1), calibration) == 0
    assert step_of(TargetSettings(cost=0.4), calibration.model_copy(update={"cost": None})) is None


def test_a_target_needs_both_models_and_a_table() -> None:
    three = [Candidate(name, name, (name,), None) for name in ("dw", "ds", "other")]
    scores, known = {"dw": 0.5, "ds": 0.6, "other": 0.9}, {"dw": "w", "ds": "s", "other": "o"}
    half = TargetSettings(strong_share=0.5)
    found = rank_by_target(three, scores, known, half, table(), "text")
    assert (found.order, found.policy) == (("ds", "other", "dw"), "target")
    few = rank_by_target(three, scores, known, TargetSettings(strong_share=0.1), table(), "text")
    assert few.order == ("dw", "other", "ds")
    assert rank_by_target(three, scores, known, half, None, "text").policy == "argmax:no_calibration"
    gone = rank_by_target(three[1:], {"ds": 0.6, "other": 0.9}, known, half, table(), "text")
    assert (gone.order, gone.policy) == (("other", "ds"), "argmax:no_pair")


def test_settings_refuse_what_contradicts_itself() -> None:
    for bad in ({"target": {}}, {"target": {"quality": 0.9, "cost": 0.1}}, {"target": {"cost": 0.1}, "cost_weight": 0.1}):
        with pytest.raises(ValueError, match=r"target"):
            PolicySettings.model_validate(bad)


def written(count: int, seed: int) -> list[tuple[str, float, float]]:
    """Prompts of words that are more or less hard; the weak model fails on the hard ones. -> text, score weak, score strong."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        hard = chance.random()
        words = [f"{'hard' if chance.random() < hard else 'easy'}{chance.randint(0, 30)}" for _ in range(12)]
        rows.append((f"{' '.join(words)} {number}", float(chance.random() < 1 - 0.8 * hard), float(chance.random() < 0.95)))
    return rows


@pytest.mark.parametrize("neighbours", [7, 40])  # few: many margins are equal
def test_the_share_that_is_asked_for_is_the_share_that_comes(tmp_path: Path, neighbours: int) -> None:
    lines = [json.dumps({"query": text, "scores": {"w": weak, "s": strong}}) for text, weak, strong in written(2400, 1)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    path = train("knn", tmp_path / "data.jsonl", tmp_path, encoder="hashing", dimensions=128, settings={"k": neighbours})
    bundle = load_bundle(path)
    assert bundle.manifest.evaluation is not None
    calibration = bundle.manifest.evaluation.calibration
    assert calibration is not None
    assert (calibration.weak, calibration.strong) == ("w", "s")
    fresh = written(1500, 2)
    scored = bundle.score_batch([text for text, _, _ in fresh]).tolist()
    columns = {name: bundle.models.index(name) for name in ("w", "s")}
    for wanted in (0.1, 0.2, 0.5, 0.8):
        step = step_of(TargetSettings(strong_share=wanted), calibration)
        assert step is not None
        sent = [
            goes_to_strong(calibration, step, row[columns["s"]] - row[columns["w"]], text)
            for row, (text, _, _) in zip(scored, fresh, strict=True)
        ]
        # Both the threshold and the count come from samples: 99.9% interval of their difference.
        spread = 3.3 * (wanted * (1 - wanted) * (1 / calibration.rows + 1 / len(fresh))) ** 0.5
        assert sum(sent) / len(sent) == pytest.approx(wanted, abs=spread)
        quality = np.mean([strong if go else weak for go, (_, weak, strong) in zip(sent, fresh, strict=True)])
        assert quality == pytest.approx(calibration.quality[step], abs=0.07)
