"""Metrics of a real gateway in a real Prometheus: every query of the dashboards and rules, the unit tests of the rules."""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.gateway import Gateway
from support.otlp import Receiver, attributes, receiver
from support.processes import wait_for
from support.prometheus import DEPLOY, Prometheus, expressions, prometheus, queries, tool
from support.strategy import EASY, FILE_STRATEGY, HARD, FilePublisher
from support.topology import pair, routed_config, single
from support.upstreams import Upstreams

pytestmark = [pytest.mark.slow("observability"), pytest.mark.timeout(600)]

RULES = sorted((DEPLOY / "prometheus/rules").glob("*.yaml"))
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
CHAT = 'endpoint="chat/completions"'
NAMES = 150
"""Model names that a client makes up below a wildcard; more than may stand in a label."""
LITELLM_SERIES = 100
# Rules whose vector is empty as long as all is well, or that want a longer history than a test has.
QUIET = {"PointsmanDown", "PointsmanStrategyDegraded", "PointsmanWorkerBehind", "PointsmanConfigRejected"}
QUIET |= {"PointsmanStrategyUndecided", "PointsmanSavedCostFalling", "PointsmanDecisionsDropped"}
QUIET |= {"PointsmanAnswersUnusable", "PointsmanSharingFailing"}
QUIET |= {"PointsmanSpendLagging", "PointsmanGroupInPanic", "PointsmanRetryBudgetSpent", "PointsmanQueueRefusing"}


@dataclass
class Stand:
    """A gateway of two workers, and a Prometheus that scrapes it."""

    gateway: Gateway
    prometheus: Prometheus
    publisher: FilePublisher
    upstreams: Upstreams
    collector: Receiver
    statuses: Counter[str] = field(default_factory=Counter)

    def ask(self, client: httpx.Client, model: str, text: str = EASY, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        answer = client.post("/v1/chat/completions", json=body)
        self.statuses[str(answer.status_code)] += 1
        return answer

    def scraped(self, query: str, value: float) -> float:
        """Wait until a query has this value, or a higher one."""

        def found() -> float | None:
            now = self.prometheus.value(query)
            return now if now >= value - 1e-9 else None

        return wait_for(found, 90, f"{query} >= {value}", 1)


@pytest.fixture(scope="module")
def stand(upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    directory = tmp_path_factory.mktemp("observability")
    publisher = FilePublisher(directory / "published", FILE_STRATEGY)
    publisher.publish("1.0.0")
    models = pair(upstreams, "auto")
    for entry, price in zip(models, (0.001, 0.01), strict=True):
        entry["litellm_params"] |= {"input_cost_per_token": price, "output_cost_per_token": price}
    models += [single(upstreams, name, f"openai/{name}-model") for name in ("shaky", "backup", "dead")]
    models.append({**single(upstreams, "wild", "openai/*"), "model_name": "openai/*"})
    config = routed_config(models, {FILE_STRATEGY: publisher.settings()}, {"auto": FILE_STRATEGY})
    config["litellm_settings"] |= {"callbacks": ["prometheus"], "prometheus_metrics_max_series_per_metric": LITELLM_SERIES}
    config["router_settings"] |= {"fallbacks": [{"shaky": ["backup"]}], "allowed_fails": 1000}
    config["pointsman"]["resilience"] = {"queue": {"enabled": True}}
    with ExitStack() as stack:
        collector = stack.enter_context(receiver())
        config["pointsman"]["telemetry"] = {"metrics": {"otlp": {"endpoint": collector.endpoint, "interval": 2}}}
        gateway = Gateway(config, directory / "gateway", new_database())
        stack.callback(gateway.kill)
        gateway.start()
        server = stack.enter_context(prometheus(f"127.0.0.1:{gateway.port}", gateway.master_key, directory / "prometheus"))
        yield Stand(gateway, server, publisher, upstreams, collector)
        gateway.stop()


def traffic(stand: Stand) -> None:
    """Some of everything."""
    admin = stand.gateway.admin
    stand.upstreams.fault("shaky", status=500)
    stand.upstreams.fault("dead", status=500)
    for text in (EASY, HARD):
        assert stand.ask(admin, "auto", text).status_code == 200
        assert stand.ask(admin, "auto", text, stream=True).status_code == 200
    stand.upstreams.fault("auto-strong", status=500, times=1)
    assert stand.ask(admin, "auto", HARD).status_code == 200  # at the second try
    assert stand.ask(admin, "auto", " ").status_code == 200  # nothing to score
    assert "served by backup" in stand.ask(admin, "shaky").text
    for _ in range(3):  # its breaker opens
        assert stand.ask(admin, "dead").status_code in (500, 503)
    assert stand.ask(admin, "nobody").status_code in (400, 404)
    assert stand.ask(stand.gateway.http("sk-forged"), "auto").status_code == 401
    stand.upstreams.clear()


@pytest.mark.requirement("R-6.1", "R-6.6", "R-14.6", "S-5")
def test_every_query_of_dashboards_and_rules_finds_what_happened(stand: Stand) -> None:
    gateway, server = stand.gateway, stand.prometheus
    poor = gateway.http(gateway.new_key(max_budget=0.0001))
    assert stand.ask(poor, "auto").status_code == 200
    wait_for(lambda: stand.ask(poor, "auto").status_code in (422, 429), 30, "the budget is spent")
    traffic(stand)
    # A rate needs a series to have been there before it rises.
    for status, count in stand.statuses.items():
        stand.scraped(f'sum(pointsman_requests_total{{{CHAT},status="{status}"}})', count)
    stand.scraped('sum(pointsman_reload_events_total{result="polls"})', 1)
    stand.publisher.publish("1.0.1")
    wait_for(lambda: gateway.strategy(FILE_STRATEGY)["version"] == "1.0.1", 90, "the new version serves")
    stand.publisher.corrupt("flipped", "1.0.2")
    wait_for(lambda: gateway.strategy(FILE_STRATEGY)["last_error_code"], 90, "the corrupt one is refused")
    traffic(stand)
    assert stand.ask(poor, "auto").status_code in (422, 429)

    # Rate and errors: both workers' requests, each counted once.
    for status, count in stand.statuses.items():
        assert stand.scraped(f'sum(pointsman_requests_total{{{CHAT},status="{status}"}})', count) == count
    bad = sum(count for status, count in stand.statuses.items() if int(status) >= 400)
    assert server.value(f"sum(pointsman_request_errors_total{{{CHAT}}})") == bad
    assert server.value(f'sum(pointsman_requests_total{{{CHAT},group="auto",status="200"}})') >= 2 * 6
    assert server.value('sum(pointsman_fallbacks_total{group="shaky",reason="InternalServerError"})') == 2
    assert server.value('sum(pointsman_budget_rejections_total{entity="key"})') >= 2
    assert server.value("sum(pointsman_retries_total)") >= 2
    assert server.value('sum(pointsman_attempts_total{model="openai/dead-model",error!=""})') >= 2
    # Duration, and the first token before the last.
    assert server.value(f'sum(pointsman_request_seconds_count{{{CHAT},group="auto"}})') >= 2 * 6
    assert server.value('sum(pointsman_time_to_first_token_seconds_count{group="auto"})') == 2 * 2
    # What the weak model saved: its answers at a tenth of the price.
    stand.scraped("sum(pointsman_strategy_failing)", 1)
    stand.scraped('sum(pointsman_reload_events_total{result="swaps"})', 2)
    stand.scraped('sum(pointsman_reload_events_total{result="rejected"})', 1)
    assert server.value('pointsman_strategy_info{version="1.0.1"}') == gateway.workers
    assert server.value('pointsman_strategy_info{version="1.0.0"}') == 0
    assert server.value("sum(pointsman_strategy_generation)") == server.value("sum(pointsman_strategy_desired_generation)")
    stand.scraped('sum(pointsman_decision_records_total{result="written"})', 20)
    paid = stand.scraped('sum(pointsman_cost_usd_total{group="auto"})', 0.01)
    strong = server.value('sum(pointsman_always_strong_cost_usd_total{group="auto"})')
    assert paid < strong < 10 * paid
    # Over OTLP the same, of both workers, sent by one.
    wait_for(lambda: _pushed(stand.collector) == sum(stand.statuses.values()), 30, "the collector has every request", 1)
    # LiteLLM's in the same scrape.
    assert server.value("sum(litellm_proxy_total_requests_metric_total)") > 0

    empty = [(board.name, query) for board in BOARDS for query in queries(board) if not server.ask(query)]
    assert empty == []
    wait_for(lambda: not _silent(server), 60, f"every rule has something to say, {_silent(server)}", 1)
    groups = server.get("rules")["groups"]
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule["health"] != "ok"] == []
    expected = {"PointsmanBudgetBreach", "PointsmanReloadFailing"}  # the second is pending: it has ten minutes
    wait_for(lambda: expected <= {alert["labels"]["alertname"] for alert in server.get("alerts")["alerts"]}, 60, "alerts", 1)


def _pushed(collector: Receiver) -> float:
    """Chat requests, as the collector was told last."""
    newest = collector.metrics("pointsman_requests")[-1:]
    points = [point for metric in newest for point in metric.sum.data_points]
    return sum(point.as_double for point in points if attributes(point.attributes)["endpoint"] == "chat/completions")


def _silent(server: Prometheus) -> list[str]:
    """Rules whose expression, without its comparison, gives nothing."""
    silent = []
    for rules in RULES:
        for name, expr in expressions(rules).items():
            if name in QUIET or "Burn" in name:
                server.ask(expr)
            elif not server.ask(expr):
                silent.append(name)
    return silent


@pytest.mark.requirement("R-6.1")
def test_a_flood_of_model_names_is_bounded(stand: Stand) -> None:
    admin = stand.gateway.admin
    for number in range(NAMES):
        answer = stand.ask(admin, f"openai/made-up-{number}")
        assert answer.status_code == 200, answer.text
    stand.scraped('sum(pointsman_requests_total{group="other"})', 1)
    for label, metric in (("group", "pointsman_requests_total"), ("model", "pointsman_attempts_total")):
        values = stand.prometheus.get(f"label/{label}/values", **{"match[]": metric})
        # Each worker has a bound of its own: 64 words, and what is configured.
        assert len(values) <= 2 * 64 + 10, (label, len(values))
    # LiteLLM's own, by the setting whose default is 2000 here.
    assert (
        20
        < stand.prometheus.value("count(litellm_proxy_total_requests_metric_total)")
        <= LITELLM_SERIES + stand.gateway.workers
    )
    answered = stand.ask(admin, "auto")
    assert answered.status_code == 200
    assert "auto" in stand.prometheus.get("label/group/values", **{"match[]": "pointsman_requests_total"})


@pytest.mark.requirement("R-6.1")
def test_a_dead_worker_takes_no_count_with_it_and_leaves_no_gauge(stand: Stand) -> None:
    gateway, server = stand.gateway, stand.prometheus
    total = f'sum(pointsman_requests_total{{{CHAT},group="auto"}})'
    stand.scraped(f"sum(pointsman_requests_total{{{CHAT}}})", sum(stand.statuses.values()))
    before = server.value(total)
    version = 'sum(pointsman_strategy_info{version="1.0.1"})'
    victim = gateway.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)

    def replaced() -> bool:
        with suppress(httpx.TransportError):  # the dead one's connections
            workers = gateway.strategy(FILE_STRATEGY)["workers"]
            return all(row["ready"] and row["pid"] != victim for row in workers)
        return False

    wait_for(replaced, 90, "it is replaced")
    for _ in range(10):
        assert stand.ask(gateway.admin, "auto").status_code == 200
    assert stand.scraped(total, before + 10) == before + 10
    assert stand.scraped(version, gateway.workers) == gateway.workers, "the dead one is not counted any more"
    low = server.get("query", query=f"min_over_time(({total})[2m:4s]) < 1")
    assert low["result"] == [], "the sum never fell"
    assert server.value(f"resets(({total})[2m:4s])") == 0


@pytest.mark.requirement("S-10")
@pytest.mark.parametrize("tests", sorted((DEPLOY / "prometheus/tests").glob("*.yaml")), ids=lambda path: path.stem)
def test_rules_do_what_their_unit_tests_say(tests: Path) -> None:
    done = tool("promtool", "test", "rules", tests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_examples_are_valid() -> None:
    done = tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    done = tool("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    done = tool("amtool", "check-config", DEPLOY / "alertmanager/alertmanager.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_and_a_runbook() -> None:
    tested = "".join(path.read_text(encoding="utf-8") for path in (DEPLOY / "prometheus/tests").glob("*.yaml"))
    names = [name for rules in RULES for name in expressions(rules) if name.startswith("Pointsman")]
    assert names
    assert [name for name in names if name not in tested and "Burn" not in name] == []


def _tree(spans: Sequence[Span]) -> list[str]:
    """Each span's name, two spaces in for every span above it, in any order."""
    by_id = {span.span_id: span for span in spans}

    def depth(span: Span) -> int:
        return 1 + depth(by_id[span.parent_span_id]) if span.parent_span_id in by_id else 0

    return sorted("  " * depth(span) + span.name for span in spans)


@pytest.mark.requirement("P-15", "P-20", "P-21", "R-14.6")
def test_one_request_with_a_fallback_is_one_trace_with_its_lines_and_counts(upstreams: Upstreams, tmp_path: Path) -> None:
    """The picture in docs/observability.md is what a collector received."""
    publisher = FilePublisher(tmp_path / "published", FILE_STRATEGY)
    publisher.publish("1.0.0")
    models = [*pair(upstreams, "auto"), single(upstreams, "backup", "openai/backup-model")]
    config = routed_config(models, {FILE_STRATEGY: publisher.settings()}, {"auto": FILE_STRATEGY})
    config["litellm_settings"]["callbacks"] = ["prometheus", "otel"]
    config["router_settings"] |= {"fallbacks": [{"auto": ["backup"]}], "allowed_fails": 1000}
    trace_id, client = secrets.token_hex(16), "1" * 16
    with receiver() as collector, ExitStack() as stack:
        config["pointsman"]["telemetry"] = {"logs": {"otlp": {"endpoint": collector.endpoint}}}
        gateway = Gateway(config, tmp_path / "gateway", None, workers=1, env=collector.env())
        stack.callback(upstreams.clear)
        stack.callback(gateway.kill)
        gateway.start()
        for name in ("auto-weak", "auto-strong"):
            upstreams.fault(name, status=500)
        body = {"model": "auto", "messages": [{"role": "user", "content": HARD}]}
        parent = {"traceparent": f"00-{trace_id}-{client}-01"}
        answer = gateway.admin.post("/v1/chat/completions", json=body, headers=parent)
        assert "served by backup" in answer.text
        wait_for(lambda: any(span.parent_span_id.hex() == client for span in collector.spans(trace_id)), 60, "its spans")
        wait_for(lambda: len(collector.logs(trace_id)) >= 6, 60, "its lines")
        scrape = gateway.admin.get("/metrics/").text
        gateway.stop()  # what was still on its way is sent
        spans, lines = collector.spans(trace_id), collector.logs(trace_id)

    known = {span.span_id for span in spans}
    (root,) = (span for span in spans if span.parent_span_id not in known)
    assert root.parent_span_id.hex() == client, "it goes on from the client's span"
    assert known >= {line.span_id for line in lines}
    page = (DEPLOY.parents[1] / "docs/observability.md").read_text(encoding="utf-8")
    picture = re.findall(r"```text\n(.*?)```", page, re.DOTALL)[0].splitlines()
    assert _tree(spans) == sorted(re.sub(r"(?<=\S) {2,}.*", "", line) for line in picture)

    decisions = [attributes(line.attributes)["decision_id"] for line in lines if line.severity_text == "INFO"]
    assert answer.headers["x-pointsman-decision-id"] == decisions[-1]
    routed = [attributes(span.attributes)["pointsman.decision.id"] for span in spans if span.name == "pointsman.route"]
    assert sorted(routed) == sorted(decisions)
    failed = [attributes(line.attributes) for line in lines if line.severity_text == "WARNING"]
    assert [line["attempt"] for line in failed] == [1, 2]
    assert {line["request_id"] for line in failed} == {attributes(lines[0].attributes)["request_id"]}
    for count in (
        'pointsman_requests_total{endpoint="chat/completions",group="auto",status="200"} 1.0',
        'pointsman_fallbacks_total{group="auto",reason="InternalServerError"} 1.0',
        'pointsman_attempts_total{error="",model="openai/backup-model"} 1.0',
        'pointsman_retries_total{model="openai/backup-model"} 1.0',
    ):
        assert count in scrape
