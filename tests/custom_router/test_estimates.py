"""Estimates that forget: bounds, monotony, forgetting, merging in any order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.custom_router.estimates import ACCURACY, LEAST, MOST, Decayed, bucket, quantile, share, value_of

pytestmark = pytest.mark.requirement("F-6")

COUNTS = st.floats(0.01, 1e6)
VALUES = st.floats(LEAST * 2, MOST / 2)
TIMES = st.lists(st.floats(0, 5_000), min_size=1, max_size=40).map(sorted)


@given(COUNTS, st.floats(0, 1))
def test_a_share_lies_within_its_interval_and_that_within_one(of: float, rate: float) -> None:
    found = share(rate * of, of)
    assert found is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(rate)


@given(COUNTS, st.floats(0, 1), st.floats(1.1, 100))
def test_more_samples_make_it_surer(of: float, rate: float, more: float) -> None:
    few, many = share(rate * of, of), share(rate * of * more, of * more)
    assert few is not None
    assert many is not None
    assert many.high - many.low < few.high - few.low + 1e-9


@given(COUNTS, st.floats(0, 0.99), st.floats(0.001, 0.01))
def test_more_good_ones_make_it_higher(of: float, rate: float, more: float) -> None:
    before, after = share(rate * of, of), share((rate + more) * of, of)
    assert before is not None
    assert after is not None
    assert after.value > before.value
    assert after.low >= before.low - 1e-9
    assert after.high >= before.high - 1e-9


def test_wilson_is_wilson() -> None:
    """Ten of ten: [0.7225, 1] (Brown, Cai, DasGupta 2001); nothing to tell by tells nothing."""
    found = share(10, 10)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert share(0, 0) is None
    assert share(1, math.nan) is None


@given(VALUES)
def test_a_bucket_is_as_accurate_as_promised(value: float) -> None:
    assert abs(value_of(bucket(value)) - value) <= ACCURACY * value * (1 + 1e-6)


@given(VALUES, VALUES)
def test_buckets_keep_the_order(one: float, other: float) -> None:
    assert bucket(min(one, other)) <= bucket(max(one, other))


@given(st.sampled_from([0.0, -1.0, 1e-300, 1e300, math.inf]))
def test_values_beyond_are_counted_as_the_last(value: float) -> None:
    assert bucket(LEAST) <= bucket(value) <= bucket(MOST)


@given(st.lists(VALUES, min_size=1, max_size=200), st.sampled_from([0.1, 0.5, 0.95]))
def test_a_quantile_is_within_its_accuracy(values: list[float], q: float) -> None:
    found = quantile(((bucket(value), 1.0) for value in values), q)
    exact = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    assert found is not None
    assert abs(found.value - exact) <= ACCURACY * exact * (1 + 1e-6)
    assert found.low <= found.value <= found.high
    assert found.weight == pytest.approx(len(values))


@settings(max_examples=50)
@given(TIMES, st.floats(1, 1_000), st.floats(0, 10_000))
def test_a_sample_counts_by_its_age_alone(times: list[float], half_life: float, later: float) -> None:
    sums, now = Decayed(half_life, times[0]), times[-1] + later
    for at in times:
        sums.add("n", 1.0, at)
    exact = math.fsum(2.0 ** (-(now - at) / half_life) for at in times)
    assert sums.at(now).get("n", 0.0) == pytest.approx(exact, rel=1e-6, abs=2e-6)


def test_after_a_half_life_it_counts_half_and_after_many_not_at_all() -> None:
    sums = Decayed(10.0, 0.0)
    sums.add("n", 8.0, 0.0)
    assert sums.at(10.0) == {"n": pytest.approx(4.0)}
    assert sums.at(1e6) == {}
    sums.add("n", 1.0, 1e9)  # long after: no float overflows
    assert sums.at(1e9) == {"n": pytest.approx(1.0)}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1_000), st.integers(0, 2), st.sampled_from("ab")), max_size=40), st.randoms())
def test_sums_of_workers_add_up_in_any_order(samples: list[tuple[float, int, str]], chance: random.Random) -> None:
    one, parts = Decayed(60.0, 0.0), [Decayed(60.0, float(start)) for start in (0, 300, 700)]
    for at, worker, name in sorted(samples):
        one.add(name, 1.0, at)
        parts[worker].add(name, 1.0, at)
    totals = []
    for _ in range(2):
        chance.shuffle(parts)
        total: dict[str, float] = {}
        for part in parts:
            part.into(total, 1_000.0)
        totals.append(total)
    whole = one.at(1_000.0)
    for total in totals:
        assert {name: total.get(name, 0.0) for name in whole} == pytest.approx(whole, rel=1e-6, abs=1e-6)
