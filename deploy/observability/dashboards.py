"""Grafana's dashboards as data, and their JSON: `grafana/*.json`, written by `make docs`.

A panel is a title, a unit, and queries with legends. Every query is run in a test against a real Prometheus that scraped a
real gateway (tests/slow/test_observability.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DASHBOARDS", "Dashboard", "Panel", "Query", "dashboard_page"]

SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT = 8, 8
COLUMNS = 24 // WIDTH


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what its lines are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture.

    Attributes:
        title: what it shows.
        unit: Grafana's name of the unit.
        queries: its lines.
        kind: Grafana's type of panel.
        note: what a reader has to know.
    """

    title: str
    unit: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    note: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels, three in a row."""

    uid: str
    title: str
    panels: Sequence[Panel]


W = "[$__rate_interval]"
GROUP = 'group=~"$group"'


def _quantile(share: float, metric: str, labels: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{labels}{W})))"


def _share(bad: str, all_: str) -> str:
    return f"({bad}) / ({all_} > 0)"


def _burn(name: str, budget: float) -> Query:
    return Query(f"slo:pointsman_{name}:bad_ratio_rate1h / {budget}", name)


ESTIMATE = "An estimate: the dearest candidate of each decision at list prices, for the same tokens."

REQUESTS = Dashboard(
    "pointsman-requests",
    "Pointsman: requests",
    (
        Panel(
            "Requests",
            "reqps",
            (Query(f"sum by (endpoint, group) (rate(pointsman_requests_total{{{GROUP}}}{W}))", "{{endpoint}} {{group}}"),),
        ),
        Panel(
            "Answers by status",
            "reqps",
            (Query(f"sum by (status) (rate(pointsman_requests_total{{{GROUP}}}{W}))", "{{status}}"),),
        ),
        Panel(
            "Errors by class",
            "reqps",
            (Query(f"sum by (error) (rate(pointsman_request_errors_total{{{GROUP}}}{W}))", "{{error}}"),),
        ),
        Panel(
            "Duration",
            "s",
            tuple(
                Query(_quantile(q, "pointsman_request_seconds", f"{{{GROUP}}}", "group"), f"p{round(q * 100)} {{{{group}}}}")
                for q in (0.5, 0.95, 0.99)
            ),
        ),
        Panel(
            "Time to first token",
            "s",
            tuple(
                Query(
                    _quantile(q, "pointsman_time_to_first_token_seconds", f"{{{GROUP}}}", "group"),
                    f"p{round(q * 100)} {{{{group}}}}",
                )
                for q in (0.5, 0.95)
            ),
        ),
        Panel(
            "Objectives: burn rate over an hour",
            "none",
            (_burn("availability", 0.005), _burn("latency", 0.01), _burn("first_token", 0.05)),
            note="1: the error budget lasts exactly the 30 days. From 14.4 on somebody is paged.",
        ),
        Panel(
            "Tries by model",
            "ops",
            (Query(f"sum by (model) (rate(pointsman_attempts_total{W}))", "{{model}}"),),
        ),
        Panel(
            "Failed tries by model and error",
            "ops",
            (Query(f'sum by (model, error) (rate(pointsman_attempts_total{{error!=""}}{W}))', "{{model}} {{error}}"),),
        ),
        Panel(
            "Time of a try, p95",
            "s",
            (Query(_quantile(0.95, "pointsman_attempt_seconds", "", "model"), "{{model}}"),),
        ),
        Panel("Retries", "ops", (Query(f"sum by (model) (rate(pointsman_retries_total{W}))", "{{model}}"),)),
        Panel(
            "Requests that fell back to another group",
            "reqps",
            (Query(f"sum by (group, reason) (rate(pointsman_fallbacks_total{{{GROUP}}}{W}))", "{{group}} {{reason}}"),),
        ),
        Panel("Requests in flight (LiteLLM)", "none", (Query("sum(litellm_in_flight_requests)", "in flight"),)),
    ),
)

ROUTING = Dashboard(
    "pointsman-routing",
    "Pointsman: routing",
    (
        Panel(
            "Decisions by strategy",
            "ops",
            (Query(f"sum by (strategy) (rate(pointsman_routing_decisions_total{W}))", "{{strategy}}"),),
        ),
        Panel(
            "Why a strategy did not decide",
            "ops",
            (Query(f'sum by (fallback) (rate(pointsman_routing_decisions_total{{fallback!=""}}{W}))', "{{fallback}}"),),
        ),
        Panel(
            "Time of a decision",
            "s",
            tuple(
                Query(_quantile(q, "pointsman_routing_decision_seconds", "", "strategy"), f"p{round(q * 100)} {{{{strategy}}}}")
                for q in (0.5, 0.99)
            ),
        ),
        Panel(
            "Versions in service",
            "none",
            (Query("pointsman_strategy_info > 0", "{{strategy}} {{version}}"),),
            kind="table",
            note="The value is the number of workers.",
        ),
        Panel(
            "Generation: wanted, and of the last worker",
            "none",
            (
                Query("max by (strategy) (pointsman_strategy_desired_generation)", "{{strategy}} wanted"),
                Query("min by (strategy) (pointsman_strategy_generation)", "{{strategy}}"),
            ),
        ),
        Panel(
            "Failing or degraded",
            "none",
            (
                Query("max by (strategy) (pointsman_strategy_failing)", "{{strategy}} failing"),
                Query("max by (strategy) (pointsman_strategy_degraded)", "{{strategy}} degraded"),
                Query("max(pointsman_config_failing)", "configuration"),
            ),
        ),
        Panel(
            "Reloads",
            "none",
            (
                Query(
                    "sum by (strategy, result) (increase(pointsman_reload_events_total[$__rate_interval]))",
                    "{{strategy}} {{result}}",
                ),
            ),
        ),
        Panel(
            "Decision records that wait",
            "none",
            (Query("sum by (instance) (pointsman_decision_queue_records)", "{{instance}}"),),
        ),
        Panel(
            "Spend that waits for the database",
            "s",
            (Query("max by (instance) (pointsman_spend_flush_lag_seconds)", "{{instance}}"),),
        ),
        Panel(
            "Decision records",
            "ops",
            (Query(f"sum by (result) (rate(pointsman_decision_records_total{W}))", "{{result}}"),),
        ),
    ),
)

COST = Dashboard(
    "pointsman-cost",
    "Pointsman: cost",
    (
        Panel(
            "Cost an hour, and of always-strong (an estimate)",
            "currencyUSD",
            (
                Query(f"3600 * sum(rate(pointsman_cost_usd_total{{{GROUP}}}{W}))", "paid"),
                Query(f"3600 * sum(rate(pointsman_always_strong_cost_usd_total{{{GROUP}}}{W}))", "always-strong (estimate)"),
            ),
            note=ESTIMATE,
        ),
        Panel(
            "Saved in this range (an estimate)",
            "currencyUSD",
            (
                Query(
                    f"sum(increase(pointsman_always_strong_cost_usd_total{{{GROUP}}}[$__range]))"
                    f" - sum(increase(pointsman_cost_usd_total{{{GROUP}}}[$__range]))",
                    "saved (estimate)",
                ),
            ),
            kind="stat",
            note=ESTIMATE,
        ),
        Panel(
            "Share saved (an estimate)",
            "percentunit",
            (
                Query(
                    "1 - "
                    + _share(
                        f"sum by (group, strategy) (rate(pointsman_cost_usd_total{{{GROUP}}}{W}))",
                        f"sum by (group, strategy) (rate(pointsman_always_strong_cost_usd_total{{{GROUP}}}{W}))",
                    ),
                    "{{group}} {{strategy}}",
                ),
            ),
            note=ESTIMATE,
        ),
        Panel(
            "Cost an hour by group",
            "currencyUSD",
            (Query(f"3600 * sum by (group) (rate(pointsman_cost_usd_total{{{GROUP}}}{W}))", "{{group}}"),),
        ),
        Panel(
            "Requests refused for a spent budget",
            "reqps",
            (Query(f"sum by (entity) (rate(pointsman_budget_rejections_total{W}))", "{{entity}}"),),
        ),
        Panel(
            "Spend by team (LiteLLM)",
            "currencyUSD",
            (Query(f"3600 * sum by (team_alias) (rate(litellm_spend_metric_total{W}))", "{{team_alias}}"),),
        ),
    ),
)

RESILIENCE = Dashboard(
    "pointsman-resilience",
    "Pointsman: resilience",
    (
        Panel(
            "Breakers",
            "none",
            (Query("max by (upstream) (pointsman_breaker_state)", "{{upstream}}"),),
            note="0 closed, 1 half open, 2 open, 3 held open.",
        ),
        Panel(
            "Breakers that changed, and why",
            "none",
            (
                Query(
                    "sum by (upstream, state, cause) (increase(pointsman_breaker_transitions_total[$__rate_interval]))",
                    "{{upstream}} {{state}} {{cause}}",
                ),
            ),
        ),
        Panel(
            "Attempts that went well",
            "percentunit",
            (Query("min by (upstream) (pointsman_upstream_success_ratio)", "{{upstream}}"),),
            note="An estimate that fades, as the instance with the worst sees it.",
        ),
        Panel(
            "Time of an answer by upstream",
            "s",
            (Query("max by (upstream, quantile) (pointsman_upstream_latency_seconds)", "{{upstream}} {{quantile}}"),),
        ),
        Panel(
            "Answers that were none of the kind asked for",
            "percentunit",
            (Query("max by (upstream) (pointsman_upstream_parity_violation_ratio)", "{{upstream}}"),),
        ),
        Panel("Requests in flight", "none", (Query("sum(pointsman_requests_in_flight)", "in flight"),)),
        Panel(
            "Queue: waiting and running",
            "none",
            (
                Query("sum by (group, priority) (pointsman_queue_waiting_requests)", "{{group}} {{priority}} waiting"),
                Query("sum by (group) (pointsman_queue_running_requests)", "{{group}} running"),
                Query("sum by (group) (pointsman_queue_limit_requests)", "{{group}} limit"),
            ),
        ),
        Panel(
            "Queue: time until a turn, p95",
            "s",
            (Query(_quantile(0.95, "pointsman_queue_wait_seconds", "", "priority"), "{{priority}}"),),
        ),
        Panel(
            "Queue: what became of requests",
            "reqps",
            (Query(f"sum by (priority, result) (rate(pointsman_queue_requests_total{W}))", "{{priority}} {{result}}"),),
        ),
    ),
)

DASHBOARDS = {"requests": REQUESTS, "routing": ROUTING, "resilience": RESILIENCE, "cost": COST}
"""File name -> dashboard."""


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "datasource": SOURCE,
        "gridPos": {"x": number % COLUMNS * WIDTH, "y": number // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0 if panel.unit != "percentunit" else None}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                **({"instant": True, "format": "table"} if panel.kind == "table" else {}),
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def dashboard_page(name: str) -> str:
    """A dashboard's JSON, for Grafana 10 and later."""
    board = DASHBOARDS[name]
    page = {
        "uid": board.uid,
        "title": board.title,
        "tags": ["pointsman"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "group",
                    "label": "Model group",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(pointsman_requests_total, group)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(board.panels)],
    }
    return json.dumps(page, indent=2) + "\n"
