"""The examples under deploy/observability hold together with what the gateway emits and with each other; no program is run."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from deploy.observability.objectives import OBJECTIVES

from pointsman.callbacks.metrics import SECONDS_BUCKETS
from pointsman.callbacks.names import ATTRIBUTES, METRICS
from support.docs import anchors
from support.marks import ROOT
from support.prometheus import DEPLOY, expressions, queries

RULES = sorted((DEPLOY / "prometheus/rules").glob("*.yaml"))
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
COLLECTORS = sorted((DEPLOY / "otel-collector").glob("*.yaml"))
NAME = re.compile(r"(?<![:\w])pointsman_\w+")


def _asked() -> list[str]:
    return [expr for rules in RULES for expr in expressions(rules).values()] + [q for board in BOARDS for q in queries(board)]


def test_rules_and_dashboards_ask_for_metrics_that_there_are() -> None:
    asked = {name for expr in _asked() for name in NAME.findall(expr)}
    series = {
        name + suffix
        for name, row in METRICS.items()
        for suffix in (("_bucket", "_count", "_sum") if row.instrument == "histogram" else ("",))
    }
    assert asked, "the expression finds none"
    assert sorted(asked - series) == []


def test_rules_and_dashboards_split_by_labels_that_there_are() -> None:
    labels = {label for row in METRICS.values() for label in row.labels} | {"instance", "job", "le", "team_alias"}
    by = {label.strip() for expr in _asked() for group in re.findall(r"by \(([^)]*)\)", expr) for label in group.split(",")}
    assert by
    assert sorted(by - labels) == []


def test_an_objective_of_latency_is_a_bound_of_the_histogram() -> None:
    bounds = {bound for objective in OBJECTIVES for bound in re.findall(r'le="([^"]+)"', objective.bad)}
    assert bounds
    assert bounds <= {str(bucket) for bucket in SECONDS_BUCKETS}


def test_every_alert_has_a_runbook_that_is_there() -> None:
    known = anchors((ROOT / "docs/observability.md").read_text(encoding="utf-8"))
    for rules in RULES:
        for group in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    page, _, anchor = rule["annotations"]["runbook"].partition("#")
                    assert page == "docs/observability.md"
                    assert anchor in known, rule["alert"]
                    assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("path", COLLECTORS, ids=lambda path: path.stem)
def test_the_pipelines_of_a_collector_hold_together(path: Any) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    used: dict[str, set[str]] = {"extensions": set(config["service"]["extensions"])}
    for pipeline in config["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert pipeline[kind], kind
            used.setdefault(kind, set()).update(pipeline[kind])
    for kind, names in used.items():
        assert names == set(config[kind]), kind
    ours = set(re.findall(r"pointsman\.[\w.]+", path.read_text(encoding="utf-8")))
    assert ours <= set(ATTRIBUTES)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_room_for_its_panels(path: Any) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len(board["panels"]) == len({panel["id"] for panel in board["panels"]})
    assert all(target["expr"] for panel in board["panels"] for target in panel["targets"])
