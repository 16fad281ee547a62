"""Spans: the table, what is made of records, what may not leave, and one request read back as one trace from a real gateway."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from pointsman.callbacks.names import ATTRIBUTES, METRICS, SPANS
from pointsman.callbacks.process_spans import ProcessSpans
from pointsman.callbacks.span_export import Scrubber
from pointsman.callbacks.spans import MAX_ITEMS, RequestSpans
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.decisions.types import Attempt, Decision, Dropped, Encoded, Outcome
from support.calls import WAYS, Clients
from support.gateway import Gateway, pointsman
from support.otlp import Receiver, attributes, receiver
from support.processes import wait_for
from support.semconv import attribute_names, metric_names, namespaces
from support.strategy import FILE_STRATEGY, HARD, FilePublisher
from support.topology import pair, routed_config, single
from support.upstreams import Upstreams

TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "double": lambda value: isinstance(value, float),
    "boolean": lambda value: isinstance(value, bool),
    "string[]": lambda value: isinstance(value, Sequence) and all(isinstance(item, str) for item in value),
    "double[]": lambda value: isinstance(value, Sequence) and all(isinstance(item, float) for item in value),
}
BAGGAGE = ("litellm.", "gen_ai.request.model")
"""What LiteLLM's own processor writes on every span of a request."""


def wrong_with(name: str, kind: str, values: Mapping[str, Any]) -> list[str]:
    """What of a span of ours is not as the table says."""
    if name not in SPANS:
        return [f"{name} is in no table"]
    row, wrong = SPANS[name], []
    if row.kind != kind:
        wrong.append(f"{name} is {kind}, not {row.kind}")
    for attribute, value in values.items():
        if attribute in row.attributes:
            if not TYPES[ATTRIBUTES[attribute].type](value):
                wrong.append(f"{name} {attribute} is no {ATTRIBUTES[attribute].type}: {value!r}")
        elif not attribute.startswith(BAGGAGE):
            wrong.append(f"{attribute} stands on {name} and in no table")
    return wrong


# The table -----------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R-6.9")
def test_a_name_is_ours_or_a_convention_s() -> None:
    for name in ATTRIBUTES:
        assert name.startswith("pointsman.") or name in attribute_names(), f"{name} is of no convention"
    assert not {name for name in ATTRIBUTES if name.startswith("pointsman.")} & attribute_names()
    assert "pointsman" not in namespaces()
    for span in SPANS.values():
        assert set(span.attributes) <= set(ATTRIBUTES)
    assert {name for span in SPANS.values() for name in span.attributes} == set(ATTRIBUTES), "each is of use"
    for metric in METRICS.values():
        assert metric.name.startswith("pointsman_") == (metric.name not in metric_names())
        assert metric.name.endswith("_total") == (metric.instrument == "counter")


def test_no_name_is_the_namespace_of_another() -> None:
    """As the conventions ask for: a backend may nest attributes by their dots."""
    for name in ATTRIBUTES:
        assert not [other for other in ATTRIBUTES if other.startswith(f"{name}.")], name


# Spans of records ----------------------------------------------------------------------------------------------------------


@dataclass
class Traced:
    """A trace under way: a root span that is recorded or not, and what was made in it."""

    recorded: bool = True
    spans: RequestSpans = field(init=False)
    ticket: Ticket = field(default_factory=Ticket)

    def __post_init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.tracer = self.provider.get_tracer("test")
        self.spans = RequestSpans(tracer=self.provider.get_tracer("pointsman"))

    def run(self, work: Callable[[], Any]) -> Any:
        """Do it inside of the request."""
        token = CURRENT.set(self.ticket)
        root = self.tracer.start_span("root") if self.recorded else trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
        try:
            with trace.use_span(root, end_on_exit=True):
                return work()
        finally:
            CURRENT.reset(token)

    def made(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.name == name]

    def ours(self) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.name != "root"]


words = st.text(max_size=12)
decisions = st.builds(
    Decision,
    decision_id=words,
    request_id=st.none() | words,
    group=words,
    strategy=st.none() | words,
    version=st.none() | words,
    scores=st.dictionaries(words, st.floats(allow_nan=False), max_size=5),
    dropped=st.lists(st.builds(Dropped, words, words), max_size=4).map(tuple),
    order=st.lists(words, max_size=3).map(tuple),
    model=st.none() | words,
    microseconds=st.integers(0, 10**9),
    fallback=st.none() | words,
    propensity=st.none() | st.floats(0, 1),
    chosen_by=st.none() | words,
    scale=st.none() | words,
    prompt=st.just("a prompt that is nobody's business"),
    encoded=st.none() | st.builds(Encoded, st.integers(0, 10), st.integers(10, 20), words, st.integers(1, 99)),
)


@for_all(decisions)
def test_property_a_decision_is_a_span_as_the_table_says(decision: Decision) -> None:
    traced = Traced()
    traced.run(lambda: traced.spans.record(decision))
    (route,) = traced.made("pointsman.route")
    for span in traced.ours():
        assert wrong_with(span.name, span.kind.name.lower(), span.attributes or {}) == []
        assert "nobody's business" not in json.dumps(dict(span.attributes or {}))
    assert route.end_time is not None
    assert route.start_time is not None
    assert route.end_time - route.start_time == decision.microseconds * 1000
    assert len(traced.made("pointsman.encode")) == (decision.encoded is not None)


def test_a_flood_of_candidates_is_cut() -> None:
    traced = Traced()
    many = {f"d{number}": float(number) for number in range(10 * MAX_ITEMS)}
    traced.run(lambda: traced.spans.record(Decision("dec_1", "r", "auto", strategy="s", scores=many)))
    told = traced.made("pointsman.route")[0].attributes or {}
    assert told["pointsman.route.candidates"] == tuple(
        f"d{number}" for number in range(10 * MAX_ITEMS - 1, 9 * MAX_ITEMS - 1, -1)
    )


def test_an_attempt_is_open_while_the_provider_is_asked() -> None:
    traced = Traced()

    def work() -> dict[str, str]:
        headers = traced.spans.begin(traced.ticket, "dec_1", "auto")
        assert traced.spans.begin(traced.ticket, "dec_1", "auto") == headers, "LiteLLM may come twice"
        traced.spans.record(Attempt("dec_1", 1, "weak", "openai/weak", "error", "Timeout", 408))
        return headers

    headers = traced.run(work)
    (span,) = traced.made("pointsman.attempt")
    context = span.context
    assert context is not None
    assert set(headers) == {"traceparent"}
    assert headers["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert span.status.status_code is StatusCode.ERROR
    assert wrong_with(span.name, "internal", span.attributes or {}) == []
    assert (span.attributes or {})["error.type"] == "Timeout"
    assert traced.ticket.spans == {}


def test_an_answer_from_the_cache_was_no_attempt_and_one_nobody_told_of_was_given_up() -> None:
    traced = Traced()

    def work() -> None:
        traced.spans.begin(traced.ticket, "dec_1", "auto")
        traced.spans.record(Outcome("dec_1", "success", "weak"))
        assert traced.made("pointsman.attempt") == []
        traced.spans.begin(traced.ticket, "dec_2", "auto")
        traced.spans.record(Outcome("dec_2", "failure"))

    traced.run(work)
    (span,) = traced.made("pointsman.attempt")
    assert (span.attributes or {})["pointsman.attempt.outcome"] == "abandoned"
    assert traced.ticket.spans == {}


def test_where_nobody_asked_for_traces_nothing_is_made() -> None:
    traced = Traced(recorded=False)

    def work() -> dict[str, str]:
        traced.spans.record(Decision("dec_1", "r", "auto"))
        headers = traced.spans.begin(traced.ticket, "dec_1", "auto")
        traced.spans.record(Attempt("dec_1", 1, "weak", None, "ok"))
        return headers

    assert traced.run(work) == {}
    assert traced.ours() == []
    assert traced.ticket.spans == {}


def test_providers_are_not_told_where_that_is_not_wanted() -> None:
    traced = Traced()
    traced.spans = RequestSpans(propagate=False, tracer=traced.tracer)

    def work() -> dict[str, str]:
        headers = traced.spans.begin(traced.ticket, "dec_1", "auto")
        traced.spans.record(Attempt("dec_1", 1, "weak", None, "ok"))
        return headers

    assert traced.run(work) == {}
    assert len(traced.made("pointsman.attempt")) == 1


# What may not leave --------------------------------------------------------------------------------------------------------


def scrubbed(content: bool, messages: bool) -> str:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    span = provider.get_tracer("litellm").start_span("chat auto", kind=SpanKind.CLIENT)
    span.set_attributes(
        {
            "gen_ai.input.messages": "PROMPT",
            "gen_ai.request.model": "auto",
            "error.message": "the upstream says: SAID",
            "url.full": "http://x/v1?key=QUERY",
            "url.query": "key=QUERY",
            "url.path": "/v1",
        }
    )
    span.add_event("exception", {"exception.type": "E", "exception.message": "SAID", "exception.stacktrace": "SAID"})
    span.set_status(Status(StatusCode.ERROR, "SAID"))
    span.end()
    scrub = Scrubber(content=content, messages=messages, clean=lambda text: text.replace("SAID", "[redacted]"))
    return scrub(memory.get_finished_spans()[0]).to_json()


@pytest.mark.parametrize(("content", "messages"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_may_quote_a_prompt_leaves_only_when_asked_for(content: bool, messages: bool) -> None:
    told = scrubbed(content, messages)
    assert ("PROMPT" in told) is content
    assert ("the upstream says: [redacted]" in told) is messages
    assert "SAID" not in told
    assert "QUERY" not in told
    for kept in ('"url.path": "/v1"', '"url.full": "http://x/v1"', '"exception.type": "E"', "ERROR", "auto"):
        assert kept in told


# A real gateway ------------------------------------------------------------------------------------------------------------


@dataclass
class Observed:
    """A gateway that keeps the traces that failed or whose client wants them kept, and no other one."""

    gateway: Gateway
    collector: Receiver
    upstreams: Upstreams
    publisher: FilePublisher

    def ask(self, flag: str | None, **body: Any) -> tuple[httpx.Response, str]:
        trace_id = secrets.token_hex(16)
        headers = {} if flag is None else {"traceparent": f"00-{trace_id}-{CLIENT}-{flag}"}
        asked = {"model": "auto", "messages": [{"role": "user", "content": HARD}], **body}
        answer = self.gateway.admin.post("/v1/chat/completions", json=asked, headers=headers)
        return answer, trace_id

    def whole(self, trace_id: str, names: set[str]) -> list[Any]:
        """The spans of a trace, once those of these names are there."""

        def there() -> bool:
            return names <= {span.name for span in self.collector.spans(trace_id)}

        wait_for(there, 20, f"{names} have arrived")
        return self.collector.spans(trace_id)


CLIENT = "c11e47c11e47c11e"
SERVER = "POST /v1/chat/completions"


@pytest.fixture(scope="module")
def observed(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    publisher = FilePublisher(tmp_path_factory.mktemp("published"), FILE_STRATEGY)
    publisher.publish("1.0.0")
    models = [*pair(upstreams, "auto"), single(upstreams, "embed", "openai/text-embedding-3-small", {"mode": "embedding"})]
    for entry in models:  # its own upstreams: what arrives there is counted
        entry["litellm_params"]["api_base"] = upstreams.url(f"traced-{entry['model_info']['id']}")
    strategies = {FILE_STRATEGY: publisher.settings(reload_interval=0.5)}
    telemetry = {"traces": {"ratio": 0.0, "failures": True}}
    config = routed_config(models, strategies, {"auto": FILE_STRATEGY}, telemetry=telemetry)
    config["router_settings"] |= {"cooldown_time": 0.1}
    config["litellm_settings"] |= {
        "callbacks": ["otel"],
        "cache": True,
        "cache_params": {"type": "local", "mode": "default_off", "supported_call_types": ["acompletion"]},
    }
    with receiver() as collector:
        env = {**collector.env("otlp_grpc"), "OTEL_BSP_SCHEDULE_DELAY": "100"}
        gateway = Gateway(config, tmp_path_factory.mktemp("traced"), None, env=env, workers=1)
        try:
            gateway.start()
            yield Observed(gateway, collector, upstreams, publisher)
            gateway.stop()
        finally:
            gateway.kill()


@pytest.mark.requirement("P-15", "R-6.2", "R-6.4")
def test_a_request_with_a_fallback_is_one_trace_from_the_client_to_the_upstream(observed: Observed) -> None:
    observed.upstreams.fault("traced-auto-strong", status=500, times=1)
    answer, trace_id = observed.ask("01")
    observed.upstreams.clear("traced-auto-strong")
    assert answer.status_code == 200, answer.text
    spans = observed.whole(trace_id, {SERVER, "pointsman.attempt", "chat auto"})
    wait_for(lambda: len([s for s in observed.collector.spans(trace_id) if s.name == "pointsman.attempt"]) == 2, 20, "both")
    spans = observed.collector.spans(trace_id)
    known = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_span_id not in known]
    assert [(span.name, span.parent_span_id.hex()) for span in roots] == [(SERVER, CLIENT)], "no orphan"

    first, second = sorted((s for s in spans if s.name == "pointsman.route"), key=lambda span: span.start_time_unix_nano)
    told = attributes(first.attributes)
    assert told["pointsman.strategy.name"] == FILE_STRATEGY
    assert told["pointsman.strategy.version"]
    assert told["pointsman.route.pick"] == "auto-strong" == told["pointsman.route.candidates"][0]
    assert len(told["pointsman.route.scores"]) == 2
    assert known[first.parent_span_id].name == "route auto", "LiteLLM's"
    assert [span.name for span in spans if span.parent_span_id == first.span_id] == ["pointsman.encode"]
    assert attributes(second.attributes)["pointsman.route.pick"] == "auto-weak"

    failed, good = sorted((s for s in spans if s.name == "pointsman.attempt"), key=lambda span: span.start_time_unix_nano)
    told = attributes(failed.attributes)
    assert (told["pointsman.deployment.id"], told["error.type"], told["http.response.status_code"]) == (
        "auto-strong",
        "InternalServerError",
        500,
    )
    assert failed.status.code == 2
    assert attributes(good.attributes)["pointsman.attempt.outcome"] == "ok"
    assert attributes(good.attributes)["pointsman.decision.id"] == answer.headers["x-pointsman-decision-id"]
    for name, span in (("traced-auto-strong", failed), ("traced-auto-weak", good)):
        received = observed.upstreams.requests(name)[-1]["headers"]["traceparent"]
        assert received == f"00-{trace_id}-{span.span_id.hex()}-01", "the upstream's spans stand under the attempt"

    lines = [json.loads(line) for line in observed.gateway.log_path.read_text().splitlines() if trace_id in line]
    decided = [line for line in lines if line["logger"] == "pointsman.decisions" and "policy" in line]
    assert [line["deployment"] for line in decided] == ["auto-strong"], "the decision's log line"
    assert known[bytes.fromhex(decided[0]["span_id"])].name == "route auto", "joins the trace"


@pytest.mark.requirement("R-6.9")
def test_every_span_of_a_request_is_as_the_table_and_the_conventions_say(observed: Observed) -> None:
    _, trace_id = observed.ask("01")
    spans = observed.whole(trace_id, {SERVER, "pointsman.attempt", "chat auto"})
    kinds = {1: "internal", 2: "server", 3: "client"}
    strays: set[str] = set()
    for span in spans:
        values = attributes(span.attributes)
        if span.name.startswith("pointsman."):
            assert wrong_with(span.name, kinds[span.kind], values) == []
        strays |= {name for name in values if name.partition(".")[0] in namespaces()} - attribute_names()
    assert strays <= {"gen_ai.usage.total_tokens"}, "names of LiteLLM's that look like a convention's"
    (server,) = (attributes(span.attributes) for span in spans if span.name == SERVER)
    assert {"http.request.method", "http.response.status_code", "http.route", "url.path"} <= set(server)
    assert "http.method" not in server, "the older names"
    (chat,) = (attributes(span.attributes) for span in spans if span.name == "chat auto")
    assert {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.usage.input_tokens", "server.address"} <= set(chat)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_tells_the_upstream_of_the_trace(observed: Observed, way: str) -> None:
    trace_id = secrets.token_hex(16)
    clients = Clients(observed.gateway, observed.gateway.master_key)
    parent = {"traceparent": f"00-{trace_id}-{CLIENT}-01"}
    clients.openai = clients.openai.with_options(default_headers=parent)
    clients.anthropic = clients.anthropic.with_options(default_headers=parent)
    before = observed.upstreams.count("traced-auto-strong")
    assert WAYS[way](clients, "auto", HARD).served_by == "traced-auto-strong"
    (received,) = observed.upstreams.requests("traced-auto-strong", since=before)
    spans = observed.whole(trace_id, {"pointsman.attempt"})
    (attempt,) = (span for span in spans if span.name == "pointsman.attempt")
    assert received["headers"]["traceparent"] == f"00-{trace_id}-{attempt.span_id.hex()}-01"


@pytest.mark.requirement("R-6.4")
def test_an_answer_from_the_cache_is_seen_as_one(observed: Observed) -> None:
    for _ in range(2):
        answer, trace_id = observed.ask("01", cache={"use-cache": True}, temperature=0.5)
        assert answer.status_code == 200, answer.text
        names = [span.name for span in observed.whole(trace_id, {SERVER, "pointsman.route", "cache.get llm_response"})]
    assert "chat auto" not in names
    assert "pointsman.attempt" not in names, "nobody was asked"


def test_what_did_not_fail_and_nobody_wants_is_dropped_and_what_failed_is_kept(observed: Observed) -> None:
    dropped = [observed.ask("00")[1] for _ in range(3)]
    anonymous, _ = observed.ask(None)
    observed.upstreams.fault("traced-auto-strong", status=500, times=1)
    saved, kept = observed.ask("00")
    refused, wrong = observed.ask("00", model="no-such-model")
    wanted, asked_for = observed.ask("01")
    observed.upstreams.clear("traced-auto-strong")
    assert [answer.status_code for answer in (anonymous, saved, refused, wanted)] == [200, 200, 400, 200]
    spans = observed.whole(kept, {SERVER, "pointsman.route", "pointsman.attempt", "route auto"})
    assert len({span.span_id for span in spans}) == len(spans) >= 7, "the whole trace, each span once"
    observed.whole(asked_for, {SERVER})  # it came last
    for trace_id in (*dropped, wrong):
        assert observed.collector.spans(trace_id) == []
    orphans = {item.what.trace_id.hex() for item in observed.collector.items("/v1/traces") if item.what.name == SERVER}
    assert all(any(span.parent_span_id.hex() == CLIENT for span in observed.collector.spans(one)) for one in orphans)


def test_a_reload_is_a_trace_of_its_own_and_so_is_a_refusal(observed: Observed) -> None:
    def reloads() -> list[dict[str, Any]]:
        return [attributes(span.attributes) for span in observed.collector.spans() if span.name == "pointsman.reload"]

    observed.publisher.publish("2.0.0")
    wait_for(lambda: any(one["pointsman.strategy.version"] == "2.0.0" for one in reloads()), 20, "the reload was told")
    taken = next(one for one in reloads() if one["pointsman.strategy.version"] == "2.0.0")
    assert taken["pointsman.reload.previous_version"] == "1.0.0"
    observed.publisher.corrupt("flipped", "3.0.0")
    wait_for(lambda: any(one.get("error.type") == "E4302" for one in reloads()), 20, "the refusal was told")
    for span in (span for span in observed.collector.spans() if span.name == "pointsman.reload"):
        assert wrong_with(span.name, "internal", attributes(span.attributes)) == []


def test_a_training_run_is_a_span_of_the_trace_that_began_it(tmp_path: Any) -> None:
    rows = [
        {"query": f"{word} number {number}", "model_name": model, "performance": float(model == best)}
        for number in range(12)
        for word, best in (("apple", "weak"), ("algebra", "strong"))
        for model in ("weak", "strong")
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    trace_id = secrets.token_hex(16)
    with receiver() as collector:
        env = {**collector.env(), "TRACEPARENT": f"00-{trace_id}-{CLIENT}-01"}
        arguments = ("mlops", "train", "--strategy", "knn", "--data", data, "--out", tmp_path / "out")
        done = pointsman(*arguments, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        wrong = pointsman("mlops", "train", "--strategy", "knn", "--out", tmp_path / "out", env=env)
        assert wrong.returncode == 1
        good, bad = collector.spans(trace_id)
    told = attributes(good.attributes)
    assert (told["pointsman.train.kind"], told["pointsman.train.rows"]) == ("knn", 24)
    assert attributes(bad.attributes)["error.type"] == "E4204"
    for span in (good, bad):
        assert span.parent_span_id.hex() == CLIENT
        assert wrong_with(span.name, "internal", attributes(span.attributes)) == []


def test_a_collector_that_does_not_answer_holds_up_no_end() -> None:
    with receiver() as collector:
        collector.hang()
        spans = ProcessSpans.from_environment(collector.env())
        with spans.run("pointsman.train"):
            pass
        started = time.monotonic()
        spans.close(timeout=0.5)
        assert time.monotonic() - started < 3
    assert not ProcessSpans.from_environment({"OTEL_EXPORTER": "console"}).active
    assert not ProcessSpans.from_environment({}).active
    broken = {"OTEL_EXPORTER": "otlp_grpc", "OTEL_ENDPOINT": "http://[", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file"}
    assert not ProcessSpans.from_environment(broken).active, "and no start fails for it"
