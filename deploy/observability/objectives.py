"""Service level objectives, and the Prometheus rules made of them: `prometheus/rules/objectives.yaml`.

To have other objectives, change `OBJECTIVES` and run `make docs`. The alerts are those of the Google SRE Workbook, chapter 5
("Alerting on SLOs", multiwindow, multi-burn-rate): an alert fires when the error budget of 30 days burns `factor` times too
fast over a long window and over a short one, so that it comes soon, and ends soon after the trouble.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OBJECTIVES", "Objective", "objectives_page"]

MODELS = 'endpoint!~"other|hot_reload"'
"""Endpoints that ask a model."""


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective over 30 days.

    Attributes:
        name: in the rules' and alerts' names.
        title: for people.
        target: share of requests that have to be good.
        bad: PromQL for the share of bad ones; `$w` is the window.
    """

    name: str
    title: str
    target: float
    bad: str

    @property
    def budget(self) -> float:
        return round(1 - self.target, 6)


def slower_than(metric: str, seconds: str) -> str:
    """Share of a histogram's observations above one of its bounds (`pointsman.callbacks.metrics.SECONDS_BUCKETS`)."""
    return f'1 - sum(rate({metric}_bucket{{{MODELS},le="{seconds}"}}[$w])) / (sum(rate({metric}_count{{{MODELS}}}[$w])) > 0)'


OBJECTIVES = (
    Objective(
        "availability",
        "99.5% of the requests for a model are answered without a server's error",
        0.995,
        f'(sum(rate(pointsman_requests_total{{{MODELS},status=~"5.."}}[$w])) or vector(0))'
        f" / (sum(rate(pointsman_requests_total{{{MODELS}}}[$w])) > 0)",
    ),
    Objective(
        "latency", "99% of the requests for a model end within 20 s", 0.99, slower_than("pointsman_request_seconds", "20.0")
    ),
    Objective(
        "first_token",
        "95% of the streamed answers begin within 2.5 s",
        0.95,
        slower_than("pointsman_time_to_first_token_seconds", "2.5"),
    ),
)

# long window, short window, burn rate, severity: 2% of the budget in an hour, 5% in 6 hours, 10% in a day, 10% in three.
BURNS = (
    ("1h", "5m", 14.4, "page"),
    ("6h", "30m", 6.0, "page"),
    ("1d", "2h", 3.0, "ticket"),
    ("3d", "6h", 1.0, "ticket"),
)
WINDOWS = sorted(
    {window for long, short, *_ in BURNS for window in (long, short)}, key=lambda w: (w[-1] != "m", w[-1] == "d", w)
)


def _ratio(objective: Objective, window: str) -> str:
    return f"slo:pointsman_{objective.name}:bad_ratio_rate{window}"


def objectives_page() -> str:
    """The rules' file."""
    lines = ["# Generated from deploy/observability/objectives.py by `make docs`; do not edit.", "groups:"]
    for objective in OBJECTIVES:
        lines += [f"  # {objective.title}.", f"  - name: pointsman-slo-{objective.name}", "    interval: 30s", "    rules:"]
        for window in WINDOWS:
            lines += [
                f"      - record: {_ratio(objective, window)}",
                "        expr: >-",
                f"          {objective.bad.replace('$w', window)}",
            ]
        for long, short, factor, severity in BURNS:
            threshold = f"{factor:g} * {objective.budget:g}"
            lines += [
                f"      - alert: Pointsman{objective.name.title().replace('_', '')}Burn{long}",
                "        expr: >-",
                f"          {_ratio(objective, long)} > {threshold}",
                f"          and {_ratio(objective, short)} > {threshold}",
                f"        labels: {{severity: {severity}, objective: {objective.name}}}",
                "        annotations:",
                f'          summary: "the error budget burns {factor:g} times too fast: {objective.title}"',
                f"          description: 'bad over {long}: {{{{ $value | humanizePercentage }}}}'",
                "          runbook: docs/observability.md#objectives",
            ]
    return "\n".join(lines) + "\n"
