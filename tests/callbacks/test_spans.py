"""Spans: the table, what is made of records, what may not leave, and those of the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from litellm.integrations.otel.emitter import stamp_error
from litellm.integrations.otel.mappers import resolve_mappers
from litellm.integrations.otel.model.payloads import GuardrailSpanData, LLMCallSpanData, MCPToolCallSpanData, ServiceSpanData
from litellm.types.services import ServiceLoggerPayload, ServiceTypes
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from starlette.types import Receive, Scope, Send

from pointsman.callbacks.names import ATTRIBUTES, METRICS, SPANS
from pointsman.callbacks.privacy import REDACTED, Redactor
from pointsman.callbacks.process_spans import ProcessSpans
from pointsman.callbacks.span_export import Scrubber
from pointsman.callbacks.span_sampling import failed
from pointsman.callbacks.spans import MAX_ITEMS, RequestSpans
from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.gate import Gate
from pointsman.custom_router.request import Candidate
from pointsman.custom_router.turns import Turns
from pointsman.custom_router.verdicts import sink, tell
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.decisions.types import Attempt, Decision, Dropped, Encoded, Outcome
from pointsman.errors import PointsmanError
from pointsman.http.tickets import Tickets
from pointsman.resilience_settings import BreakerSettings, LimitSettings, QueueSettings
from support.gateway import pointsman
from support.otlp import attributes, receiver
from support.semconv import attribute_names, metric_names, namespaces, wrong_with

CLIENT = "c11e47c11e47c11e"


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
    traced.ticket.request_id, traced.ticket.decision = None, decision

    def work() -> None:
        traced.spans.begin(traced.ticket, decision.decision_id, decision.group)
        traced.spans.record(decision)
        traced.spans.record(Attempt(decision.decision_id, 1, "weak", None, "ok"))

    traced.run(work)
    assert len(traced.made("pointsman.attempt")) == 1
    for span in traced.ours():
        ids = [(span.attributes or {}).get(f"pointsman.{name}.id") for name in ("request", "decision")]
        assert ids == [decision.request_id, decision.decision_id], "one joins on them, whichever span one has found"
    (route,) = traced.made("pointsman.route")
    for span in traced.ours():
        assert wrong_with(span.name, span.kind.name.lower(), span.attributes or {}) == []
        assert "nobody's business" not in json.dumps(dict(span.attributes or {}))
    assert route.end_time is not None
    assert route.start_time is not None
    assert route.end_time - route.start_time == decision.microseconds * 1000
    assert len(traced.made("pointsman.encode")) == (decision.encoded is not None)


@pytest.mark.parametrize("why", [None, "unavailable", "RateLimitError"])
def test_a_decision_after_a_fallback_says_so(why: str | None) -> None:
    traced = Traced(ticket=Ticket(fell_back=why))
    traced.run(lambda: traced.spans.record(Decision("dec_1", "r", "spare")))
    (route,) = traced.made("pointsman.route")
    assert (route.attributes or {}).get("pointsman.route.fell_back") == why
    assert failed(route) is (why is not None), "such a trace is kept"


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
        traced.spans.record(Attempt("dec_1", 1, "weak", "openai/weak", "error", "Timeout", 408, flaw="malformed"))
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
    assert (span.attributes or {})["pointsman.attempt.flaw"] == "malformed"
    assert traced.ticket.spans == {}


@pytest.mark.requirement("F-3")
def test_a_breaker_that_an_attempt_opens_is_an_event_on_its_span() -> None:
    traced, breakers = Traced(), Breakers(BreakerSettings(consecutive_failures=1, jitter=0.0), lambda: 5.0, lambda: 0.0, tell)
    put = sink(breakers)
    up = Candidate("weak", "openai/weak", ("weak",), None, None, "openai/weak")

    def work() -> None:
        traced.spans.begin(traced.ticket, "dec_1", "auto")
        breakers.admit([up], [up], "dec_1")
        attempt = Attempt("dec_1", 1, "weak", "openai/weak", "error", "InternalServerError", 500)
        for take in (put, traced.spans.record):  # in this order, as the hook has them
            take(attempt)
        breakers.adopt([{"upstream": "another", "state": "open", "age": 0, "left": 5, "generation": 1}])

    traced.run(work)
    (span,) = traced.made("pointsman.attempt")
    (event,) = span.events
    assert event.name == "pointsman.breaker"
    assert dict(event.attributes or {}) == {
        "pointsman.upstream": "openai/weak",
        "pointsman.breaker.before": "closed",
        "pointsman.breaker.state": "open",
        "pointsman.breaker.cause": "failures",
    }
    assert traced.ticket.breaker_changes == []


def test_a_wait_for_a_turn_is_a_span_and_none_where_nobody_waited() -> None:
    traced, turns = Traced(), Turns(QueueSettings(limit=LimitSettings(limit=1), size=1, max_wait=5.0))
    gate = Gate(turns, QueueSettings(), traced.spans)

    async def one(ticket: Ticket) -> None:
        ticket.gone = asyncio.Event().wait
        await gate.wait(ticket, "acompletion", "auto", None, admin=False)

    async def work() -> None:
        first, second, third = Ticket(), Ticket(request_id="req_2"), Ticket(request_id="req_3")
        await one(first)
        waiting = asyncio.create_task(one(second))
        await asyncio.sleep(0)  # it joins in its first step
        with pytest.raises(PointsmanError):
            await one(third)
        first.place.free()
        await waiting

    traced.run(lambda: asyncio.run(work()))
    refused, served = traced.made("pointsman.queue")
    assert dict(refused.attributes or {}) == {
        "pointsman.request.id": "req_3",
        "gen_ai.request.model": "auto",
        "pointsman.queue.priority": "normal",
        "error.type": "E4720",
    }
    assert set(served.attributes or {}) | {"error.type"} == set(SPANS["pointsman.queue"].attributes)
    assert (refused.status.status_code, served.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)


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


@pytest.mark.parametrize(("bodies", "abandoned"), [(("a", "b", ""), False), (("a", "b"), True), ((), True)])
def test_an_attempt_ends_with_an_answer_that_breaks_off(bodies: tuple[str, ...], abandoned: bool) -> None:
    """The client left a stream; LiteLLM tells nobody how the call ended."""
    traced = Traced()
    tickets: list[Ticket] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        ticket = CURRENT.get()
        assert ticket is not None
        tickets.append(ticket)
        traced.spans.begin(ticket, "dec_1", "auto")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in bodies:
            await send({"type": "http.response.body", "body": body.encode(), "more_body": bool(body)})
        if not bodies:
            raise ConnectionError("the client left")

    async def nothing(_message: Any = None) -> Any:
        return {"type": "http.disconnect"}

    def work() -> None:
        with contextlib.suppress(ConnectionError):
            asyncio.run(Tickets(app)({"type": "http", "path": "/", "headers": []}, nothing, nothing))

    traced.run(work)
    assert [(span.attributes or {})["pointsman.attempt.outcome"] for span in traced.made("pointsman.attempt")] == (
        ["abandoned"] if abandoned else []
    )
    assert bool(tickets[0].spans) is not abandoned, "an answer that is whole is told of later"


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


CONTENT = (
    *("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "llm.input_messages.0.message.content"),
    *(
        "llm.prompts",
        "llm.completions",
        "langfuse.observation.input",
        "langfuse.observation.output",
        "input.value",
        "weave.output",
    ),
)
"""In each of the vocabularies that LiteLLM knows."""


def scrubbed(content: bool, messages: bool) -> str:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    span = provider.get_tracer("litellm").start_span("chat auto", kind=SpanKind.CLIENT)
    span.set_attributes(
        {
            **dict.fromkeys(CONTENT, "PROMPT"),
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
    scrub = Scrubber(content=content, messages=messages, redactor=Redactor(rules=["SAID"]))
    return str(scrub(memory.get_finished_spans()[0]).to_json())


@pytest.mark.parametrize(("content", "messages"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_may_quote_a_prompt_leaves_only_when_asked_for(content: bool, messages: bool) -> None:
    told = scrubbed(content, messages)
    assert told.count("PROMPT") == (len(CONTENT) if content else 0)
    assert ("the upstream says: [redacted]" in told) is messages
    assert "SAID" not in told
    assert "QUERY" not in told
    for kept in ('"url.path": "/v1"', '"url.full": "http://x/v1"', '"exception.type": "E"', "ERROR", "auto"):
        assert kept in told


def payload(status: str, call_type: str) -> Any:
    """As LiteLLM logs a call, with something to hide wherever a client, a tool or a provider may put words."""
    told = {"type": "object", "properties": {"x": {"description": "PROMPT"}}}
    message = {
        "role": "user",
        "content": "PROMPT",
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "PROMPT"}}],
    }
    error = {"error_class": "E", "error_code": "400", "error_message": "SAID", "traceback": "SAID", "llm_provider": "openai"}
    tool = {"mcp_server_name": "s", "name": "f", "arguments": {"x": "PROMPT"}, "result": {"x": "PROMPT"}}
    return {
        **{"id": "1", "status": status, "call_type": call_type, "model": "auto", "custom_llm_provider": "openai"},
        "model_parameters": {
            "tools": [{"type": "function", "function": {"name": "f", "description": "PROMPT", "parameters": told}}],
            "stop": ["PROMPT"],
            "temperature": 0.5,
        },
        "messages": [{"role": "system", "content": "PROMPT"}, message],
        "response": {"id": "r", "choices": [{"finish_reason": "stop", "message": message}], "data": [{"embedding": [0.5]}]},
        "error_str": "SAID",
        "error_information": error,
        "metadata": {"mcp_tool_call_metadata": tool} if call_type == "call_mcp_tool" else {},
        "hidden_params": {},
    }


def litellm_spans() -> Iterator[ReadableSpan]:
    """One of each kind that LiteLLM makes, each in every vocabulary that it knows."""
    mappers = resolve_mappers(("genai", "legacy", "openinference", "langfuse", "weave", "langtrace"))
    failed, capture = payload("failure", "acompletion"), {"capture_content": True}
    entry: Any = {
        **{"guardrail_name": "g", "guardrail_status": "guardrail_intervened", "guardrail_action": "block"},
        "guardrail_response": {"text": "PROMPT"},
    }
    service = ServiceLoggerPayload(
        is_error=True, error="SAID", service=ServiceTypes.ROUTER, duration=0.1, call_type="a", event_metadata=None
    )
    for data in (
        LLMCallSpanData.from_standard_logging_payload(payload("success", "acompletion"), **capture),
        LLMCallSpanData.from_standard_logging_payload(payload("success", "aembedding"), **capture),
        LLMCallSpanData.from_standard_logging_payload(failed, **capture),
        MCPToolCallSpanData.from_standard_logging_payload(payload("success", "call_mcp_tool"), **capture),
        GuardrailSpanData.from_logging_entry(entry),
        ServiceSpanData.from_payload(service),
    ):
        values = {name: value for mapper in mappers for name, value in mapper.map(data).items()}
        yield one(**values)
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    span = provider.get_tracer("litellm").start_span("chat auto")
    error = LLMCallSpanData.from_standard_logging_payload(failed).error
    assert error is not None
    stamp_error(span, error)
    span.end()
    yield memory.get_finished_spans()[0]


def one(name: str = "chat auto", /, **values: Any) -> ReadableSpan:
    return ReadableSpan(name=name, context=SpanContext(1, 2, False, TraceFlags(1)), attributes=values)


def test_what_litellm_s_mappers_write_leaves_only_when_asked_for() -> None:
    made = list(litellm_spans())
    before = "".join(span.to_json() for span in made)
    assert before.count("PROMPT") > 20
    assert before.count("SAID") == 5, "the payloads reach the spans"
    for content, messages in ((False, False), (True, False), (False, True), (True, True)):
        scrub = Scrubber(content=content, messages=messages, redactor=Redactor())
        for _ in range(2):  # what it has learned of names must not change what it does
            after = "".join(scrub(span).to_json() for span in made)
            assert after.count("PROMPT") == (before.count("PROMPT") if content else 0)
            assert after.count("SAID") == (before.count("SAID") if messages else 0)
            for kept in ('"gen_ai.tool.0.name"', '"gen_ai.usage', '"error.type"', '"litellm.guardrail.status"', '"service"'):
                assert (kept in after) is (kept in before), kept


def test_a_secret_leaves_in_no_text_of_a_span() -> None:
    scrub = Scrubber(content=False, messages=True, redactor=Redactor(["opaque-secret-1"]))
    given = {
        "url.full": "https://user:hunter22@host/key/sk-abcdef1234/regenerate?key=QUERY#rest",
        "url.path": "/key/sk-abcdef1234/regenerate",
        "http.route": "/opaque-secret-1",
        "litellm.call_id": "sk-abcdef1234",
        "tags": ("one", "opaque-secret-1"),
        "error.message": "AccountKey=abcdefgh",
        "litellm.api_key.hash": "another-wrong-key",
        "scores": (0.5, 0.25),
        "number": 7,
    }
    span = scrub(one("GET /key/sk-abcdef1234", **given))
    assert span.name == f"GET /key/{REDACTED}"
    assert dict(span.attributes or {}) == {
        "url.full": f"https://host/key/{REDACTED}/regenerate",
        "url.path": f"/key/{REDACTED}/regenerate",
        "http.route": f"/{REDACTED}",
        "litellm.call_id": REDACTED,
        "tags": ("one", REDACTED),
        "error.message": f"AccountKey={REDACTED}",
        "scores": (0.5, 0.25),
        "number": 7,
    }
    plain = one(**{"url.path": "/v1", "litellm.api_key.hash": "0" * 64, "tags": ("one",), "number": 7})
    assert scrub(plain) is plain is scrub(plain), "nothing to do, nothing done"


@for_all(st.text(), st.text(), st.lists(st.text(), max_size=3), st.sampled_from(["\ud800", "a\udfff", "é", ""]))
def test_property_half_a_character_costs_no_batch(name: str, value: str, items: list[str], half: str) -> None:
    """The protocol's encoder would lose all spans that are sent with one whose name it cannot write."""
    span = Scrubber(content=False, messages=False, redactor=Redactor())(one(name + half, a=half + value, b=(*items, half)))
    (sent,) = encode_spans([span]).resource_spans[0].scope_spans[0].spans
    assert set(attributes(sent.attributes)) == {"a", "b"}


# The command line --------------------------------------------------------------------------------------------------------


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
