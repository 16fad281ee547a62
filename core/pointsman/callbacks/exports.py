"""What became of the telemetry that OpenTelemetry's exporters were given: sent, failed, or dropped because a queue was full.

Every exporter of a worker counts, whoever made it: LiteLLM's for the operator and for teams, and ours. The SDK counts for
itself (the semantic conventions call it `otel.sdk.*`) where `OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED` is set, which the
gateway does; this reader takes the counts out and hands them to the scrape. A receiver that says that it has taken records
and then loses them cannot be seen from here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricReader, MetricsData
from opentelemetry.sdk.metrics.view import DropAggregation, View

__all__ = ["COUNTED_BY_SDK", "Counted", "ExportWatch", "attach"]

Counted = Callable[[str, str, str, int], None]
"""Takes signal (`spans`, `logs`, `metrics`), destination (`host:port`, empty where it is not known), result and how many."""

COUNTED_BY_SDK = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
"""Variable that makes the SDK count; read when an exporter is made."""

_PROCESSED = {"otel.sdk.processor.span.processed": "spans", "otel.sdk.processor.log.processed": "logs"}
_EXPORTED = {
    "otel.sdk.exporter.span.exported": "spans",
    "otel.sdk.exporter.log.exported": "logs",
    "otel.sdk.exporter.metric_data_point.exported": "metrics",
}
_BATCHES = "otel.sdk.exporter.operation.duration"
_COMPONENT = "otel.component.name"


class ExportWatch(MetricReader):
    """Hands on what was counted since the last look.

    The SDK counts records that the receiver refused by an HTTP status as exported; only the duration of the batch bears the
    status. So of an exporter's records the share of its refused batches counts as failed: all of them or none where one batch
    went since the last look, an estimate where several did.

    Args:
        counted: is called for each count, in the thread that looks.
    """

    def __init__(self, counted: Counted) -> None:
        delta = AggregationTemporality.DELTA
        super().__init__(preferred_temporality={Counter: delta, Histogram: delta})
        self._counted = counted

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        refused: dict[str, int] = defaultdict(int)
        batches: dict[str, int] = defaultdict(int)
        points = list(_points(metrics_data))
        for name, attributes, point in points:
            if name == _BATCHES and "error.type" not in attributes:
                batches[attributes[_COMPONENT]] += point.count
                refused[attributes[_COMPONENT]] += point.count if "http.response.status_code" in attributes else 0
        for name, attributes, point in points:
            count = int(getattr(point, "value", 0))
            if count <= 0:
                continue
            if name in _PROCESSED and "error.type" in attributes:
                self._counted(_PROCESSED[name], "", "dropped", count)
            elif name in _EXPORTED:
                component, destination = attributes[_COMPONENT], _destination(attributes)
                share = refused[component] / batches[component] if batches[component] else 0.0
                failed = count if "error.type" in attributes else round(count * share)
                for result, some in (("failed", failed), ("sent", count - failed)):
                    if some:
                        self._counted(_EXPORTED[name], destination, result, some)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Nothing is held here."""


def _points(data: MetricsData) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    yield metric.name, point.attributes or {}, point


def _destination(attributes: Mapping[str, Any]) -> str:
    host, port = attributes.get("server.address", ""), attributes.get("server.port")
    return f"{host}:{port}" if port is not None else str(host)


def attach(watch: ExportWatch) -> None:
    """Add the reader to the process's meter provider; once, after LiteLLM has started.

    Where there is none, one is made that knows what the reader takes and drops all else. Had LiteLLM not started by then, it
    would take that one for its own metrics in place of one that exports them.
    """
    provider = metrics.get_meter_provider()
    if isinstance(provider, MeterProvider):
        provider.add_metric_reader(watch)
    else:
        only = [View(instrument_name="*", aggregation=DropAggregation()), *(View(instrument_name=name) for name in _WATCHED)]
        metrics.set_meter_provider(MeterProvider(metric_readers=[watch], views=only))


_WATCHED = (*_PROCESSED, *_EXPORTED, _BATCHES)
