"""What is counted, and that the number of time series is bounded whatever the words are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from starlette.types import Message, Receive, Scope, Send

from pointsman.callbacks.labels import MAX_KNOWN, Words, endpoint_of
from pointsman.callbacks.metrics import MAX_WORDS, METRICS, Metrics, Request
from pointsman.callbacks.red import Measured
from pointsman.callbacks.spend import spend_waiting
from pointsman.custom_router.cost import always_strong
from pointsman.custom_router.request import Prices
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.decisions.types import Attempt, Decision, Outcome


def decision(strategy: str | None, fallback: str | None = None, microseconds: int = 0) -> Decision:
    return Decision("dec_1", "r", "auto", strategy=strategy, fallback=fallback, microseconds=microseconds)


class Scrape:
    """A registry with our metrics in it, and what it says."""

    def __init__(self, **known: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(["knn"], registry=self.registry, **known)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def series(self) -> int:
        return sum(1 for family in self.registry.collect() for _ in family.samples)


def test_decisions() -> None:
    scrape = Scrape()
    for record in (decision("knn", microseconds=1500), *[decision(None, "deadline")] * 2, decision("forged")):
        scrape.metrics.record(record)
    total, seconds = "pointsman_routing_decisions_total", "pointsman_routing_decision_seconds"
    assert scrape(total, strategy="knn", fallback="") == 1
    assert scrape(total, strategy="litellm", fallback="deadline") == 2
    assert scrape(total, strategy="other", fallback="") == 1
    assert scrape(f"{seconds}_sum", strategy="knn") == pytest.approx(0.0015)
    assert scrape(f"{seconds}_bucket", strategy="knn", le="0.001") == 0
    assert scrape(f"{seconds}_bucket", strategy="knn", le="0.002") == 1


@pytest.mark.requirement("R-14.6")
def test_tries_and_retries() -> None:
    scrape = Scrape()
    scrape.metrics.record(Attempt("dec_1", 1, "d1", "openai/a", "error", error="RateLimitError", status=429))
    scrape.metrics.record(Attempt("dec_1", 2, "d2", "openai/b", "ok", latency_ms=1200))
    assert scrape("pointsman_attempts_total", model="openai/a", error="RateLimitError") == 1
    assert scrape("pointsman_attempts_total", model="openai/b", error="") == 1
    assert scrape("pointsman_retries_total", model="openai/a") is None
    assert scrape("pointsman_retries_total", model="openai/b") == 1
    assert scrape("pointsman_attempt_seconds_sum", model="openai/b") == pytest.approx(1.2)


@pytest.mark.requirement("R-6.6")
def test_cost_and_what_the_dearest_would_have_cost() -> None:
    scrape = Scrape()
    token = CURRENT.set(Ticket(group="auto", decision=decision("knn")))
    try:
        scrape.metrics.record(Outcome("dec_1", "success", cost=0.25, strong_cost=1.0))
        scrape.metrics.record(Outcome("dec_2", "success", cost=0.5))  # nobody knows: nothing saved
    finally:
        CURRENT.reset(token)
    labels = {"group": "auto", "strategy": "knn"}
    assert scrape("pointsman_cost_usd_total", **labels) == pytest.approx(0.75)
    assert scrape("pointsman_always_strong_cost_usd_total", **labels) == pytest.approx(1.5)


prices = st.builds(Prices, st.floats(0, 1e-3), st.floats(0, 1e-3))


@given(
    st.dictionaries(st.sampled_from("abcd"), prices, min_size=1), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1)
)
def test_property_the_dearest_is_never_cheaper_than_what_was_paid(
    table: dict[str, Prices], prompt: int, completion: int, share: float
) -> None:
    for name, own in table.items():
        listed = own.input * prompt + own.output * completion
        strong = always_strong(table, name, prompt, completion, paid=share * listed)  # some of it at a discount
        if strong is not None:
            assert strong >= share * listed * (1 - 1e-9)
            if listed > 0 and all(one.input <= own.input and one.output <= own.output for one in table.values()):
                assert strong == pytest.approx(share * listed)


def test_the_dearest_of_what_is_not_paid_by_the_token() -> None:
    free, dear = Prices(0.0, 0.0), Prices(1e-3, 2e-3)
    assert always_strong({"dear": dear}, "unpriced", 10, 10, 0.1) is None
    assert always_strong({"free": free, "dear": dear}, "free", 10, 10, 0.0) == pytest.approx(0.03)
    assert always_strong({"dear": dear}, "dear", 0, 0, 0.1) is None, "an image"


PATHS = {
    "/v1/chat/completions": "chat/completions",
    "/chat/completions": "chat/completions",
    "/openai/deployments/gpt/4/chat/completions": "chat/completions",
    "/engines/some/model/completions": "completions",
    "/openai/v1/responses/resp_1": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1beta/models/gemini:streamGenerateContent": "generate_content",
    "/v1/audio/speech": "audio/speech",
    "/a2a/agent-7/message/send": "a2a",
    "/mcp": "mcp",
    "/metrics": "probe",
    "/health/readiness": "probe",
    "/key/generate": "other",
    "/ui/": "other",
    "": "other",
}


@pytest.mark.parametrize(("path", "endpoint"), PATHS.items())
def test_endpoints(path: str, endpoint: str) -> None:
    assert endpoint_of(path) == endpoint


async def call(
    scrape: Scrape, path: str, *messages: Message, ticket: Ticket | None = None, error: BaseException | None = None
) -> None:
    """One request through the middleware, to an application that sends these messages."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    async def nothing() -> Message:
        return {"type": "http.request"}

    async def sent(message: Message) -> None:
        pass

    token = CURRENT.set(ticket)
    try:
        await Measured(app, scrape.metrics)({"type": "http", "path": path}, nothing, sent)
    finally:
        CURRENT.reset(token)


def start(status: int, kind: bytes = b"application/json") -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


END: Message = {"type": "http.response.body", "body": b"x"}
CHUNK: Message = {**END, "more_body": True}
CHAT = "/v1/chat/completions"


@pytest.mark.requirement("S-5", "R-6.6", "R-14.6")
async def test_rate_errors_duration() -> None:
    scrape = Scrape()
    stream = b"text/event-stream; charset=utf-8"
    await call(scrape, CHAT, start(200), END, ticket=Ticket(group="auto", attempt_error="Timeout", fell_back="Timeout"))
    await call(scrape, CHAT, start(200, stream), CHUNK, END, ticket=Ticket(group="auto"))
    await call(scrape, CHAT, start(429), END, ticket=Ticket(error="BudgetExceededError", budget="team"))
    await call(scrape, CHAT, {"type": "http.response.start", "status": 404}, END)  # ASGI: headers may be left out
    await call(scrape, CHAT, start(200, stream), CHUNK, ticket=Ticket(group="auto"))
    await call(scrape, "/metrics", start(200), END)
    with pytest.raises(asyncio.CancelledError):
        await call(scrape, CHAT, error=asyncio.CancelledError())
    with pytest.raises(ZeroDivisionError):
        await call(scrape, CHAT, error=ZeroDivisionError())
    chat = {"endpoint": "chat/completions"}

    def errors(group: str, error: str) -> float | None:
        return scrape("pointsman_request_errors_total", group=group, error=error, **chat)

    assert scrape("pointsman_requests_total", group="auto", status="200", **chat) == 3
    for status in ("404", "429", "499", "500"):
        assert scrape("pointsman_requests_total", group="", status=status, **chat) == 1
    assert scrape("pointsman_request_seconds_count", group="auto", **chat) == 3
    assert scrape("pointsman_request_seconds_count", group="", **chat) == 4
    assert scrape("pointsman_time_to_first_token_seconds_count", group="auto", **chat) == 2
    assert errors("auto", "incomplete") == 1
    assert errors("auto", "Timeout") is None, "the attempt failed, the request did not"
    assert [errors("", e) for e in ("BudgetExceededError", "http_404", "http_499", "http_500")] == [1, 1, 1, 1]
    assert scrape("pointsman_fallbacks_total", group="auto", reason="Timeout") == 1
    assert scrape("pointsman_budget_rejections_total", entity="team") == 1
    assert scrape("pointsman_budget_rejections_total", entity="key") == 0, "there before the first, else no rate sees it"


def test_states() -> None:
    scrape = Scrape()
    scrape.metrics.sample(7, 100, 2, {"knn": (1, "knn", "1.0")})
    scrape.metrics.sample(3, 150, 2, {"knn": (2, "knn", "2.0")})
    row = {"name": "knn", "failing": 1, "degraded": 0, "desired_generation": 3, "events": {"polls": 4, "unheard": 1}}
    scrape.metrics.told({"strategies": [row, {**row, "name": "forged"}], "config_failing": 1})
    scrape.metrics.spend(12, 3.5)
    scrape.metrics.in_flight(5)
    assert scrape("pointsman_requests_in_flight") == 5
    assert scrape("pointsman_spend_queue_rows") == 12
    assert scrape("pointsman_spend_flush_lag_seconds") == 3.5
    assert scrape("pointsman_decision_queue_records") == 3
    assert scrape("pointsman_decision_records_total", result="written") == 150
    assert scrape("pointsman_decision_records_total", result="dropped") == 2
    assert scrape("pointsman_strategy_info", strategy="knn", kind="knn", version="1.0") == 0
    assert scrape("pointsman_strategy_info", strategy="knn", kind="knn", version="2.0") == 1
    assert scrape("pointsman_strategy_generation", strategy="knn") == 2
    assert scrape("pointsman_strategy_desired_generation", strategy="knn") == 3
    assert scrape("pointsman_strategy_failing", strategy="knn") == 1
    assert scrape("pointsman_reload_events_total", strategy="knn", result="polls") == 4
    assert scrape("pointsman_reload_events_total", strategy="knn", result="unheard") is None
    assert scrape("pointsman_config_failing") == 1


def test_the_oldest_row_that_waits_is_the_lag() -> None:
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    older, newer = {"endTime": datetime(2026, 5, 1, 11, 59, tzinfo=UTC)}, {"endTime": now}
    assert spend_waiting([], now) == (0, 0.0)
    assert spend_waiting([older, newer], now) == (2, 60.0)
    assert spend_waiting([{"endTime": "2026-05-01T11:59:30+00:00"}], now) == (1, 30.0), "as it stands in JSON"
    assert spend_waiting([{"endTime": datetime(2026, 5, 1, 11, 59)}], now) == (1, 60.0), "LiteLLM's times are UTC"
    assert spend_waiting([{"endTime": datetime(2026, 5, 1, 12, 1, tzinfo=UTC)}], now) == (1, 0.0), "clocks differ"
    assert spend_waiting([{}, {"endTime": "soon"}], now) == (2, 0.0)
    assert spend_waiting([{"endTime": "soon"}], now) == (1, 0.0)


def flood(metrics: Metrics, word: str) -> None:
    """`word` wherever a client, a provider or a strategy can bring a word in."""
    metrics.record(decision(word, word))
    metrics.record(Attempt("dec", 2, word, word, "error", error=word))
    metrics.record(Attempt("dec", 2, word, word, "ok", latency_ms=1.0))
    ticket = Ticket(group=word, error=word, budget=word, fell_back=word, decision=decision(word))
    token = CURRENT.set(ticket)
    try:
        metrics.record(Outcome("dec", "success", cost=1.0))
    finally:
        CURRENT.reset(token)
    metrics.request(Request(f"/{word}", 200, True, 0.1, True, 0.2), ticket)
    metrics.request(Request(CHAT, 400 + len(word) % 600, seconds=0.2), ticket)
    metrics.sample(1, 1, 1, {word: (1, "knn", word)})
    metrics.know([{"model_name": "auto", "litellm_params": {"model": "openai/a"}}])


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(), max_size=8), max_size=100))
def test_property_a_flood_of_names_is_bounded(names: list[str]) -> None:
    scrape = Scrape(groups=["auto"], models=["openai/a"])
    for word in (*names, "\ud800", "x" * 10_000, *(f"w{number}" for number in range(2 * MAX_WORDS))):
        flood(scrape.metrics, word)
    full = scrape.series()
    for number in range(3 * MAX_WORDS):
        flood(scrape.metrics, f"later{number}")
    # Only statuses and endpoints may still be new, and both are bounded by themselves.
    values: dict[tuple[str, str], set[str]] = {}
    for family in scrape.registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault((family.name, label), set()).add(value)
    assert all(len(found) <= MAX_WORDS + 16 for (_, label), found in values.items()), {k: len(v) for k, v in values.items()}
    assert scrape.series() < full * 1.5
    counted = sum(s.value for f in scrape.registry.collect() for s in f.samples if s.name == "pointsman_attempts_total")
    assert counted == 2 * (len(names) + 2 + 5 * MAX_WORDS), "none is lost"
    flood(scrape.metrics, "auto")
    assert scrape("pointsman_fallbacks_total", group="auto", reason="other") == 2, "what is configured keeps its name"
    generate_latest(scrape.registry)


def test_words_that_the_configuration_knows_are_bounded_too() -> None:
    words = Words()
    words.know(f"group{number}" for number in range(2 * MAX_KNOWN))
    assert len({words(f"group{number}") for number in range(2 * MAX_KNOWN)}) <= MAX_KNOWN + 1 + MAX_WORDS


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("mmap closed or invalid")])
def test_a_full_disk_fails_no_request(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: Any) -> None:
        raise error

    metrics = Scrape().metrics
    metrics._count = fails  # type: ignore[method-assign] # what a full disk does
    for _ in range(3):
        metrics.record(decision("knn"))
        metrics.request(Request(CHAT, 200), None)
    assert len(caplog.records) == 1


def test_every_metric_of_the_table_is_made() -> None:
    scrape = Scrape()
    made = {f"{family.name}_total" if family.type == "counter" else family.name for family in scrape.registry.collect()}
    assert made == set(METRICS)
