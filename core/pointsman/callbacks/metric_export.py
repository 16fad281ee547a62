"""Our metrics to a collector by OTLP: what the scrape says of them, added up over the workers, sent by one of them.

A thread of its own, one export after the other, nothing queued: each says the sums since the instance's start, so that one that
does not arrive loses nothing. Names are those of the scrape, without a counter's `_total`, which backends add again.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pointsman.callbacks.names import METRICS
from pointsman.telemetry_settings import MetricsOtlpSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric as Exported
    from opentelemetry.sdk.metrics.export import MetricExporter
    from prometheus_client import Metric as Family
    from prometheus_client.samples import Sample

__all__ = ["MetricExport", "collected", "exported"]

logger = logging.getLogger("pointsman.metrics")


def collected() -> Iterable[Family]:
    """What a scrape of this instance says: of all workers where there are several."""
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.values import MutexValue, ValueClass

    if ValueClass is MutexValue:
        return REGISTRY.collect()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # where the files are it takes from the environment, as `ValueClass` did
    return registry.collect()


def exported(families: Iterable[Family], started: float, now: float) -> list[Exported]:
    """OpenTelemetry's data of those families that are ours. Times in Unix seconds."""
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Metric, Sum

    since, at = int(started * 1e9), int(now * 1e9)
    found = []
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if (row := METRICS.get(name)) is None:
            continue
        data: Any
        if row.instrument == "histogram":
            data = _histogram(family.samples, since, at)
        else:
            points = [_number(sample, since, at) for sample in family.samples if sample.name == name]
            cumulative = AggregationTemporality.CUMULATIVE
            data = Gauge(points) if row.instrument == "gauge" else Sum(points, cumulative, is_monotonic=True)
        found.append(Metric(name=family.name, description=row.meaning, unit=row.unit, data=data))
    return found


def _number(sample: Sample, since: int, at: int) -> Any:
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    return NumberDataPoint(dict(sample.labels), since, at, sample.value)


def _histogram(samples: Iterable[Sample], since: int, at: int) -> Any:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, HistogramDataPoint

    buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = defaultdict(list)
    sums: dict[frozenset[tuple[str, str]], float] = {}
    for sample in samples:
        labels = frozenset((key, value) for key, value in sample.labels.items() if key != "le")
        if sample.name.endswith("_bucket"):
            buckets[labels].append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    none: Any = None  # the message's fields are optional, and a scrape does not know them
    points = []
    for labels, unsorted in buckets.items():
        cumulated = sorted(unsorted)
        counts = [int(count - before) for (_, count), before in zip(cumulated, (0.0, *(c for _, c in cumulated)), strict=False)]
        points.append(
            HistogramDataPoint(
                attributes=dict(labels),
                start_time_unix_nano=since,
                time_unix_nano=at,
                count=int(cumulated[-1][1]),
                sum=sums.get(labels, 0.0),
                bucket_counts=counts,
                explicit_bounds=[bound for bound, _ in cumulated[:-1]],
                min=none,
                max=none,
            )
        )
    return Histogram(points, AggregationTemporality.CUMULATIVE)


def _exporter_of(settings: MetricsOtlpSettings) -> MetricExporter:
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        headers = tuple((name.lower(), value) for name, value in settings.headers.items())
        insecure = settings.endpoint.startswith("http://")
        return Grpc(endpoint=settings.endpoint, insecure=insecure, headers=headers, timeout=settings.timeout)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

    endpoint = f"{settings.endpoint.rstrip('/')}/v1/metrics"
    return Http(endpoint=endpoint, headers=dict(settings.headers), timeout=settings.timeout)


class MetricExport:
    """The thread that sends.

    Args:
        settings: where to, and how often.
        process: whose attributes are sent (`service.instance.id`).
        started: since when the instance counts, Unix time in seconds.
        collect: the families.
    """

    def __init__(
        self,
        settings: MetricsOtlpSettings,
        process: str,
        started: float,
        collect: Callable[[], Iterable[Family]] = collected,
    ) -> None:
        from opentelemetry.sdk.resources import Resource

        self.failed = 0
        """Exports that did not arrive."""
        self._settings, self._started, self._collect = settings, started, collect
        self._resource = Resource(
            {
                "service.name": "pointsman",
                "service.version": version("pointsman"),
                "service.instance.id": f"{socket.gethostname()}-{process}",
            }
        )
        self._exporter = _exporter_of(settings)
        self._closing = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="pointsman-metric-export", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(self._settings.interval):
            self._send()
        self._send()

    def _send(self) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, ResourceMetrics, ScopeMetrics
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        try:
            metrics = exported(self._collect(), self._started, time.time())
            scope = ScopeMetrics(InstrumentationScope("pointsman"), metrics, "")
            data = MetricsData([ResourceMetrics(self._resource, [scope], "")])
            good = self._exporter.export(data, timeout_millis=self._settings.timeout * 1000) is MetricExportResult.SUCCESS
        except Exception:  # noqa: BLE001 - whatever the collector, the exporter or a full disk does, requests go on
            good = False
        self.failed += not good
        if good == self._failing:
            logger.warning("metrics %s the collector", "reach" if good else "do not reach")
        self._failing = not good

    def close(self, timeout: float) -> None:
        """Send what is counted now, within `timeout` seconds. Blocks; call it in a thread."""
        self._closing.set()
        self._thread.join(timeout)
        self._exporter.shutdown(timeout_millis=0)
