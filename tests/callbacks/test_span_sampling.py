"""Which traces are kept: whole ones, failed ones always, and of the others a share; with bounds that hold."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.util.types import AttributeValue

from pointsman.callbacks.span_sampling import HARMLESS, TailSampler, failed
from pointsman.litellm_config import litellm_environment, load

ROOT = Path(__file__).resolve().parents[2]
OURS, LITELLM = InstrumentationScope("pointsman"), InstrumentationScope("litellm")
RESOURCE = Resource({})
"""One for all: who gives none pays for a search of the machine with each span."""
HIGH = (1 << 64) - 1
"""A trace id that no share below 1 takes."""


def context(trace_id: int, span_id: int, *, remote: bool = False, sampled: bool = True) -> SpanContext:
    return SpanContext(trace_id, span_id, remote, TraceFlags(1 if sampled else 0))


def span(
    trace_id: int,
    span_id: int,
    parent: SpanContext | None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    error: bool = False,
    scope: InstrumentationScope = LITELLM,
    **attributes: AttributeValue,
) -> ReadableSpan:
    return ReadableSpan(
        name=f"s{span_id}",
        context=context(trace_id, span_id),
        parent=parent,
        kind=kind,
        status=Status(StatusCode.ERROR if error else StatusCode.UNSET),
        attributes={name.replace("__", "."): value for name, value in attributes.items()},
        instrumentation_scope=scope,
        resource=RESOURCE,
    )


def sampler(ratio: float = 0.0, *, parent: bool = True, max_spans: int = 10_000, max_age: float = 60.0) -> TailSampler:
    return TailSampler(ratio, parent=parent, max_spans=max_spans, max_age=max_age, clock=lambda: 0.0)


@dataclass(frozen=True)
class Request:
    """One request: its trace, whether it failed, whether its client wants the trace kept (None: it said nothing), its spans."""

    trace_id: int
    fails: bool
    wanted: bool | None
    spans: tuple[ReadableSpan, ...]


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    """Several, some of them in one trace; a request's spans end in an order of their own, the root's anywhere in it."""
    made, next_id = [], 1
    for _ in range(draw(st.integers(1, 6))):
        trace_id = draw(st.sampled_from([1, 2, HIGH, HIGH - 1 + (1 << 64)]))
        fails, wanted = draw(st.booleans()), draw(st.sampled_from([None, True, False]))
        root_id, next_id = next_id, next_id + 1
        remote = None if wanted is None else context(trace_id, 10_000 + root_id, remote=True, sampled=wanted)
        children = []
        parents = [root_id]
        for _ in range(draw(st.integers(1, 5))):
            children.append(span(trace_id, next_id, context(trace_id, draw(st.sampled_from(parents)))))
            parents.append(next_id)
            next_id += 1
        if fails:
            children.append(span(trace_id, next_id, context(trace_id, root_id), error=True, scope=OURS))
            next_id += 1
        root = span(trace_id, root_id, remote, kind=SpanKind.SERVER, http__response__status_code=200)
        made.append(Request(trace_id, fails, wanted, (*reversed(children), root)))
    return made


@given(requests(), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_property_a_request_is_kept_whole_or_not_at_all(asked: list[Request], seed: int) -> None:
    tail, chance = sampler(), random.Random(seed)
    out: list[ReadableSpan] = []
    queues = [list(one.spans) for one in asked]
    while left := [queue for queue in queues if queue]:  # they end side by side, and come in batches
        out += tail.take([queue.pop(0) for queue in left for _ in range(chance.randint(0, min(3, len(queue))))])
    assert tail.held == 0, "every root has ended"
    kept = Counter(one.name for one in out)
    for one in asked:
        keep = one.fails or one.wanted is True
        assert {kept[each.name] for each in one.spans} == {1 if keep else 0}
    assert tail.kept == len(out)
    assert tail.kept + tail.dropped == sum(len(one.spans) for one in asked)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.booleans()), max_size=80))
@settings(max_examples=150, deadline=None)
def test_property_nothing_is_remembered_of_what_was_decided(ends: list[tuple[int, int, bool]]) -> None:
    """Whatever ends in whatever order, an id twice, a span under itself, circles: the counts are right, and all of it ends."""
    tail, taken = sampler(0.5), 0
    for span_id, parent_id, remote in ends:
        parent = context(1, parent_id, remote=remote) if parent_id else None
        tail.take([span(1, span_id, parent)])
        taken = sum(len(one.spans) for one in tail._held.values())
        assert tail.held == taken
        assert {each for one in tail._held.values() for under in one.children.values() for each in under} <= {
            each for one in tail._held.values() for each in one.spans
        }
    tail.drain()
    assert tail.held == 0
    assert not tail._held


def test_the_size_of_a_trace_is_no_matter_to_a_request_in_it() -> None:
    """Whatever waits: a client's trace of many requests, each of which ends in turn; or one request of many spans."""

    def seconds(requests: int, each: int) -> float:
        tail = sampler(parent=False, max_spans=1_000_000)
        roots = [span(HIGH, root, context(HIGH, 1, remote=True), kind=SpanKind.SERVER) for root in range(10, 10 + requests)]
        tail.take(
            [
                span(HIGH, 1_000_000 * (root + 1) + number, context(HIGH, 10 + root))
                for root in range(requests)
                for number in range(each)
            ]
        )
        began = time.process_time()
        for root in roots:
            tail.take([root])
        assert tail.held == 0
        return time.process_time() - began

    for once, four_times in (((1_000, 5), (4_000, 5)), ((1, 5_000), (1, 20_000))):
        small, large = (min(seconds(*size) for _ in range(2)) for size in (once, four_times))
        assert large < 8 * small + 0.05, "four times as many, and not sixteen times as long"


def test_the_alert_knows_the_same_words_as_the_sampler() -> None:
    rules = yaml.safe_load((ROOT / "deploy/observability/prometheus/rules/recording.yaml").read_text())
    (rule,) = (
        rule["expr"]
        for group in rules["groups"]
        for rule in group["rules"]
        if rule["record"] == "pointsman:pointsman_undecided:ratio_rate10m"
    )
    (words,) = re.findall(r'fallback!~"([^"]*)"', rule)
    assert set(words.split("|")) == {"", *HARMLESS}, "the empty one: the strategy decided, or none is configured"


def test_a_share_is_kept_and_the_same_one_everywhere() -> None:
    chance = random.Random(7)
    spans = [span(chance.getrandbits(128), number, None) for number in range(1, 2_001)]
    first = {one.name for one in sampler(0.5).take(spans)}
    second = {one.name for one in sampler(0.8).take(spans)}
    assert 900 < len(first) < 1100
    assert first <= second, "who keeps more keeps what the others keep"
    assert sampler(1.0).take([span(HIGH, 1, None)])


def test_what_ends_after_its_root_follows_it() -> None:
    tail = sampler()
    for trace_id, error in ((1, True), (2, False)):
        root = span(trace_id, trace_id, None, kind=SpanKind.SERVER, http__response__status_code=500 if error else 200)
        grandchild = span(trace_id, 20 + trace_id, context(trace_id, 10 + trace_id))
        assert len(tail.take([grandchild, root])) == error
        child = span(trace_id, 10 + trace_id, context(trace_id, trace_id))
        assert [one.name for one in tail.take([child])] == ([f"s{10 + trace_id}", f"s{20 + trace_id}"] if error else [])
    assert tail.held == 0


def test_room_and_time_are_bounded() -> None:
    now = [0.0]
    tail = TailSampler(0.0, parent=True, max_spans=100, max_age=60, clock=lambda: now[0])
    for number in range(1, 1_000):  # no root ever ends
        tail.take([span(HIGH + number, number, context(HIGH + number, 5_000), error=number % 2 == 0, scope=OURS)])
        assert tail.held <= 100
    assert tail.forced == 899
    assert tail.kept in (449, 450), "those that failed"
    now[0] = 61
    tail.take([])
    assert tail.held == 0
    assert len(tail._decided) <= 100


def test_what_is_held_at_the_end_is_decided_on() -> None:
    tail = sampler()
    assert tail.take([span(1, 2, context(1, 1), error=True, scope=OURS), span(2, 4, context(2, 3))]) == []
    assert [one.name for one in tail.drain()] == ["s2"]
    assert tail.held == 0


def test_whose_fault_it_was() -> None:
    child = context(1, 1)
    remote = context(1, 1, remote=True)
    assert failed(span(1, 2, remote, kind=SpanKind.SERVER, http__response__status_code=503))
    assert failed(span(1, 2, remote, kind=SpanKind.SERVER, http__status_code=500))
    assert failed(span(1, 2, child, kind=SpanKind.CLIENT, error=True)), "a provider, a database"
    assert failed(span(1, 2, child, error=True, scope=OURS))
    assert failed(span(1, 2, child, scope=OURS, pointsman__route__fallback="deadline"))
    assert failed(span(1, 2, child, scope=OURS, pointsman__route__fallback="no_candidate"))
    assert failed(span(1, 2, child, scope=OURS, pointsman__route__fell_back="unavailable")), (
        "all of a group rest: none was tried"
    )
    assert failed(span(1, 2, None, error=True)), "a job of the background"
    assert not failed(span(1, 2, remote, kind=SpanKind.SERVER, error=True, http__response__status_code=401)), "the client's"
    assert not failed(span(1, 2, child, error=True)), "a phase of LiteLLM's that refused the client"
    for word in HARMLESS:
        assert not failed(span(1, 2, child, scope=OURS, pointsman__route__fallback=word))


@pytest.mark.parametrize(
    ("traces", "env", "wanted"),
    [
        ({}, {}, {}),
        ({"ratio": 0.25}, {}, {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}),
        ({"parent": False}, {}, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.0"}),
        ({"ratio": 0.25, "failures": True}, {}, {"OTEL_TRACES_SAMPLER": "always_on"}),
        ({"ratio": 0.25}, {"OTEL_TRACES_SAMPLER": "always_off"}, {}),
        ({"ratio": 0.25}, {"OTEL_TRACES_SAMPLER_ARG": "0.5"}, {}),
    ],
)
def test_the_sampler_is_what_the_settings_say_unless_the_user_has_set_one(
    tmp_path: Path, traces: dict[str, object], env: dict[str, str], wanted: dict[str, str]
) -> None:
    path = tmp_path / "config.yaml"
    section = {"telemetry": {"traces": traces}}
    settings = {"callbacks": ["otel"]}
    path.write_text(yaml.safe_dump({"model_list": [], "litellm_settings": settings, "pointsman": section}))
    found = litellm_environment(load(path, env), env)
    assert {name: value for name, value in found.items() if name.startswith("OTEL_TRACES_")} == wanted
    path.write_text(yaml.safe_dump({"model_list": [], "pointsman": section}))
    assert not any(name.startswith("OTEL_TRACES_") for name in litellm_environment(load(path, {}), {})), "nobody asked"


@pytest.mark.parametrize(("name", "recorded"), [("parentbased_traceidratio", False), ("traceidratio", True)])
def test_the_sdk_understands_what_it_is_told(monkeypatch: pytest.MonkeyPatch, name: str, recorded: bool) -> None:
    """A parent that says no is heard, or is not."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1.0")
    parent = set_span_in_context(NonRecordingSpan(context(1, 1, remote=True, sampled=False)))
    made = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("root", context=parent)
    assert made.is_recording() is recorded
