"""Our metrics over OTLP: a real receiver gets what the scrape says, over HTTP and gRPC, and an outage loses nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from pointsman.callbacks.metric_export import MetricExport
from pointsman.callbacks.metrics import Metrics, Request
from pointsman.decisions.types import Decision
from pointsman.telemetry_settings import MetricsOtlpSettings
from support.otlp import Receiver, attributes, receiver
from support.processes import wait_for

CHAT = "/v1/chat/completions"


def newest(collector: Receiver, name: str) -> Any:
    """The metric of that name that came last."""
    found = [item.what for item in collector.items("/v1/metrics") if item.what.name == name]
    return found[-1] if found else None


def value(collector: Receiver, name: str, **labels: str) -> float | None:
    """Value of a sum or gauge."""
    metric = newest(collector, name)
    points: Iterable[Any] = () if metric is None else (metric.sum if metric.HasField("sum") else metric.gauge).data_points
    return next((point.as_double for point in points if attributes(point.attributes) == labels), None)


@pytest.mark.requirement("R-6.6")
@pytest.mark.parametrize("protocol", ["http", pytest.param("grpc", marks=pytest.mark.slow("observability"))])
def test_a_collector_gets_what_the_scrape_says(protocol: Any) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(["knn"], ["auto"], registry=registry)
    Counter("not_ours", "of LiteLLM", registry=registry).inc()
    metrics.sample(3, 10, 0, {})
    for seconds in (0.2, 0.7, 1000.0):
        metrics.request(Request(CHAT, 200, complete=True, seconds=seconds), None)
    started = time.time() - 60
    with receiver() as collector:
        endpoint = collector.endpoint if protocol == "http" else collector.grpc_endpoint
        settings = MetricsOtlpSettings(endpoint=endpoint, protocol=protocol, interval=1, headers={"X-Key": "k"}, timeout=2)
        export = MetricExport(settings, "7", started, registry.collect)
        try:
            wait_for(lambda: newest(collector, "pointsman_requests"), 10, "the first export")
            labels = {"endpoint": "chat/completions", "group": "", "status": "200"}
            assert value(collector, "pointsman_requests", **labels) == 3
            assert value(collector, "pointsman_decision_queue_records") == 3
            (point,) = newest(collector, "pointsman_request_seconds").histogram.data_points
            assert (point.count, point.sum) == (3, pytest.approx(1000.9))
            assert sum(point.bucket_counts) == 3
            assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
            assert [bound for bound, count in zip(point.explicit_bounds, point.bucket_counts, strict=False) if count] == [
                0.25,
                1.0,
            ]
            assert point.bucket_counts[-1] == 1, "above every bound"
            assert point.start_time_unix_nano == int(started * 1e9)
            (item, *_) = collector.items("/v1/metrics")
            assert (item.resource["service.name"], item.headers["x-key"]) == ("pointsman", "k")
            assert newest(collector, "not_ours") is None

            collector.refuse(503)
            metrics.record(Decision("dec_1", "r", "auto", strategy="knn"))
            wait_for(lambda: export.failed, 20, "an export fails")
            collector.recover()
            labels = {"strategy": "knn", "fallback": ""}
            wait_for(lambda: value(collector, "pointsman_routing_decisions", **labels), 20, "it was not lost")
            metrics.request(Request(CHAT, 200, complete=True, seconds=0.2), None)
        finally:
            export.close(10)
        labels = {"endpoint": "chat/completions", "group": "", "status": "200"}
        assert value(collector, "pointsman_requests", **labels) == 4, "the last one is sent at the end"
