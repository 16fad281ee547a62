"""The metrics of `pointsman.callbacks.names`, THE table of telemetry: one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that we make.

    Attributes:
        name: in the scrape; a counter's ends in `_total`.
        instrument: what it is.
        unit: UCUM, as OpenTelemetry writes it (`s`, `{request}`, `USD`, `1`).
        meaning: one or two sentences.
        labels: what it is split by, every one of them bounded.
        otlp: its name over OTLP, where it leaves that way.
    """

    name: str
    instrument: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    otlp: str | None = None


_ROWS = (
    Metric(
        "pointsman_routing_decisions_total",
        "counter",
        "{decision}",
        "Routing decisions by strategy (`litellm`: its own choice held, with or without one configured) and by why the one "
        "configured did not decide (`fallback`, as in `x-pointsman-fallback`; empty: it did).",
        ("strategy", "fallback"),
    ),
    Metric(
        "pointsman_routing_decision_seconds",
        "histogram",
        "s",
        "Time that a decision took, by strategy.",
        ("strategy",),
    ),
    Metric(
        "pointsman_sessions_total",
        "counter",
        "{decision}",
        "Decisions for sticky sessions, by what became of the session: `new`, `kept`, `moved` (its deployment was no longer to "
        "be had), `returned` (to the one it had to leave, which is cheaper).",
        ("result",),
    ),
    Metric(
        "pointsman_requests_total",
        "counter",
        "{request}",
        "Requests by endpoint (`chat/completions`, ..., `other`: all that asks no model; probes and scrapes are not counted), "
        "model group first asked for (empty: refused before routing, or no model wanted) and HTTP status (499: the client "
        "left first).",
        ("endpoint", "group", "status"),
    ),
    Metric(
        "pointsman_request_errors_total",
        "counter",
        "{request}",
        "Requests that went wrong, by class: the error's class as LiteLLM names it, `http_404` and the like where it names "
        "none, `incomplete` for an answer that broke off. A stream may fail after its status 200.",
        ("endpoint", "group", "error"),
    ),
    Metric(
        "pointsman_request_seconds",
        "histogram",
        "s",
        "From the request's arrival to the last byte of the answer, failed requests too.",
        ("endpoint", "group"),
    ),
    Metric(
        "pointsman_time_to_first_token_seconds",
        "histogram",
        "s",
        "Of streamed answers: from the request's arrival to the first bytes of the stream.",
        ("endpoint", "group"),
    ),
    Metric(
        "pointsman_attempts_total",
        "counter",
        "{attempt}",
        "Tries at deployments by `litellm_params.model` and class of the error (empty: it answered).",
        ("model", "error"),
    ),
    Metric(
        "pointsman_attempt_seconds",
        "histogram",
        "s",
        "Time of a try that answered, of a streamed one to its last chunk.",
        ("model",),
    ),
    Metric(
        "pointsman_retries_total",
        "counter",
        "{attempt}",
        "Tries after one of the same request that failed, by the model tried now; those in a fallback group too.",
        ("model",),
    ),
    Metric(
        "pointsman_failover_stops_total",
        "counter",
        "{request}",
        "Requests that got no further try, by model group and by what ended them: `deadline`, `budget` (the group's retry "
        "budget is spent), `retry_after` (the provider asks to be left alone for longer than is waited).",
        ("group", "limit"),
    ),
    Metric(
        "pointsman_hedges_total",
        "counter",
        "{request}",
        "Requests whose first deployment took longer than `hedging.delay`, by model group and by what came of the second call: "
        "`won` (its answer was first), `lost`, `failed` (both), `left` (the client left meanwhile), or `refused` (there was "
        "none: the group's share is spent).",
        ("group", "outcome"),
    ),
    Metric(
        "pointsman_streams_broken_total",
        "counter",
        "{attempt}",
        "Streams that broke, by model: `before` their first content, which the client does not notice where another deployment "
        "answers, or `after` it.",
        ("model", "when"),
    ),
    Metric(
        "pointsman_fallbacks_total",
        "counter",
        "{request}",
        "Requests that LiteLLM took to another model group (`fallbacks`), by the group first asked for and why: the class of "
        "the last attempt's error, `unavailable` where there was none.",
        ("group", "reason"),
    ),
    Metric(
        "pointsman_budget_rejections_total",
        "counter",
        "{request}",
        "Requests refused because a budget is spent, by whose (`key`, `team`, `user`, ..., `other`).",
        ("entity",),
    ),
    Metric(
        "pointsman_cost_usd_total",
        "counter",
        "USD",
        "What answers cost, by group first asked for and strategy that decided; calls inside of a cascade included.",
        ("group", "strategy"),
    ),
    Metric(
        "pointsman_always_strong_cost_usd_total",
        "counter",
        "USD",
        "An estimate: what the same answers would have cost from the dearest candidate of their decision. The cost paid, times "
        "the ratio of list prices; the cost itself where that is not known (no prices, an answer from the cache). Less "
        "`pointsman_cost_usd_total` it is the cost saved.",
        ("group", "strategy"),
    ),
    Metric(
        "pointsman_breaker_state",
        "gauge",
        "1",
        "Of an upstream's breaker: 0 closed, 1 half open, 2 open, 3 held open; of the worker where it is highest. It is "
        "not told of upstreams beyond the first ones of a worker's life.",
        ("upstream",),
    ),
    Metric(
        "pointsman_breaker_transitions_total",
        "counter",
        "{transition}",
        "Changes of breakers, by upstream, the state after (`closed`, `open`, `half_open`, `held_open`, `held_closed`) and why "
        "it rests; counted where they came about, not in who heard of them.",
        ("upstream", "state", "cause"),
    ),
    Metric(
        "pointsman_breaker_ejections_total",
        "counter",
        "{candidate}",
        "Candidates that a decision left out because of their breaker, by model group and why (`breaker_open`, "
        "`breaker_probing`, `breaker_held`, `breaker_suspected`).",
        ("group", "reason"),
    ),
    Metric(
        "pointsman_breaker_panic_total",
        "counter",
        "{decision}",
        "Decisions for which so few of a group were left that those which rest were tried as well.",
        ("group",),
    ),
    Metric(
        "pointsman_sharing_failing",
        "gauge",
        "1",
        "1: Redis cannot be reached, and what other instances see of breakers, sessions and scores is not known here; 0 where "
        "it is shared or there is no Redis to share it by.",
    ),
    Metric(
        "pointsman_facts_refused_total",
        "counter",
        "{fact}",
        "What came of other workers or instances and was no fact, by topic (`other`: of none known here).",
        ("topic",),
    ),
    Metric(
        "pointsman_strategy_info",
        "gauge",
        "{worker}",
        "Workers that serve this version of a strategy. After 64 versions in a worker's life the next ones are `other`.",
        ("strategy", "kind", "version"),
    ),
    Metric(
        "pointsman_strategy_generation",
        "gauge",
        "1",
        "Generation of the strategy in service, of the worker that is furthest behind.",
        ("strategy",),
    ),
    Metric(
        "pointsman_strategy_desired_generation",
        "gauge",
        "1",
        "Generation that the workers should serve.",
        ("strategy",),
    ),
    Metric(
        "pointsman_strategy_degraded",
        "gauge",
        "1",
        "1: no bundle is in service, and LiteLLM's own choice holds.",
        ("strategy",),
    ),
    Metric(
        "pointsman_strategy_failing",
        "gauge",
        "1",
        "1: something is wrong with the strategy's source, its newest bundle or its process; `/hot-reload/status` says what.",
        ("strategy",),
    ),
    Metric(
        "pointsman_reload_events_total",
        "counter",
        "{event}",
        "What came of looking at the source: `polls`, `swaps`, `rejected` (bundles), `failures` (source or database away), "
        "`rollbacks`.",
        ("strategy", "result"),
    ),
    Metric(
        "pointsman_config_failing",
        "gauge",
        "1",
        "1: the changed YAML file cannot be taken up, and the one before stays in service.",
    ),
    Metric(
        "pointsman_decision_queue_records",
        "gauge",
        "{record}",
        "Decision records that wait in memory for the database.",
    ),
    Metric(
        "pointsman_decision_records_total",
        "counter",
        "{record}",
        "Decision records `written` to the database, or `dropped`.",
        ("result",),
    ),
    Metric(
        "pointsman_spend_queue_rows",
        "gauge",
        "{row}",
        "Rows of LiteLLM's request log that wait in memory for the database; costs of keys and teams lag with them.",
    ),
    Metric(
        "pointsman_spend_flush_lag_seconds",
        "gauge",
        "s",
        "Time since the end of the request whose row waits longest, of the worker that is furthest behind; 0: none waits.",
    ),
    Metric(
        "pointsman_export_records_total",
        "counter",
        "{record}",
        "What became of the telemetry that OpenTelemetry's exporters of the workers were given, LiteLLM's for teams too: "
        "`sent`, `failed` (away, too slow, refused), or `dropped` from a full queue, whose destination is not known. "
        "Log lines that standard output did not take in time are `dropped`, too, destination `stdout`.",
        ("signal", "destination", "result"),
    ),
    Metric(
        "pointsman_requests_in_flight",
        "gauge",
        "{request}",
        "Requests that have come and whose answers have not ended, those that wait in the queue too, of all workers; while the "
        "gateway stops, those that it still waits for. Told every five seconds.",
    ),
    Metric(
        "pointsman_queue_waiting_requests",
        "gauge",
        "{request}",
        "Requests that wait for their turn, by class, of all workers, told every five seconds. `group`: the model "
        "group that has a queue of its own; empty: the queue of all others.",
        ("group", "priority"),
    ),
    Metric(
        "pointsman_queue_running_requests",
        "gauge",
        "{request}",
        "Requests that had their turn and have not ended, of all workers.",
        ("group",),
    ),
    Metric(
        "pointsman_queue_limit_requests",
        "gauge",
        "{request}",
        "Requests that may run at once, of all workers; an adaptive limit moves.",
        ("group",),
    ),
    Metric(
        "pointsman_queue_wait_seconds",
        "histogram",
        "s",
        "Time in the queue until the request's turn, or until it left without one.",
        ("group", "priority"),
    ),
    Metric(
        "pointsman_queue_requests_total",
        "counter",
        "{request}",
        "Requests that left the queue: `admitted`, or refused as `full`, `late` or `closing`, or `gone` with their client.",
        ("group", "priority", "result"),
    ),
    Metric(
        "pointsman_upstream_success_ratio",
        "gauge",
        "1",
        "Share of the attempts at an upstream that went well, as the instance sees it; what callers did wrong does not count. "
        "This and the next are estimates that fade (`pointsman.resilience.scores`), of upstreams that the configuration names, "
        "told every five seconds; `/pointsman/providers` has their uncertainty.",
        ("upstream",),
    ),
    Metric(
        "pointsman_upstream_latency_seconds",
        "gauge",
        "s",
        "Time of an attempt that answered, by upstream and quantile (`0.5`, `0.95`).",
        ("upstream", "quantile"),
    ),
    Metric(
        "pointsman_upstream_first_token_seconds",
        "gauge",
        "s",
        "Of streamed answers: time to the first chunk of the upstream, by upstream and quantile (`0.5`, `0.95`).",
        ("upstream", "quantile"),
    ),
    Metric(
        "pointsman_upstream_tokens_per_second",
        "gauge",
        "{token}/s",
        "Tokens of an answer over the whole time of its attempt, the median.",
        ("upstream",),
    ),
    Metric(
        "pointsman_upstream_parity_violation_ratio",
        "gauge",
        "1",
        "Share of the answers that were none of the kind asked for: unreadable, empty, no JSON, no tool call.",
        ("upstream",),
    ),
    Metric(
        "pointsman_upstream_feedback_ratio",
        "gauge",
        "1",
        "Mean of the feedback (0 to 1) on an upstream's answers.",
        ("upstream",),
    ),
    Metric(
        "pointsman_upstream_attempts_weight",
        "gauge",
        "{attempt}",
        "How many attempts the estimates of an upstream rest on; one counts half after a half-life.",
        ("upstream",),
    ),
    Metric(
        "pointsman_probes_total",
        "counter",
        "{probe}",
        "The gateway's own questions to upstreams: `probe` (idle ones), `warm_up` (local ones); they `answered` or `failed`.",
        ("kind", "result"),
    ),
)

METRICS: Mapping[str, Metric] = {row.name: row for row in _ROWS}
