"""Prometheus metrics, in the scrape that LiteLLM serves at `/metrics` (its callback `prometheus`).

One `Metrics` a worker; names and meanings stand in `pointsman.callbacks.names`. With several workers `prometheus_client` keeps
the values in files under `PROMETHEUS_MULTIPROC_DIR`, and whichever worker is scraped adds them up. Counters of a worker that
died stay, so that sums never fall; its gauges go when the next worker starts (LiteLLM's `mark_dead_workers`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from pointsman.callbacks.labels import OTHER, Words, endpoint_of
from pointsman.callbacks.names import METRICS
from pointsman.decisions.ticket import Ticket, current_ticket
from pointsman.decisions.types import Attempt, Decision, Outcome

__all__ = ["METRICS", "Metrics", "Request"]

logger = logging.getLogger("pointsman.metrics")

LITELLM = "litellm"
MAX_UPSTREAMS = 256
"""Upstreams of the configuration that have series of their own."""
MAX_WORDS = 64
"""Different words in a label beyond those that the configuration knows."""
ENTITIES = ("key", "team", "team_member", "user", "end_user", "organization", "project", "tag", "model_access_group", "proxy")
"""LiteLLM's, whose budget may be spent; a series each from the start, so that the first rejection is a rise."""
BREAKER_STATES: Mapping[str, int] = {"closed": 0, "held_closed": 0, "half_open": 1, "open": 2, "held_open": 3}
RELOADS = ("polls", "swaps", "rejected", "failures", "rollbacks")
SESSIONS = frozenset({"new", "kept", "moved", "returned"})
"""What may become of a sticky session (`pointsman.custom_router.pins`)."""

DECISION_BUCKETS = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.5, 1.0, 5.0)
SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
"""A latency objective has to be one of them."""
WAIT_BUCKETS = (0.001, 0.01, *SECONDS_BUCKETS)
_BUCKETS = {"pointsman_routing_decision_seconds": DECISION_BUCKETS, "pointsman_queue_wait_seconds": WAIT_BUCKETS}
_MODES: dict[str, Literal["livemax", "livemin", "livemostrecent", "livesum"]] = {
    "pointsman_strategy_generation": "livemin",  # the worker that lags behind
    "pointsman_strategy_info": "livesum",
    "pointsman_breaker_state": "livemax",
    "pointsman_decision_queue_records": "livesum",
    "pointsman_spend_queue_rows": "livesum",
    "pointsman_requests_in_flight": "livesum",
    "pointsman_queue_waiting_requests": "livesum",
    "pointsman_queue_running_requests": "livesum",
    "pointsman_queue_limit_requests": "livesum",
    "pointsman_spend_flush_lag_seconds": "livemax",
}
"""How a gauge of several workers becomes one; what the supervisor says is the same in all: `livemostrecent`."""


class Rate(Protocol):
    """An estimate (`custom_router.estimates.Estimate`)."""

    @property
    def value(self) -> float: ...
    @property
    def weight(self) -> float: ...


class Score(Protocol):
    """What is known of an upstream (`custom_router.scores.Score`), times in milliseconds, as p50 and p95."""

    @property
    def upstream(self) -> str: ...
    @property
    def success(self) -> Rate | None: ...
    @property
    def latency(self) -> tuple[Rate, Rate] | None: ...
    @property
    def first_token(self) -> tuple[Rate, Rate] | None: ...
    @property
    def tokens_per_second(self) -> Rate | None: ...
    @property
    def flaws(self) -> Rate | None: ...
    @property
    def feedback(self) -> Rate | None: ...


_CODE = re.compile("[1-5][0-9][0-9]")


@dataclass(slots=True)
class Request:
    """What the middleware saw of a request. Times in seconds from its start.

    Attributes:
        path: of the URL.
        status: of the answer; 499 where the client left before it began.
        streamed: it is a stream of events.
        first: time of the stream's first bytes.
        complete: the answer's end was sent.
        seconds: time of the end.
    """

    path: str
    status: int = 0
    streamed: bool = False
    first: float | None = None
    complete: bool = False
    seconds: float = 0.0


class Metrics:
    """Counts. No method raises or blocks: what cannot be written (a full disk) is told once, and requests go on uncounted.

    Args:
        strategies: names that the configuration knows.
        groups, models: model groups and `litellm_params.model`s that it knows.
        registry: where the metrics stand; each name only once.
    """

    def __init__(
        self,
        strategies: Iterable[str],
        groups: Iterable[str] = (),
        models: Iterable[str] = (),
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._strategies = Words({*strategies, LITELLM, "rule", "sticky"}, 0)
        self._groups, self._models = Words({"", *groups}, MAX_WORDS), Words({"", *models}, MAX_WORDS)
        self._fallbacks, self._errors = Words({""}, MAX_WORDS), Words({""}, MAX_WORDS)
        self._entities, self._statuses = Words(ENTITIES, 0), Words((), MAX_WORDS)
        self._versions, self._destinations = Words({""}, MAX_WORDS), Words({""}, MAX_WORDS)
        self._upstreams = Words((), MAX_UPSTREAMS)
        self._serving: dict[str, tuple[str, str, str]] = {}
        self._store = {"written": 0, "dropped": 0}
        self._broken = False
        self._counters = {name: Counter(name, row.meaning, row.labels, registry=registry) for name, row in _rows("counter")}
        self._histograms = {
            name: Histogram(name, row.meaning, row.labels, registry=registry, buckets=_BUCKETS.get(name, SECONDS_BUCKETS))
            for name, row in _rows("histogram")
        }
        self._gauges = {
            name: Gauge(name, row.meaning, row.labels, registry=registry, multiprocess_mode=_MODES.get(name, "livemostrecent"))
            for name, row in _rows("gauge")
        }
        self._children: dict[tuple[str, ...], Any] = {}
        for entity in (*ENTITIES, OTHER):
            self._safely(partial(self._count, by=0), "pointsman_budget_rejections_total", entity)

    def record(self, record: Decision | Attempt | Outcome) -> None:
        """Count one leaf record."""
        if isinstance(record, Decision):
            self._safely(self._decision, record)
        elif isinstance(record, Attempt):
            self._safely(self._attempt, record)
        else:
            self._safely(self._outcome, record)

    def request(self, request: Request, ticket: Ticket | None) -> None:
        """Count one request, at its end."""
        self._safely(self._request, request, ticket)

    def sample(self, pending: int, written: int, dropped: int, serving: Mapping[str, tuple[int, str, str]]) -> None:
        """Take the state of this worker.

        Args:
            pending, written, dropped: of the store of decisions.
            serving: strategy -> (generation, kind, version).
        """
        self._safely(self._sample, pending, {"written": written, "dropped": dropped}, serving)

    def spend(self, rows: int, lag: float) -> None:
        """Take how far LiteLLM is behind here with writing what requests cost (`pointsman.callbacks.spend`)."""
        self._safely(self._gauges["pointsman_spend_queue_rows"].set, rows)
        self._safely(self._gauges["pointsman_spend_flush_lag_seconds"].set, lag)

    def in_flight(self, requests: int) -> None:
        """Take how many requests are in flight in this worker (`pointsman.http.drain`)."""
        self._safely(self._gauges["pointsman_requests_in_flight"].set, requests)

    def queue_left(self, group: str, priority: str, result: str, seconds: float) -> None:
        """Count one request that no longer waits (`pointsman.custom_router.turns`)."""
        group = self._groups(group)
        self._safely(partial(self._observe, value=seconds), "pointsman_queue_wait_seconds", group, priority)
        self._safely(self._count, "pointsman_queue_requests_total", group, priority, result)

    def stopped(self, group: str, limit: str) -> None:
        """Count one request that gets no further try (`pointsman.custom_router.failover.again`)."""
        self._safely(self._count, "pointsman_failover_stops_total", self._groups(group), limit)

    def hedged(self, group: str, outcome: str) -> None:
        """Count one request that took long enough for a second call (`pointsman.custom_router.hedging`)."""
        self._safely(self._count, "pointsman_hedges_total", self._groups(group), outcome)

    def stream_broke(self, model: str, broken: bool) -> None:
        """Count one stream that broke, `broken`: after its first content."""
        self._safely(self._count, "pointsman_streams_broken_total", self._models(model), "after" if broken else "before")

    def queues(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Take the state of this worker's queues, as `custom_router.turns.Turns.status` tells it."""
        for state in states:
            self._safely(self._queue, state, self._groups(state["group"] or ""))

    def upstreams(self, scores: Iterable[Score]) -> None:
        """Take what is known of the configured upstreams; of more than have a label nothing is told."""
        for score in scores:
            if (label := self._upstreams(score.upstream)) != OTHER:
                self._safely(self._upstream, label, score)

    def probed(self, kind: str, result: str) -> None:
        """Count one question of the gateway's own (`pointsman.custom_router.probes`)."""
        self._safely(self._count, "pointsman_probes_total", kind, result)

    def breaker(self, upstream: str, state: str, cause: str | None) -> None:
        """Count a change of a breaker (`pointsman.custom_router.breakers`)."""
        self._safely(self._count, "pointsman_breaker_transitions_total", self._upstreams(upstream), state, cause or "")

    def breakers(self, states: Mapping[str, str]) -> None:
        """Take the states of this worker's breakers, by upstream."""
        for upstream, state in states.items():
            if (label := self._upstreams(upstream)) != OTHER:
                self._safely(self._gauges["pointsman_breaker_state"].labels(label).set, BREAKER_STATES.get(state, 0))

    def told(self, message: Mapping[str, Any]) -> None:
        """Take the state of the instance, as the supervisor tells it (`pointsman.process.feed`)."""
        self._safely(self._told, message)

    def exported(self, signal: str, destination: str, result: str, count: int) -> None:
        """Take what became of telemetry (`pointsman.callbacks.exports`)."""
        self._safely(self._exported, signal, destination, result, count)

    def know(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Tell the groups and models of these entries of `model_list` by name from now on."""
        entries = list(entries)
        self._groups.know(str(entry.get("model_name")) for entry in entries)
        self._models.know(str((entry.get("litellm_params") or {}).get("model")) for entry in entries)

    def _safely(self, count: Callable[..., None], *arguments: Any) -> None:
        try:
            count(*arguments)
        except (OSError, ValueError) as error:  # a full disk; a file under `PROMETHEUS_MULTIPROC_DIR` that was taken away
            if not self._broken:
                logger.error("metrics cannot be written: %s", error)
            self._broken = True

    def _count(self, name: str, *labels: str, by: float = 1) -> None:
        self._child(self._counters, name, labels).inc(by)

    def _observe(self, name: str, *labels: str, value: float) -> None:
        self._child(self._histograms, name, labels).observe(value)

    def _child(self, family: Mapping[str, Any], name: str, labels: tuple[str, ...]) -> Any:
        """One series. `labels()` of the client takes longer than to count; there are as many series as bounded labels allow."""
        key = (name, *labels)
        if (known := self._children.get(key)) is None:
            known = self._children[key] = family[name].labels(*labels)
        return known

    def _decision(self, record: Decision) -> None:
        strategy = self._strategies(record.strategy or LITELLM)
        self._count("pointsman_routing_decisions_total", strategy, self._fallbacks(record.fallback or ""))
        self._observe("pointsman_routing_decision_seconds", strategy, value=record.microseconds / 1e6)
        for dropped in record.dropped:
            if dropped.reason.startswith("breaker_"):
                self._count("pointsman_breaker_ejections_total", self._groups(record.group), dropped.reason)
        if record.detail is not None and record.detail.get("panic"):
            self._count("pointsman_breaker_panic_total", self._groups(record.group))
        if record.detail is not None and (session := record.detail.get("session")) in SESSIONS:
            self._count("pointsman_sessions_total", str(session))

    def _attempt(self, record: Attempt) -> None:
        model = self._models(record.model or "")
        self._count("pointsman_attempts_total", model, self._errors(record.error or "") if record.outcome != "ok" else "")
        if record.number > 1 and not record.hedge:
            self._count("pointsman_retries_total", model)
        if record.outcome == "ok" and record.latency_ms is not None:
            self._observe("pointsman_attempt_seconds", model, value=record.latency_ms / 1000)

    def _outcome(self, record: Outcome) -> None:
        ticket = current_ticket()
        decision = ticket.decision if ticket is not None else None
        group = self._groups(ticket.group or "") if ticket is not None else ""
        strategy = self._strategies(decision.strategy or LITELLM) if decision is not None else LITELLM
        cost = max(0.0, record.cost)
        strong = cost if record.strong_cost is None else max(0.0, record.strong_cost)
        self._count("pointsman_cost_usd_total", group, strategy, by=cost)
        self._count("pointsman_always_strong_cost_usd_total", group, strategy, by=strong)

    def _request(self, request: Request, ticket: Ticket | None) -> None:
        endpoint = endpoint_of(request.path)
        if endpoint == "probe":
            return
        group = self._groups((ticket.group if ticket is not None else None) or "")
        code = str(request.status)
        self._count("pointsman_requests_total", endpoint, group, self._statuses(code) if _CODE.fullmatch(code) else OTHER)
        self._observe("pointsman_request_seconds", endpoint, group, value=request.seconds)
        if request.first is not None and request.status < 400:
            self._observe("pointsman_time_to_first_token_seconds", endpoint, group, value=request.first)
        error = ticket.error if ticket is not None else None
        if request.status >= 400 or error is not None or not request.complete:
            word = error or (f"http_{code}" if request.status >= 400 else "incomplete")
            self._count("pointsman_request_errors_total", endpoint, group, self._errors(word))
        if ticket is not None and ticket.fell_back is not None:
            self._count("pointsman_fallbacks_total", group, self._errors(ticket.fell_back))
        if ticket is not None and ticket.budget is not None:
            self._count("pointsman_budget_rejections_total", self._entities(ticket.budget))

    def _sample(self, pending: int, store: Mapping[str, int], serving: Mapping[str, tuple[int, str, str]]) -> None:
        self._gauges["pointsman_decision_queue_records"].set(pending)
        for result, now in store.items():
            self._count("pointsman_decision_records_total", result, by=max(0, now - self._store[result]))
            self._store[result] = now
        for name, (generation, kind, version) in serving.items():
            strategy = self._strategies(name)
            self._gauges["pointsman_strategy_generation"].labels(strategy).set(generation)
            labels = (strategy, kind, self._versions(version))
            if (before := self._serving.get(name)) not in (labels, None):
                self._gauges["pointsman_strategy_info"].labels(*before).set(0)
            self._gauges["pointsman_strategy_info"].labels(*labels).set(1)
            self._serving[name] = labels

    def _queue(self, state: Mapping[str, Any], group: str) -> None:
        self._gauges["pointsman_queue_limit_requests"].labels(group).set(state["limit"])
        self._gauges["pointsman_queue_running_requests"].labels(group).set(state["running"])
        for of_class in state["classes"]:
            self._gauges["pointsman_queue_waiting_requests"].labels(group, of_class["priority"]).set(of_class["waiting"])

    def _upstream(self, upstream: str, score: Score) -> None:
        def set_(name: str, value: float | None, *labels: str) -> None:
            if value is not None:
                self._gauges[f"pointsman_upstream_{name}"].labels(upstream, *labels).set(value)

        set_("attempts_weight", score.success.weight if score.success is not None else 0.0)
        for name, estimate in (
            ("success_ratio", score.success),
            ("tokens_per_second", score.tokens_per_second),
            ("parity_violation_ratio", score.flaws),
            ("feedback_ratio", score.feedback),
        ):
            set_(name, estimate.value if estimate is not None else None)
        for name, pair in (("latency_seconds", score.latency), ("first_token_seconds", score.first_token)):
            for quantile, estimate in zip(("0.5", "0.95"), pair or (), strict=False):
                set_(name, estimate.value / 1000, quantile)

    def _exported(self, signal: str, destination: str, result: str, count: int) -> None:
        self._count("pointsman_export_records_total", signal, self._destinations(destination), result, by=count)

    def _told(self, message: Mapping[str, Any]) -> None:
        for row in message["strategies"]:
            strategy = self._strategies(row["name"])
            for name in ("failing", "degraded", "desired_generation"):
                self._gauges[f"pointsman_strategy_{name}"].labels(strategy).set(row[name])
            for result in RELOADS:
                if result in row["events"]:
                    self._count("pointsman_reload_events_total", strategy, result, by=row["events"][result])
        self._gauges["pointsman_config_failing"].set(message["config_failing"])
        self._gauges["pointsman_sharing_failing"].set(message.get("sharing_failing") or 0)
        for topic, count in (message.get("refused") or {}).items():
            self._count("pointsman_facts_refused_total", topic, by=count)


def _rows(instrument: str) -> list[tuple[str, Any]]:
    return [(name, row) for name, row in METRICS.items() if row.instrument == instrument]
