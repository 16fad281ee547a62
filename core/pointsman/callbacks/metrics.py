"""Prometheus metrics of what was decided, in the scrape that LiteLLM serves at `/metrics` (its callback `prometheus`).

One object a worker. With several workers `prometheus_client` keeps the values in files under `PROMETHEUS_MULTIPROC_DIR`, and
whichever worker is scraped adds them up; a worker's numbers outlive it until the gateway ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from pointsman.callbacks import names
from pointsman.decisions.types import Attempt, Decision, Outcome

__all__ = ["METRICS", "RoutingMetrics"]

logger = logging.getLogger("pointsman.metrics")

METRICS: dict[str, str] = {
    name: names.METRICS[name].meaning for name in ("pointsman_routing_decisions_total", "pointsman_routing_decision_seconds")
}
"""Name -> meaning."""
LITELLM = "litellm"
OTHER = "other"
MAX_WORDS = 64
"""Different words for a fallback; a strategy may bring its own, and each one is a time series for ever."""
BUCKETS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.5, 1.0, 5.0)


class RoutingMetrics:
    """Counts decisions.

    Args:
        strategies: names that the configuration knows; another one is counted as `other`.
        registry: where the metrics stand; each name only once.
    """

    def __init__(self, strategies: Iterable[str], registry: CollectorRegistry = REGISTRY) -> None:
        self._strategies = {*strategies, LITELLM, "rule"}
        self._words: set[str] = {""}
        self._broken = False
        decisions, seconds = METRICS
        self._decisions = Counter(decisions, METRICS[decisions], ("strategy", "fallback"), registry=registry)
        self._seconds = Histogram(seconds, METRICS[seconds], ("strategy",), registry=registry, buckets=BUCKETS)

    def record(self, record: Decision | Attempt | Outcome) -> None:
        """Count one record; of what cannot be written to disk only the first time is told."""
        if not isinstance(record, Decision):
            return
        strategy = record.strategy or LITELLM
        if strategy not in self._strategies:
            strategy = OTHER
        try:
            self._decisions.labels(strategy, self._bounded(record.fallback or "")).inc()
            self._seconds.labels(strategy).observe(record.microseconds / 1e6)
        except OSError as error:  # a full disk: requests go on uncounted
            if not self._broken:
                logger.error("metrics cannot be written: %s", error)
            self._broken = True

    def _bounded(self, word: str) -> str:
        if word in self._words:
            return word
        if len(self._words) > MAX_WORDS:
            return OTHER
        self._words.add(word)
        return word
