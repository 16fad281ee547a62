"""Log records to a collector that refuses some: one bad record holds up no other, and each that is lost is counted."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from pointsman.callbacks.log_export import Export
from pointsman.callbacks.log_records import Entry, fields_of
from pointsman.callbacks.privacy import REDACTED, Redactor
from pointsman.telemetry_settings import OtlpSettings
from support.otlp import Receiver, receiver
from support.processes import wait_for


def entry(message: str, **identity: str) -> Entry:
    return Entry(1e9, logging.INFO, "pointsman.x", message, ("f", 1), identity)


def told(message: str, **identity: str) -> dict[str, Any]:
    return fields_of(entry(message, **identity), Redactor())


def export_to(collector: Receiver, protocol: str = "http", **fields: Any) -> Export:
    endpoint = collector.endpoint if protocol == "http" else collector.grpc_endpoint
    given = {"interval": 0.01, "timeout": 1.0, "protocol": protocol, **fields}
    return Export(OtlpSettings(endpoint=endpoint, **given), {}, lambda *_: None)


def messages(collector: Receiver) -> list[str]:
    return [record.body.string_value for record in collector.logs()]


def test_ids_of_a_trace_are_told_whatever_the_rules_are() -> None:
    found = fields_of(
        entry("4111111111111111", trace_id="1234567890123456" * 2, span_id="1234567890123456", request_id="4111111111111111"),
        Redactor(rules=[r"\d{13,16}"]),
    )
    assert (found["trace_id"], found["span_id"]) == ("1234567890123456" * 2, "1234567890123456")
    assert found["request_id"] == found["message"] == REDACTED


def test_a_record_that_otlp_cannot_say_is_dropped_alone() -> None:
    with receiver() as collector:
        export = export_to(collector, interval=0.2)
        for number in range(10):
            export.put(told(str(number), **({"trace_id": "none"} if number == 4 else {})))
        wait_for(lambda: len(collector.logs()) == 9, 10, "the others have arrived")
        export.close()
    assert export.dropped == 1
    assert not export.failing


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_batch_that_is_too_large_arrives_in_parts(protocol: str) -> None:
    with receiver() as collector:
        collector.refuse_larger(10_000)
        export = export_to(collector, protocol, interval=0.2)
        for number in range(100):
            export.put(told(f"{number} " + "x" * 1_000))
        wait_for(lambda: len(collector.logs()) == 100, 20, "all have arrived")
        wait_for(lambda: not export.failing, 5, "and nothing is amiss")
        export.close()
        assert [int(message.split()[0]) for message in messages(collector)] == list(range(100))
    assert export.dropped == 0


@pytest.mark.parametrize("bad", [{0}, {18}, {3, 4, 5}])
def test_a_record_that_is_refused_again_and_again_is_dropped_and_counted(bad: set[int]) -> None:
    began = time.monotonic()
    with receiver() as collector:
        collector.refuse_text("bad")
        export = export_to(collector)
        for number in range(20):
            export.put(told(f"{number} {'bad' if number in bad else 'good'}"))
        wait_for(lambda: len(collector.logs()) + export.dropped == 20, 30, "all have arrived but those")
        export.close()
        assert {int(message.split()[0]) for message in messages(collector)} == set(range(20)) - bad
    assert export.dropped == len(bad)
    assert time.monotonic() - began < 20


def test_a_refused_record_that_is_alone_waits_for_another() -> None:
    with receiver() as collector:
        collector.refuse_text("bad")
        export = export_to(collector)
        export.put(told("bad"))
        wait_for(lambda: collector.exports > 5, 20, "it was tried again and again")
        assert export.dropped == 0
        export.put(told("good"))
        wait_for(lambda: messages(collector) == ["good"] and export.dropped == 1, 20, "the other is there")
        export.close()


@pytest.mark.parametrize(
    ("level", "number"),
    [(5, 1), (10, 5), (15, 5), (20, 9), (25, 9), (30, 13), (35, 13), (40, 17), (49, 17), (70, 21)],
)
def test_any_level_has_its_severity(level: int, number: int) -> None:
    with receiver() as collector:
        export = export_to(collector)
        export.put(fields_of(Entry(1e9, level, "pointsman.x", "hello", ("f", 1), {}), Redactor()))
        wait_for(lambda: bool(collector.logs()), 10, "it has arrived")
        export.close()
        assert collector.logs()[0].severity_number == number
