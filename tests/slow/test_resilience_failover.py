"""Failover over the real gateway: upstreams that break in every way, and clients that should not notice.

One gateway for all; each test has model groups and upstreams of its own. Its breakers never open: they have tests of their own,
and here every request is to meet the one that is dead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.gateway import Gateway
from support.processes import wait_for
from support.upstreams import Upstreams

pytestmark = pytest.mark.slow("resilience")

FIRST = 10**9
"""Weight of the deployment that LiteLLM asks first."""
BEFORE: dict[str, dict[str, Any]] = {
    "garbage": {"garbage": True},
    "cut": {"cut_after_chunks": 1},
    "error": {"error_after_chunks": 1},
    "stall": {"stall_after_chunks": 1},
    "hang": {"hang": True},
    "drip": {"chunk_delay": 20.0},
}
"""What may go wrong before the first content."""
CALLS = ("chat", "responses", "messages", "bridged")
"""Chats, the Responses API, Anthropic's messages at an upstream that speaks them, and at one of OpenAI's."""
ASK = [{"role": "user", "content": "hello"}]


def deployment(upstreams: Upstreams, group: str, name: str, call: str = "chat", **params: Any) -> dict[str, Any]:
    info = params.pop("info", {})
    at = {"model": "openai/m", "api_base": upstreams.url(name)}
    if call == "messages":
        at = {"model": "anthropic/m", "api_base": upstreams.anthropic_url(name)}
    return {"model_name": group, "litellm_params": {**at, "api_key": "sk-up", **params}, "model_info": {"id": name, **info}}


def three(upstreams: Upstreams, group: str, call: str = "chat", **params: Any) -> list[dict[str, Any]]:
    """The one that is asked first, and two more."""
    names = (("bad", FIRST), ("a", 1), ("b", 1))
    return [deployment(upstreams, group, f"{group}-{name}", call, weight=weight, **params) for name, weight in names]


@pytest.fixture(scope="module")
def gateway(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    models = [one for fault in BEFORE for call in CALLS for one in three(upstreams, f"fo-{fault}-{call}", call)]
    models += [one for call in CALLS for one in three(upstreams, f"fo-after-{call}", call)]
    for group in ("fo-400", "fo-401", "fo-dead", "fo-last", "fo-hang"):
        models += three(upstreams, group)
    models += [deployment(upstreams, f"{group}-fallback", f"{group}-fallback") for group in ("fo-dead", "fo-last")]
    models += [deployment(upstreams, group, group) for group in ("fo-alone", "fo-storm")]
    models += [deployment(upstreams, "fo-wait", f"fo-wait-{name}") for name in ("a", "b")]
    models += [
        deployment(upstreams, "fo-timeout", "fo-timeout", timeout=1, num_retries=0),
        deployment(upstreams, "fo-slow", "fo-slow", num_retries=0),
        deployment(upstreams, "fo-small", "fo-small", info={"max_input_tokens": 50}),
        deployment(upstreams, "fo-large", "fo-large", info={"max_input_tokens": 100_000}),
        deployment(upstreams, "fo-windows", "fo-windows-small", weight=FIRST, info={"max_input_tokens": 50}),
        deployment(upstreams, "fo-windows", "fo-windows-large", weight=1, info={"max_input_tokens": 100_000}),
        deployment(upstreams, "fo-plain", "fo-plain", info={"pointsman": {"streaming": False}}),
    ]
    config = {
        "model_list": models,
        "router_settings": {
            "fallbacks": [{"fo-dead": ["fo-dead-fallback"]}, {"fo-last": ["fo-last-fallback"]}],
            "context_window_fallbacks": [{"fo-small": ["fo-large"]}],
            "timeout": 4,
            "stream_timeout": 3,
        },
        "litellm_settings": {"callbacks": ["prometheus"]},
        "general_settings": {},
        "pointsman": {
            "resilience": {
                "failover": {"budget_floor": 3, "budget_share": 0.2, "budget_window": 60, "first_token": 1.5},
                "breaker": {"consecutive_failures": 1_000, "minimum_volume": 100_000, "rate_limits": 1_000},
            }
        },
    }
    instance = Gateway(config, tmp_path_factory.mktemp("failover"), None, workers=1)
    instance.start()
    yield instance
    instance.stop()


@pytest.fixture
def metric(gateway: Gateway) -> Any:
    def value(name: str, **labels: str) -> float:
        text = gateway.admin.get("/metrics/").raise_for_status().text
        found = (one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name)
        return sum(one.value for one in found if labels.items() <= one.labels.items())

    return value


def counts(upstreams: Upstreams, group: str, *names: str) -> list[int]:
    return [upstreams.count(f"{group}-{name}" if name else group) for name in names]


def stream(gateway: Gateway, group: str, call: str) -> tuple[str, Exception | None]:
    """What a client of the real SDK reads, and the error that its stream ends with."""
    text, error = "", None
    try:
        if call == "chat":
            for chunk in gateway.openai().chat.completions.create(model=group, messages=ASK, stream=True):  # type: ignore[call-overload]
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        elif call == "responses":
            starts = 0
            for event in gateway.openai().responses.create(model=group, input="hello", stream=True):
                starts += event.type == "response.created"
                text += event.delta if event.type == "response.output_text.delta" else ""
                if event.type in ("response.failed", "error"):
                    error = RuntimeError(event.type)
            assert starts == 1  # one response, not two spliced
        else:
            asked = {"model": group, "max_tokens": 50, "messages": ASK, "stream": True}
            starts = 0
            for event in gateway.anthropic().messages.create(**asked):  # type: ignore[call-overload]
                starts += event.type == "message_start"
                text += getattr(event.delta, "text", "") if event.type == "content_block_delta" else ""
            assert starts == 1
    except (openai.APIError, anthropic.APIError, httpx.HTTPError) as broke:
        error = broke
    return text, error


@pytest.mark.requirement("L-8", "R-14.4")
@pytest.mark.parametrize("call", CALLS)
def test_a_stream_that_breaks_before_its_first_content_goes_on_elsewhere_unnoticed(
    gateway: Gateway, upstreams: Upstreams, call: str
) -> None:
    groups = {fault: f"fo-{fault}-{call}" for fault in BEFORE}
    for fault, group in groups.items():
        upstreams.fault(f"{group}-bad", **BEFORE[fault])

    def ask(group: str) -> tuple[str, Exception | None]:
        return stream(gateway, group, call)

    with ThreadPoolExecutor(len(groups)) as pool:
        answers = dict(zip(groups, pool.map(ask, groups.values()), strict=True))
    for fault, (text, error) in answers.items():
        group = groups[fault]
        assert error is None, (fault, error)
        assert text in (f"served by {group}-a", f"served by {group}-b"), fault
        assert sorted(counts(upstreams, group, "bad", "a", "b")) == [0, 1, 1], fault


@pytest.mark.requirement("L-8", "R-14.6")
@pytest.mark.parametrize("call", CALLS)
def test_a_stream_that_breaks_after_it_ends_with_the_protocols_error_and_is_counted(
    gateway: Gateway, upstreams: Upstreams, call: str, metric: Any
) -> None:
    group = f"fo-after-{call}"
    before = metric("pointsman_streams_broken_total", when="after")
    failed = metric("pointsman_attempts_total") - metric("pointsman_attempts_total", error="")
    upstreams.fault(f"{group}-bad", **({"error_after_chunks": 3} if call == "chat" else {"cut_after_chunks": 5}))
    text, error = stream(gateway, group, call)
    assert "served".startswith(text[:6])
    assert text
    assert error is not None
    assert counts(upstreams, group, "bad", "a", "b") == [1, 0, 0]  # no second answer behind the half of the first
    wait_for(lambda: metric("pointsman_streams_broken_total", when="after") == before + 1, 10, "the break is counted")
    assert metric("pointsman_attempts_total") - metric("pointsman_attempts_total", error="") == failed + 1


@pytest.mark.requirement("R-14.1")
def test_what_the_caller_did_wrong_is_not_tried_again_and_a_refused_key_is_tried_elsewhere(
    gateway: Gateway, upstreams: Upstreams
) -> None:
    upstreams.fault("fo-400-bad", status=400)
    with pytest.raises(openai.BadRequestError):
        gateway.openai().chat.completions.create(model="fo-400", messages=ASK)  # type: ignore[arg-type]
    assert counts(upstreams, "fo-400", "bad", "a", "b") == [1, 0, 0]
    upstreams.fault("fo-401-bad", status=401)
    gateway.openai().chat.completions.create(model="fo-401", messages=ASK)  # type: ignore[arg-type]
    assert sorted(counts(upstreams, "fo-401", "bad", "a", "b")) == [0, 1, 1]


@pytest.mark.requirement("R-14.1")
def test_no_deployment_is_asked_twice_while_another_remains_over_retries_and_fallbacks(
    gateway: Gateway, upstreams: Upstreams
) -> None:
    for name in ("bad", "a", "b"):
        upstreams.fault(f"fo-dead-{name}", status=500)
    answer = gateway.openai().chat.completions.create(model="fo-dead", messages=ASK)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "served by fo-dead-fallback"
    assert counts(upstreams, "fo-dead", "bad", "a", "b", "fallback") == [1, 1, 1, 1]


@pytest.mark.requirement("R-14.5")
def test_the_last_error_says_what_was_tried(gateway: Gateway, upstreams: Upstreams) -> None:
    for name in ("bad", "a", "b", "fallback"):
        upstreams.fault(f"fo-last-{name}", status=503)
    with pytest.raises(openai.InternalServerError) as failed:
        gateway.openai().chat.completions.create(model="fo-last", messages=ASK)  # type: ignore[arg-type]
    assert failed.value.status_code == 503
    for name in ("bad", "a", "b", "fallback"):
        assert f"fo-last-{name} (ServiceUnavailableError, 503)" in str(failed.value)
    assert "sk-up" not in str(failed.value)


@pytest.mark.requirement("R-14.2", "P-17")
def test_the_only_deployment_is_asked_again_after_pauses_that_grow(gateway: Gateway, upstreams: Upstreams) -> None:
    upstreams.fault("fo-alone", status=500)
    with pytest.raises(openai.InternalServerError):
        gateway.openai().chat.completions.create(model="fo-alone", messages=ASK)  # type: ignore[arg-type]
    at = [one["at"] for one in upstreams.requests("fo-alone")]
    assert len(at) == 3  # the first and `num_retries`
    assert at[1] - at[0] >= 0.5  # LiteLLM's, with one deployment: 0.5 s doubled each time, and up to 0.75 s by chance
    assert at[2] - at[1] >= 1.0


@pytest.mark.requirement("R-14.6")
def test_a_storm_is_held_back_by_the_retry_budget(gateway: Gateway, upstreams: Upstreams, metric: Any) -> None:
    upstreams.fault("fo-storm", status=500)

    def ask(_: int) -> str:
        try:
            gateway.openai().chat.completions.create(model="fo-storm", messages=ASK)  # type: ignore[arg-type]
        except openai.InternalServerError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(10) as pool:
        errors = list(pool.map(ask, range(10)))
    assert upstreams.count("fo-storm") == 10 + 3 + 2  # the requests, the floor and a fifth; without it: 30
    assert sum("E4731" in error for error in errors) >= 5
    assert all("was told to answer 500" in error for error in errors)  # what the provider said
    wait_for(lambda: metric("pointsman_failover_stops_total", limit="budget", group="fo-storm") >= 5, 10, "they are counted")


@pytest.mark.requirement("R-14.2")
def test_a_retry_after_that_is_too_long_ends_the_request(gateway: Gateway, upstreams: Upstreams) -> None:
    for name in ("a", "b"):
        upstreams.fault(f"fo-wait-{name}", status=429, retry_after=40)
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError, match="rest") as failed:  # their breakers have opened
        gateway.openai().chat.completions.create(model="fo-wait", messages=ASK)  # type: ignore[arg-type]
    assert time.monotonic() - began < 5
    assert 30 <= int(failed.value.response.headers["retry-after"]) <= 41
    assert "Tried: fo-wait-" in str(failed.value)
    assert counts(upstreams, "fo-wait", "a", "b") == [1, 1]


@pytest.mark.requirement("R-14.4", "P-19")
def test_no_call_outlives_its_time_out(gateway: Gateway, upstreams: Upstreams) -> None:
    def seconds(model: str, *, headers: dict[str, str] | None = None, **body: Any) -> float:
        began = time.monotonic()
        asked = {"model": model, "messages": ASK, **body}
        with pytest.raises(openai.APIError):  # noqa: PT012 - a stream may fail when it is read
            answer = gateway.openai().chat.completions.create(**asked, extra_headers=headers)  # type: ignore[call-overload]
            if body.get("stream"):
                list(answer)
        return time.monotonic() - began

    upstreams.fault("fo-timeout", hang=True)
    assert 1 <= seconds("fo-timeout") < 2.5  # the model's
    upstreams.fault("fo-slow", hang=True)
    assert 4 <= seconds("fo-slow") < 5.5  # everybody's
    assert 0.7 <= seconds("fo-slow", extra_body={"timeout": 0.7}) < 2  # the request's
    assert 0.7 <= seconds("fo-slow", extra_body={"timeout": 0.7}, stream=True) < 2
    for name in ("bad", "a", "b"):
        upstreams.fault(f"fo-hang-{name}", hang=True)
    assert 1 <= seconds("fo-hang", headers={"x-pointsman-deadline-ms": "1000"}) < 2.5  # of all tries together
    assert counts(upstreams, "fo-hang", "bad", "a", "b") == [1, 0, 0]
    upstreams.fault("fo-slow", stall_after_chunks=3)
    assert 3 <= seconds("fo-slow", stream=True) < 4.5  # between two events of a stream


@pytest.mark.requirement("R-14.3", "P-18")
def test_a_prompt_that_is_too_long_goes_where_it_fits_without_a_try_where_it_does_not(
    gateway: Gateway, upstreams: Upstreams
) -> None:
    long = [{"role": "user", "content": "word " * 300}]
    for group, served in (("fo-small", "fo-large"), ("fo-windows", "fo-windows-large")):
        answer = gateway.openai().chat.completions.create(model=group, messages=long)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == f"served by {served}"
    assert [upstreams.count(name) for name in ("fo-small", "fo-windows-small")] == [0, 0]
    for group, served in (("fo-small", "fo-small"), ("fo-windows", "fo-windows-small")):
        answer = gateway.openai().chat.completions.create(model=group, messages=ASK)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == f"served by {served}"


@pytest.mark.requirement("S-8")
def test_streaming_is_switched_off_for_a_model(gateway: Gateway) -> None:
    client = gateway.openai()
    answer = client.chat.completions.create(model="fo-plain", messages=ASK)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "served by fo-plain"
    with pytest.raises(openai.BadRequestError, match="E4012"):
        client.chat.completions.create(model="fo-plain", messages=ASK, stream=True)  # type: ignore[arg-type]
