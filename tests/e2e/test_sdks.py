"""The real OpenAI and Anthropic SDKs with a virtual key: every way to ask, plain and streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from support.calls import WAYS, Clients
from support.gateway import Gateway
from support.topology import UPSTREAM_KEY
from support.upstreams import Upstreams

HELLO: Any = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def clients(gateway: Gateway, key: str) -> Clients:
    return Clients(gateway, key)


@pytest.mark.requirement("R-1.2")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["plain", "claude"])
def test_every_way_reaches_the_provider(clients: Clients, way: str, model: str) -> None:
    assert WAYS[way](clients, model, "hello there").served_by == model


@pytest.mark.requirement("R-1.2")
def test_usage_is_the_providers(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    usage = client.chat.completions.create(model="plain", messages=HELLO).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 3, 5)
    message = claude.messages.create(model="claude", max_tokens=20, messages=HELLO)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, 3)


def test_a_streams_usage_comes_when_asked_for(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(model="plain", messages=HELLO, stream=True, stream_options={"include_usage": True})
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usages) == 1
    assert usages[0].total_tokens == 5


def test_embeddings_are_the_providers(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embed", input=["one", "two"], dimensions=6)
    assert [len(entry.embedding) for entry in answer.data] == [6, 6]
    assert answer.data[0].embedding != answer.data[1].embedding
    again = client.embeddings.create(model="embed", input="one", dimensions=6, encoding_format="float")
    assert again.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)


def arrivals(events: Iterator[Any]) -> list[float]:
    """When each event arrived, from the first."""
    times = [time.monotonic() for _ in events]
    return [at - times[0] for at in times]


@pytest.mark.parametrize("way", ["chat", "messages", "responses"])
def test_a_stream_arrives_as_it_is_made(
    gateway: Gateway, upstreams: Upstreams, client: openai.OpenAI, claude: anthropic.Anthropic, way: str
) -> None:
    model = "claude" if way == "messages" else "plain"
    upstreams.fault(model, chunk_delay=0.15)
    streams: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(model=model, messages=HELLO, stream=True),
        "messages": lambda: claude.messages.create(model=model, max_tokens=20, messages=HELLO, stream=True),
        "responses": lambda: client.responses.create(model=model, input="hello", stream=True),
    }
    came = arrivals(streams[way]())
    assert came[-1] >= 0.4, "the provider takes that long"
    between = sum(0.1 < at < came[-1] - 0.1 for at in came)
    assert between >= 1, f"all at once at the end or the beginning: {came}"


def test_the_provider_sees_its_own_key_and_never_the_callers(
    gateway: Gateway, upstreams: Upstreams, client: openai.OpenAI, claude: anthropic.Anthropic, key: str
) -> None:
    client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "which key 5f0a?"}])
    claude.messages.create(model="claude", max_tokens=9, messages=[{"role": "user", "content": "which key 5f0a?"}])
    (plain,) = upstreams.requests("plain", contains="which key 5f0a?")
    (native,) = upstreams.requests("claude", contains="which key 5f0a?")
    assert plain["headers"]["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert native["headers"]["x-api-key"] == UPSTREAM_KEY
    for sent in (plain, native):
        assert key not in str(sent)
        assert gateway.master_key not in str(sent)


def test_a_client_that_leaves_ends_the_providers_work(upstreams: Upstreams, client: openai.OpenAI) -> None:
    from support.processes import wait_for

    upstreams.fault("plain", stall_after_chunks=2)
    stream = client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "leaving 91cd"}], stream=True)
    next(iter(stream))
    wait_for(lambda: upstreams.report("plain")["active"] == 0, 5, "the handler returned (its stream goes on)")
    stream.close()
    (entry,) = upstreams.requests("plain", contains="91cd")
    assert entry["delivered"] == "disconnected"
