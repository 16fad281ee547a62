"""The generated pages of docs/, one of them in part. A test holds them fresh.

`python -m support.pages` (with `tests` on the path) writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from deploy.observability.dashboards import DASHBOARDS, dashboard_page
from deploy.observability.objectives import objectives_page

from pointsman.callbacks.names import ATTRIBUTES, LOG_FIELDS, METRICS, SPANS
from pointsman.errors import CATALOGUE, PointsmanError
from pointsman.http.request_ids import HEADER, MEANING
from pointsman.http.tickets import HEADERS, REQUEST_HEADERS
from pointsman.litellm_config.reference import configuration_page
from support.conformance import database_page
from support.marks import ROOT
from support.requirements import coverage_page
from support.strategies_table import strategies_page

__all__ = ["PAGES", "errors_page", "stale"]


def errors_page() -> str:
    """docs/errors.md: every code of the catalogue, grouped by the class that raises it."""
    lines = ["# Errors", "", "Generated from `pointsman.errors` by `make docs`; do not edit.", ""]
    lines += [
        "Every error of Pointsman's own has a code. Over HTTP it is JSON in the shape that OpenAI clients read, with `code`,",
        "`param` (where) and `mend` (what to do); on the command line it is one line on stderr and exit status 1.",
    ]
    # Those of the tree alone: what else is derived elsewhere belongs to one of its classes, and depends on what was imported.
    for error in PointsmanError.__subclasses__():
        if error.__module__ != PointsmanError.__module__:
            continue
        prefix = error.default_code[:3]
        lines += ["", f"## {error.__name__}: {prefix}xx", "", "| Code | HTTP | Name | Meaning |", "|-|-|-|-|"]
        lines += [
            f"| {row.code} | {row.status} | `{row.name}` | {row.meaning} |"
            for row in CATALOGUE.values()
            if row.code.startswith(prefix)
        ]
    return "\n".join(lines) + "\n"


def telemetry_page() -> str:
    """docs/telemetry.md: every span, attribute, metric and log field of ours."""
    lines = ["# Telemetry", "", "Generated from `pointsman.callbacks.names` by `make docs`; do not edit.", ""]
    lines += [
        "What Pointsman adds to LiteLLM's spans, metrics and log lines, for who asked for them.",
        "",
    ]
    lines += ["## Spans", "", "| Span | Kind | Under | Covers |", "|-|-|-|-|"]
    lines += [f"| `{span.name}` | {span.kind} | {span.parent} | {span.meaning} |" for span in SPANS.values()]
    lines += ["", "## Attributes", "", "Names that do not begin with `pointsman.` are of OpenTelemetry's semantic conventions."]
    lines += ["", "| Attribute | Type | On | Meaning |", "|-|-|-|-|"]
    for attribute in ATTRIBUTES.values():
        on = ", ".join(f"`{span.name}`" for span in SPANS.values() if attribute.name in span.attributes)
        lines.append(f"| `{attribute.name}` | {attribute.type} | {on} | {attribute.meaning} |")
    lines += [
        "",
        "## Metrics",
        "",
        "`litellm_settings: {callbacks: [prometheus]}` opens `/metrics`, LiteLLM's numbers and ours in one scrape, those of",
        "all workers added up. It wants a key, unless `litellm_settings.require_auth_for_metrics_endpoint` is `false`.",
        "",
        "| Metric | Kind | Unit | Labels | Meaning |",
        "|-|-|-|-|-|",
    ]
    for metric in METRICS.values():
        name = f"`{metric.name}`" + (f" (OTLP: `{metric.otlp}`)" if metric.otlp else "")
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| {name} | {metric.instrument} | {metric.unit} | {labels} | {metric.meaning} |")
    lines += ["", "## Log lines", "", "| Field | Type | Meaning |", "|-|-|-|"]
    lines += [f"| `{field.name}` | {field.type} | {field.meaning} |" for field in LOG_FIELDS.values()]
    return "\n".join(lines) + "\n"


def headers_page() -> str:
    """docs/headers.md: what our middleware adds to an answer, and what it reads of a request."""
    lines = ["# Headers", "", "Generated from `pointsman.http.tickets` by `make docs`; do not edit.", ""]
    lines += [
        f"`{HEADER}`: {MEANING[0].lower()}{MEANING[1:]}",
        "",
        "On every answer to a request that was routed, streamed and error answers too. One that was refused before routing (no",
        "key, no such model) has none of them.",
        "",
        "| Header | Meaning |",
        "|-|-|",
    ]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in HEADERS.items()]
    lines += [
        "",
        "A request may send these, if its key is an administrator's or has `pointsman_allow_override: true` in its metadata",
        '(or a list of `"strategy"`, `"cost_weight"`); where the key says nothing, its team\'s metadata count. Else the answer',
        "is 403.",
        "",
        "| Header | Meaning |",
        "|-|-|",
    ]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in REQUEST_HEADERS.items()]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/configuration.md": configuration_page,
    "docs/coverage.md": coverage_page,
    "docs/database.md": database_page,
    "docs/errors.md": errors_page,
    "docs/headers.md": headers_page,
    "docs/strategies.md": strategies_page,
    "docs/telemetry.md": telemetry_page,
    "deploy/observability/prometheus/rules/objectives.yaml": objectives_page,
    **{f"deploy/observability/grafana/{name}.json": partial(dashboard_page, name) for name in DASHBOARDS},
}


def stale() -> list[str]:
    """The pages whose file is not what would be written now."""
    return [
        page
        for page, render in PAGES.items()
        if not (ROOT / page).is_file() or (ROOT / page).read_text(encoding="utf-8") != render()
    ]


if __name__ == "__main__":
    for page in stale():
        (ROOT / page).write_text(PAGES[page](), encoding="utf-8")
        print(f"wrote {page}")
