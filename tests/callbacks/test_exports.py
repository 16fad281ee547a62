"""What the SDK says of its exporters, as it reaches the scrape: against a receiver that takes, refuses, hangs and babbles."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from pointsman.callbacks.exports import COUNTED_BY_SDK, ExportWatch
from support.langfuse_receiver import Fault, Langfuse, langfuse


class Exporter:
    """One that sends to a receiver, and what was counted of it."""

    def __init__(self, server: Langfuse, keys: str = "pk-lf-p:sk-lf-p-secret") -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.watch = ExportWatch(self._counted)
        meters = MeterProvider([self.watch])
        self.to = f"127.0.0.1:{server.port}"
        exporter = OTLPSpanExporter(
            f"{server.host}/api/public/otel/v1/traces",
            headers={"authorization": "Basic " + base64.b64encode(keys.encode()).decode()},
            timeout=0.3,
            meter_provider=meters,
        )
        self.processor = BatchSpanProcessor(
            exporter, max_queue_size=20, max_export_batch_size=5, schedule_delay_millis=60_000, meter_provider=meters
        )
        self.provider = TracerProvider(meter_provider=meters)
        self.provider.add_span_processor(self.processor)

    def _counted(self, signal: str, destination: str, result: str, count: int) -> None:
        self.counts[signal, destination, result] += count

    def spans(self, count: int) -> None:
        for _ in range(count):
            self.provider.get_tracer("test").start_span("one").end()


@pytest.fixture(autouse=True)
def _counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COUNTED_BY_SDK, "true")


@pytest.fixture
def server() -> Iterator[Langfuse]:
    with langfuse("p") as made:
        yield made


@pytest.mark.parametrize(
    ("fault", "result"),
    [("", "sent"), ("drop", "sent"), ("error", "failed"), ("garbage", "failed"), ("refuse", "failed"), ("hang", "failed")],
)
def test_what_became_of_four_spans(server: Langfuse, fault: Fault, result: str) -> None:
    exporter = Exporter(server)
    server.fault(fault)
    exporter.spans(4)
    exporter.processor.force_flush()
    exporter.watch.collect()
    exporter.watch.collect()  # what was told is not told again
    assert exporter.counts == {("spans", exporter.to, result): 4}
    server.fault("")
    exporter.spans(3)
    exporter.processor.force_flush()
    exporter.watch.collect()
    assert exporter.counts["spans", exporter.to, "sent"] == 3 + (4 if result == "sent" else 0)


def test_keys_that_are_refused(server: Langfuse) -> None:
    exporter = Exporter(server, "pk-lf-p:guessed")
    exporter.spans(2)
    exporter.processor.force_flush()
    exporter.watch.collect()
    assert exporter.counts == {("spans", exporter.to, "failed"): 2}


def test_a_full_queue_drops_and_counts(server: Langfuse) -> None:
    exporter = Exporter(server)
    server.fault("hang")
    exporter.spans(200)
    exporter.watch.collect()
    server.fault("refuse")
    exporter.processor.force_flush()
    exporter.watch.collect()
    assert exporter.counts["spans", "", "dropped"] >= 200 - 20 - 5 * 3, "the queue, and the batches that were on their way"
    counted = sum(exporter.counts.values())
    assert counted >= 200, "not one is lost uncounted"
    # The SDK counts a drop where the queue was full a moment ago, though the exporting thread has just made room.
    assert counted <= 200 + 5 * 3
