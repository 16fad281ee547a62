"""The fake upstreams are worth nothing unless the real SDKs take them for real: sync, streamed, refused, broken."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from support.upstreams import Upstreams

HELLO: Any = [{"role": "user", "content": "hello there"}]
NAME = "fake"


@pytest.fixture
def client(upstreams: Upstreams) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=upstreams.url(NAME), api_key="sk-any", max_retries=0, timeout=10) as sdk:
        yield sdk


@pytest.fixture
def claude(upstreams: Upstreams) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=upstreams.anthropic_url(NAME), api_key="sk-any", max_retries=0, timeout=10) as sdk:
        yield sdk


def test_chat_tells_who_served_and_counts_tokens(client: openai.OpenAI) -> None:
    first, second = (client.chat.completions.create(model="m", messages=HELLO) for _ in range(2))
    assert first.choices[0].message.content == "served by fake"
    assert first.usage is not None
    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.total_tokens) == (2, 3, 5)
    assert first.id != second.id


def test_chat_stream_says_the_same_and_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="m", messages=HELLO, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "served by fake"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_include_usage_has_none(client: openai.OpenAI) -> None:
    assert all(c.usage is None for c in client.chat.completions.create(model="m", messages=HELLO, stream=True))


def test_max_tokens_truncates_and_n_multiplies(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO, max_tokens=2, n=2)
    assert [(c.message.content, c.finish_reason) for c in answer.choices] == [("served by", "length")] * 2


def test_completions_plain_and_streamed(client: openai.OpenAI) -> None:
    assert client.completions.create(model="m", prompt="hello").choices[0].text == "served by fake"
    chunks = client.completions.create(model="m", prompt="hello", stream=True)
    assert "".join(c.choices[0].text for c in chunks) == "served by fake"


def test_responses_plain_and_streamed(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="m", input="hello there")
    assert answer.output_text == "served by fake"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + 3
    with client.responses.stream(model="m", input=HELLO) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "served by fake"
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") == 3
    assert kinds[-1] == "response.completed"


def test_embeddings_depend_on_the_text_alone_in_both_encodings(client: openai.OpenAI) -> None:
    both = client.embeddings.create(model="m", input=["a", "b"], dimensions=5)  # the SDK asks for base64
    plain = client.embeddings.create(model="m", input="a", dimensions=5, encoding_format="float")
    assert both.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert both.data[0].embedding != both.data[1].embedding
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1)


def test_the_smaller_openai_endpoints(client: openai.OpenAI) -> None:
    assert client.models.list().data[0].id == "fake-model"
    assert [r.flagged for r in client.moderations.create(input=["fine", "forbidden"]).results] == [False, True]
    images = client.images.generate(model="m", prompt="a dot").data
    assert images is not None
    assert images[0].b64_json
    assert client.audio.speech.create(model="m", input="hello", voice="alloy").content.startswith(b"ID3")
    assert client.audio.transcriptions.create(model="m", file=("a.wav", b"RIFF")).text == "served by fake"


def test_messages_plain_and_streamed(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="m", max_tokens=50, system="be brief", messages=HELLO)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "served by fake"
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.stop_reason) == (4, 3, "end_turn")
    with claude.messages.stream(model="m", max_tokens=50, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "served by fake"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 3)
    assert claude.messages.count_tokens(model="m", messages=HELLO).input_tokens == 2


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"model": "m", "messages": []}, "messages"),
        ("chat/completions", {"model": "m", "messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("chat/completions", {"model": "m", "messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ("chat/completions", {"model": "m", "messages": HELLO, "metadata_of_ours": 1}, "metadata_of_ours"),
        ("chat/completions", {"model": "m", "messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
        ("chat/completions", {"model": "m", "messages": HELLO, "temperature": 3}, "temperature"),
        ("chat/completions", {"messages": HELLO}, "model"),
        ("completions", {"model": "m"}, "prompt"),
        ("responses", {"model": "m", "input": []}, "input"),
        ("responses", {"model": "m", "input": "x", "messages": HELLO}, "messages"),
        ("embeddings", {"model": "m", "input": []}, "input"),
    ],
)
def test_openai_refuses_what_is_malformed(client: openai.OpenAI, path: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(f"/{path}", body=body, cast_to=httpx.Response)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": None},
        {"messages": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
        {"n": 2},
        {"temperature": 1.5},
    ],
)
def test_anthropic_refuses_what_is_malformed(claude: anthropic.Anthropic, change: dict[str, Any]) -> None:
    body = {"model": "m", "max_tokens": 10, "messages": HELLO, **change}
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.post("/v1/messages", body=body, cast_to=httpx.Response)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


def test_keys_and_versions_are_asked_for(upstreams: Upstreams) -> None:
    body = {"model": "m", "max_tokens": 10, "messages": HELLO}
    assert httpx.post(f"{upstreams.url(NAME)}/chat/completions", json=body).status_code == 401
    assert httpx.post(f"{upstreams.url(NAME)}/messages", json=body, headers={"x-api-key": "k"}).status_code == 400
    headers = {"anthropic-version": "2023-06-01"}
    assert httpx.post(f"{upstreams.url(NAME)}/messages", json=body, headers=headers).status_code == 401


def test_the_log_keeps_what_arrived_by_upstream(upstreams: Upstreams, client: openai.OpenAI) -> None:
    before = upstreams.count(NAME), upstreams.count("other")
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "find me 7c1e"}])
    (entry,) = upstreams.requests(NAME, contains="7c1e")
    assert entry["response_id"] == answer.id
    assert (entry["status"], entry["delivered"], entry["fault"]) == (200, "complete", False)
    assert entry["headers"]["authorization"] == "Bearer sk-any"
    assert (upstreams.count(NAME), upstreams.count("other")) == (before[0] + 1, before[1])


@contextlib.contextmanager
def fault(upstreams: Upstreams, **fields: Any) -> Iterator[None]:
    upstreams.fault(NAME, **fields)
    try:
        yield
    finally:
        upstreams.clear(NAME)


def test_status_fault_counts_down(upstreams: Upstreams, client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with fault(upstreams, status=429, retry_after=7, times=2):
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="m", messages=HELLO)
        assert limited.value.response.headers["retry-after"] == "7"
        with pytest.raises(anthropic.RateLimitError):
            claude.messages.create(model="m", max_tokens=5, messages=HELLO)
        assert client.chat.completions.create(model="m", messages=HELLO).choices


def test_match_spares_other_requests(upstreams: Upstreams, client: openai.OpenAI) -> None:
    with fault(upstreams, status=500, match="unlucky"):
        assert client.chat.completions.create(model="m", messages=HELLO).choices
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "unlucky"}])


def test_delay_and_hang(upstreams: Upstreams, client: openai.OpenAI) -> None:
    with fault(upstreams, delay=0.3, times=1):
        start = time.monotonic()
        client.chat.completions.create(model="m", messages=HELLO)
        assert time.monotonic() - start >= 0.3
    with fault(upstreams, hang=True), pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="m", messages=HELLO)


def test_clearing_lets_a_hanging_request_go_on(upstreams: Upstreams, client: openai.OpenAI) -> None:
    with fault(upstreams, hang=True):
        timer = threading.Timer(0.3, upstreams.clear, [NAME])
        timer.start()
        assert client.chat.completions.create(model="m", messages=HELLO).choices
        timer.join()


def test_cut_answers_break_the_connection(upstreams: Upstreams, client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.chat.completions.create(model="m", messages=HELLO),
        lambda: list(client.chat.completions.create(model="m", messages=HELLO, stream=True)),
        lambda: list(claude.messages.create(model="m", max_tokens=9, messages=HELLO, stream=True)),
    ]
    with fault(upstreams, cut_after_chunks=2):
        for call in calls:
            with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError, anthropic.APIConnectionError)):
                call()
    assert [entry["delivered"] for entry in upstreams.requests(NAME)[-3:]] == ["cut"] * 3


def test_error_event_in_a_stream(upstreams: Upstreams, client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with fault(upstreams, error_after_chunks=2):
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
        with pytest.raises(anthropic.APIStatusError):
            list(claude.messages.create(model="m", max_tokens=9, messages=HELLO, stream=True))


def test_garbage_is_not_json(upstreams: Upstreams, client: openai.OpenAI) -> None:
    with fault(upstreams, garbage=True):
        with pytest.raises(ValueError, match="Expecting"):
            client.post("/chat/completions", body={"model": "m", "messages": HELLO}, cast_to=httpx.Response).json()
        with pytest.raises(ValueError, match="Expecting"):
            list(client.chat.completions.create(model="m", messages=HELLO, stream=True))


def test_a_stalled_stream_shows_what_came_and_then_waits(upstreams: Upstreams, client: openai.OpenAI) -> None:
    with fault(upstreams, stall_after_chunks=2):
        stream = client.with_options(timeout=0.5).chat.completions.create(model="m", messages=HELLO, stream=True)
        chunks = iter(stream)
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "served"]
        with pytest.raises((httpx.ReadTimeout, openai.APITimeoutError)):
            next(chunks)
        stream.close()
        assert upstreams.requests(NAME)[-1]["delivered"] == "disconnected"


def test_refused_url_refuses(upstreams: Upstreams) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(upstreams.refused_url())


def test_an_unknown_fault_is_refused(upstreams: Upstreams) -> None:
    with pytest.raises(httpx.HTTPStatusError):
        upstreams.fault(NAME, explode=True)
