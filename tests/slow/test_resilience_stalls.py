"""Upstreams that take requests and never answer, in a gateway without any time-out; and deadlines that hold all the same."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from support.gateway import Gateway
from support.otlp import Receiver, attributes, receiver
from support.processes import wait_for
from support.topology import deployment
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("resilience")

AFTER = 2.0
"""`stall_after`, seconds."""
CHATS = "/v1/chat/completions"
DEADLINE = {"x-pointsman-deadline-ms": "2000"}
ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


@pytest.fixture(scope="module")
def gateway(
    upstreams: Upstreams, new_database: Callable[[], str], collector: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    groups = {"plain": "abc", "stream": "abc", "headers": "abc", "drip": "a", "wait": "a", "slots": "ab", "kinds": "ab"}
    models = [
        deployment(f"st-{group}", f"st-{group}-{name}", f"openai/{group}-{name}", upstreams.url(f"st-{group}-{name}"))
        for group, names in groups.items()
        for name in names
    ]
    for model in models:  # nearly all go to the first one, where that serves
        if model["model_name"] in ("st-slots", "st-kinds") and model["model_info"]["id"].endswith("-a"):
            model["litellm_params"]["weight"] = 10_000
    config = {
        "model_list": models,
        "router_settings": {"num_retries": 2},
        "litellm_settings": {"callbacks": ["prometheus", "otel"]},
        "general_settings": {},
        "pointsman": {"resilience": {"breaker": {"stall_after": AFTER, "recovery": 6.0, "jitter": 0.0}}},
    }
    instance = Gateway(config, tmp_path_factory.mktemp("stalls"), new_database(), workers=1, env=collector.env()).start()
    yield instance
    instance.stop()


@pytest.fixture(autouse=True)
def well(upstreams: Upstreams) -> Iterator[None]:
    yield
    upstreams.clear()


def ask(gateway: Gateway, group: str, timeout: float = 60.0, path: str = CHATS, **more: Any) -> httpx.Response:
    asked = {"model": f"st-{group}", "messages": ASK, **more.pop("body", {})}
    body = {name: value for name, value in asked.items() if value is not None}
    with httpx.Client(base_url=gateway.url, timeout=timeout, trust_env=False) as client:
        headers = {"authorization": f"Bearer {gateway.master_key}", **more}
        return client.post(path, json=body, headers=headers)


def breaker(gateway: Gateway, name: str) -> dict[str, Any]:
    rows = gateway.admin.get("/pointsman/breakers").raise_for_status().json()["breakers"]
    return next(row for row in rows if name in row["deployments"])


@pytest.mark.requirement("F-3")
@pytest.mark.parametrize("how", ["plain", "stream", "headers"])
def test_one_that_hangs_is_noticed_though_nothing_times_out_and_comes_back(
    gateway: Gateway, upstreams: Upstreams, how: str
) -> None:
    bad = f"st-{how}-a"
    body = {} if how == "plain" else {"stream": True}
    for _ in range(60):  # so that it is known how long they take, and none is asked for the first time
        assert ask(gateway, how, body=body).status_code == 200
    wait_for(lambda: breaker(gateway, bad)["state"] == "closed", 5, "the first one serves")
    upstreams.fault(bad, **({"stall_after_chunks": 1} if how == "headers" else {"hang": True}))
    before, began, opened = upstreams.count(bad), time.monotonic(), None
    with ThreadPoolExecutor(64) as clients:
        asked = []
        while opened is None and time.monotonic() - began < 30:
            asked.append(clients.submit(ask, gateway, how, 120.0, body=body))
            time.sleep(0.1)  # the pace of the clients
            if breaker(gateway, bad)["state"] == "open":
                opened = time.monotonic()
        assert opened is not None
        assert breaker(gateway, bad)["cause"] == "stalled"
        first = upstreams.requests(bad)[before:]
        assert len(first) >= 3
        # The third one has to wait for so long, or five times what is usual, which is a second where other tests run besides.
        assert AFTER < opened - began < 25
        served = [ask(gateway, how, 5.0, body=body).status_code for _ in range(20)]  # the rest is 6 s
        assert served.count(200) >= 19, "but for a probe, which the gateway cannot tell from them"
        # But for the last of them, which may be a probe.
        wait_for(lambda: sum(one.done() for one in asked) >= len(asked) - 1, 15, "who waits gets an answer elsewhere")
        upstreams.clear(bad)
        assert {one.result().status_code for one in asked} == {200}

    def back() -> bool:
        ask(gateway, how, body=body)
        return bool(breaker(gateway, bad)["state"] == "closed")

    wait_for(back, 40, "it serves again")
    text = gateway.admin.get("/metrics/").text
    lines = [line for line in text.splitlines() if line.startswith("pointsman_breaker_transitions_total") and "stalled" in line]
    assert lines, "and the metric says why"


def rows(gateway: Gateway, key: str) -> list[tuple[str, float]]:
    """Status and spend of what LiteLLM keeps of a key's requests."""
    assert gateway.database_url is not None
    select = 'SELECT status, spend FROM "LiteLLM_SpendLogs" WHERE api_key = %s'
    with psycopg.connect(gateway.database_url) as connection:
        return connection.execute(select, [hashlib.sha256(key.encode()).hexdigest()]).fetchall()


def counted(gateway: Gateway, name: str) -> float:
    lines = [line for line in gateway.admin.get("/metrics/").text.splitlines() if line.startswith(name) and "st-slots" in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'status="200"' in line or "status" not in line)


def assert_one_trace(collector: Receiver, decision: str) -> None:
    """A request that was begun anew: both attempts are in one trace with one root."""

    def traced() -> list[Span]:
        ends = [span for span in collector.spans() if attributes(span.attributes).get("pointsman.decision.id") == decision]
        found = collector.spans(ends[0].trace_id.hex()) if ends else []
        return found if len({span.span_id for span in found if span.name == "pointsman.attempt"}) == 2 else []

    spans = wait_for(traced, 30, "its spans")
    errors = [attributes(span.attributes).get("error.type") for span in spans if span.name == "pointsman.attempt"]
    assert sorted(errors, key=str) == [None, "StalledError"]
    known = {span.span_id for span in spans}
    wait_for(lambda: len([one for one in traced() if one.parent_span_id not in known]) == 1, 30, "one of them has no parent")


@pytest.mark.requirement("F-3", "P-19")
def test_who_waits_for_one_that_hangs_is_begun_anew_and_gives_back_what_it_had_taken(
    gateway: Gateway, upstreams: Upstreams, collector: Receiver
) -> None:
    key, at_once = gateway.new_key(max_parallel_requests=4), 4
    headers = {"authorization": f"Bearer {key}"}

    def all_at_once(**more: Any) -> list[httpx.Response]:
        with ThreadPoolExecutor(at_once) as clients:
            asked = [clients.submit(ask, gateway, "slots", 60.0, **headers, **more) for _ in range(at_once)]
            return [one.result() for one in asked]

    for _ in range(60):
        assert ask(gateway, "slots").status_code == 200
    wait_for(lambda: breaker(gateway, "st-slots-a")["state"] == "closed", 5, "it serves")
    upstreams.fault("st-slots-a", hang=True)
    late = all_at_once(**DEADLINE)
    assert {answer.status_code for answer in late} <= {504, 200}
    before = counted(gateway, "pointsman_requests_total")
    found = all_at_once()
    assert [answer.status_code for answer in found] == [200] * at_once, "its places were given back at the deadline"
    assert {answer.headers["x-litellm-model-id"] for answer in found} == {"st-slots-b"}
    assert counted(gateway, "pointsman_requests_total") - before == at_once, "each is one request"
    for answer in found:
        assert_one_trace(collector, answer.headers["x-pointsman-decision-id"])
    again = all_at_once()
    assert [answer.status_code for answer in again] == [200] * at_once, "and where it was begun anew"
    good = sum(answer.status_code == 200 for answer in (*late, *found, *again))
    wait_for(lambda: [one[0] for one in rows(gateway, key)].count("success") >= good, 60, "they are booked")
    booked = rows(gateway, key)
    assert [status for status, _ in booked].count("success") == good
    assert sum(spend for status, spend in booked if status != "success") == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHATS, {"stream": True}),
        ("/v1/messages", {"max_tokens": 10}),
        ("/v1/completions", {"messages": None, "prompt": "hello"}),
        ("/v1/embeddings", {"messages": None, "input": "hello"}),
    ],
)
def test_whatever_was_asked(gateway: Gateway, upstreams: Upstreams, path: str, body: dict[str, Any]) -> None:
    body = {**body}
    for _ in range(40):
        assert ask(gateway, "kinds", path=path, body=body).status_code == 200
    wait_for(lambda: breaker(gateway, "st-kinds-a")["state"] == "closed", 30, "it serves")
    upstreams.fault("st-kinds-a", hang=True)
    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(ask, gateway, "kinds", 60.0, path, body=body) for _ in range(4)]
        found = [one.result() for one in asked]
    assert [answer.status_code for answer in found] == [200] * 4, found[0].text
    assert {answer.headers["x-litellm-model-id"] for answer in found} == {"st-kinds-b"}
    admin = {"authorization": f"Bearer {gateway.master_key}"}
    held = {"upstream": "st-kinds-a", "action": "free"}
    httpx.post(f"{gateway.url}/pointsman/breakers", json=held, headers=admin, trust_env=False).raise_for_status()


LATE = 2.0 + 2.5
"""Seconds that such a request may take on a machine that runs other tests besides; without the watch it is 20 and more."""


def refused(answer: httpx.Response, took: float) -> str:
    assert answer.status_code == 504, answer.text
    assert took < LATE
    error = answer.json()["error"]
    assert "E4730" in error["message"]
    return str(error["message"])


@pytest.mark.requirement("P-19")
def test_an_answer_that_comes_a_byte_at_a_time_ends_with_the_deadline(gateway: Gateway, upstreams: Upstreams) -> None:
    upstreams.fault("st-drip-a", drip=0.3)
    for _ in range(4):  # more than the consecutive failures that would open a breaker
        began = time.monotonic()
        answer = ask(gateway, "drip", **DEADLINE)
        assert "st-drip-a" in refused(answer, time.monotonic() - began), "and it is said who was asked"
    assert breaker(gateway, "st-drip-a")["state"] == "closed", "the caller's deadline says nothing of the upstream"
    gone = lambda: [one["delivered"] for one in upstreams.requests("st-drip-a")] == ["left"] * 4  # noqa: E731
    wait_for(gone, 5, "nobody goes on reading it")
    began = time.monotonic()
    answer = messages(gateway, "st-drip", **DEADLINE)
    assert answer.json()["type"] == "error", "in the form of Anthropic's messages"
    assert "st-drip-a" in refused(answer, time.monotonic() - began)
    upstreams.clear("st-drip-a")
    assert ask(gateway, "drip", **DEADLINE).status_code == 200


@pytest.mark.requirement("P-19")
def test_the_pause_that_the_only_deployment_asks_for_ends_with_the_deadline(gateway: Gateway, upstreams: Upstreams) -> None:
    upstreams.fault("st-wait-a", status=429, retry_after=20)
    began = time.monotonic()
    answer = ask(gateway, "wait", **DEADLINE)
    assert "RateLimitError" in refused(answer, time.monotonic() - began), "LiteLLM waits for those 20 s"
    assert upstreams.count("st-wait-a") == 1


def messages(gateway: Gateway, group: str, **headers: str) -> httpx.Response:
    body = {"model": group, "messages": ASK, "max_tokens": 10}
    with httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as client:
        return client.post("/v1/messages", json=body, headers={"x-api-key": gateway.master_key, **headers})


@pytest.mark.requirement("P-19")
def test_a_stream_of_a_text_completion_has_to_begin_by_then(gateway: Gateway, upstreams: Upstreams) -> None:
    upstreams.fault("st-drip-a", stall_after_chunks=0)
    body = {"model": "st-drip", "prompt": "hello", "stream": True}
    began = time.monotonic()
    with httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as client:
        headers = {"authorization": f"Bearer {gateway.master_key}", **DEADLINE}
        answer = client.post("/v1/completions", json=body, headers=headers)
    refused(answer, time.monotonic() - began)
