"""Decisions are counted, and whatever the words are, the number of time series is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pointsman.callbacks.metrics import MAX_WORDS, METRICS, RoutingMetrics
from pointsman.decisions.types import Decision, Outcome

TOTAL, SECONDS = METRICS


def decision(strategy: str | None, fallback: str | None = None, microseconds: int = 0) -> Decision:
    return Decision("dec_1", "r", "auto", strategy=strategy, fallback=fallback, microseconds=microseconds)


def test_what_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = RoutingMetrics(["knn"], registry)
    metrics.record(decision("knn", microseconds=1500))
    metrics.record(decision(None, "deadline"))
    metrics.record(decision(None, "deadline"))
    metrics.record(decision("forged"))
    metrics.record(Outcome("dec_1", "success"))

    def count(strategy: str, fallback: str) -> float | None:
        return registry.get_sample_value(TOTAL, {"strategy": strategy, "fallback": fallback})

    assert count("knn", "") == 1
    assert count("litellm", "deadline") == 2
    assert count("other", "") == 1
    assert registry.get_sample_value(f"{SECONDS}_sum", {"strategy": "knn"}) == pytest.approx(0.0015)
    assert registry.get_sample_value(f"{SECONDS}_bucket", {"strategy": "knn", "le": "0.001"}) == 0
    assert registry.get_sample_value(f"{SECONDS}_bucket", {"strategy": "knn", "le": "0.002"}) == 1


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=300))
def test_property_a_flood_of_names_is_bounded(names: list[tuple[str, str]]) -> None:
    registry = CollectorRegistry()
    metrics = RoutingMetrics(["knn"], registry)
    for strategy, fallback in [*names, *((f"s{number}", f"f{number}") for number in range(3 * MAX_WORDS))]:
        metrics.record(decision(strategy, fallback))
    series = [s for metric in registry.collect() for s in metric.samples if s.name == TOTAL]
    assert len({s.labels["strategy"] for s in series}) <= 4
    assert len({s.labels["fallback"] for s in series}) <= MAX_WORDS + 2
    assert sum(s.value for s in series) == len(names) + 3 * MAX_WORDS, "none is lost"
