"""Every endpoint of LiteLLM is reachable through the gateway, and forwards what it was given."""

from __future__ import annotations

import json
import uuid
from typing import Any, cast

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.gateway import Gateway
from support.upstreams import Upstreams

# (method, path, body): what a client may ask of LiteLLM; a body that the endpoint itself refuses still shows that it is there.
REACHABLE: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/chat/completions", {}),
    ("POST", "/chat/completions", {}),
    ("POST", "/openai/deployments/plain/chat/completions", {}),
    ("POST", "/engines/plain/chat/completions", {}),
    ("POST", "/v1/completions", {}),
    ("POST", "/v1/embeddings", {}),
    ("POST", "/v1/images/generations", {}),
    ("POST", "/v1/images/edits", {}),
    ("POST", "/v1/audio/speech", {}),
    ("POST", "/v1/audio/transcriptions", {}),
    ("POST", "/v1/moderations", {}),
    ("POST", "/v1/rerank", {}),
    ("POST", "/v2/rerank", {}),
    ("POST", "/v1/messages", {}),
    ("POST", "/v1/messages/count_tokens", {}),
    ("POST", "/v1/responses", {}),
    ("GET", "/v1/responses/resp_none", None),
    ("POST", "/v1/batches", {}),
    ("GET", "/v1/batches", None),
    ("POST", "/v1/files", {}),
    ("GET", "/v1/files", None),
    ("GET", "/v1/fine_tuning/jobs", None),
    ("GET", "/v1/assistants", None),
    ("POST", "/v1/threads", {}),
    ("POST", "/v1/vector_stores", {}),
    ("GET", "/v1/models", None),
    ("GET", "/model/info", None),
    ("GET", "/v1/agents", None),
    ("POST", "/a2a/none/message/send", {}),
    ("GET", "/v1/mcp/server", None),
    ("GET", "/mcp-rest/tools/list", None),
    ("GET", "/v1/skills?custom_llm_provider=litellm_proxy", None),
    ("GET", "/key/list", None),
    ("GET", "/user/list", None),
    ("GET", "/team/list", None),
    ("GET", "/spend/logs", None),
    ("GET", "/health/liveliness", None),
    ("GET", "/health/liveness", None),
    ("GET", "/health/readiness", None),
    ("GET", "/ui/", None),
]


@pytest.mark.requirement("R-1.1")
@pytest.mark.parametrize(("method", "path", "body"), REACHABLE, ids=[f"{m} {p}" for m, p, _ in REACHABLE])
def test_endpoint_is_there(gateway: Gateway, method: str, path: str, body: dict[str, Any] | None) -> None:
    answer = gateway.admin.request(method, path, json=body, follow_redirects=True)
    assert answer.status_code != 405, answer.text
    if answer.status_code == 404:  # a handler's own answer about a thing that does not exist, not the router's
        assert answer.json() != {"detail": "Not Found"}, answer.text


@pytest.mark.requirement("R-1.1", "R-1.2")
def test_the_smaller_endpoints_reach_their_provider(gateway: Gateway, client: openai.OpenAI, upstreams: Upstreams) -> None:
    assert [r.flagged for r in client.moderations.create(model="moderate", input=["fine", "forbidden"]).results] == [
        False,
        True,
    ]
    drawn = client.images.generate(model="draw", prompt="a dot").data
    assert drawn is not None
    assert drawn[0].b64_json
    assert client.audio.speech.create(model="speak", input="hello", voice="alloy").content == b"ID3served by speak"
    assert client.audio.transcriptions.create(model="listen", file=("a.wav", b"RIFF0000WAVE")).text == "served by listen"
    body = {"model": "rank", "query": "green apple", "documents": ["red car", "green apple"], "top_n": 1}
    ranked = gateway.admin.post("/v1/rerank", json=body).raise_for_status().json()
    assert ranked["results"][0]["index"] == 1
    for name in ("moderate", "draw", "speak", "listen", "rank"):
        assert upstreams.count(name) >= 1


@pytest.mark.requirement("R-4.6")
def test_liveliness_and_readiness(gateway: Gateway) -> None:
    plain = httpx.Client(base_url=gateway.url, trust_env=False)
    assert plain.get("/health/liveliness").status_code == 200
    ready = plain.get("/health/readiness")
    assert ready.status_code == 200
    assert ready.json()["db"] == "connected"


@pytest.mark.requirement("R-1.5")
def test_the_yamls_models_are_listed(gateway: Gateway, client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert {"auto", "plain", "claude", "embed", "priced", "other"} <= listed


def test_an_unknown_model_is_refused_without_a_decision(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.status_code in (400, 404)
    assert "x-pointsman-decision-id" not in refused.value.response.headers


def test_what_the_provider_refuses_is_refused_in_its_words(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Supported values") as refused:
        client.chat.completions.create(model="plain", messages=cast(Any, [{"role": "robot", "content": "hi"}]))
    assert "x-pointsman-decision-id" in refused.value.response.headers


printable = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=200).filter(str.strip)
part = st.one_of(printable, st.lists(st.builds(lambda text: {"type": "text", "text": text}, printable), min_size=1, max_size=3))
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": part}), max_size=4)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2, allow_nan=False),
        "max_tokens": st.integers(1, 500),
        "top_p": st.floats(0.1, 1, allow_nan=False),
        "stop": st.lists(st.text(min_size=1, max_size=5, alphabet="abc"), min_size=1, max_size=3),
        "seed": st.integers(0, 2**31),
    },
)


@pytest.mark.requirement("P-1", "R-1.2")
@settings(max_examples=30, deadline=None)
@given(before=turns, last=printable, given_parameters=parameters, stream=st.booleans())
def test_property_a_chat_arrives_as_it_was_sent(
    gateway: Gateway,
    key: str,
    upstreams: Upstreams,
    before: list[dict[str, Any]],
    last: str,
    given_parameters: dict[str, Any],
    stream: bool,
) -> None:
    mark = uuid.uuid4().hex
    messages = [*before, {"role": "user", "content": f"{last} {mark}"}]
    body = {"model": "plain", "messages": messages, "stream": stream, **given_parameters}
    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=30
    )
    assert answer.status_code == 200, answer.text
    assert "served" in answer.text
    (arrived,) = upstreams.requests("plain", contains=mark)
    assert arrived["body"]["messages"] == messages
    assert arrived["body"]["model"] == "plain-model"
    assert {name: arrived["body"].get(name) for name in given_parameters} == given_parameters


@pytest.mark.requirement("P-1", "R-1.2")
@settings(max_examples=15, deadline=None)
@given(system=st.none() | printable, last=printable, limit=st.integers(1, 1000), stream=st.booleans())
def test_property_an_anthropic_message_arrives_as_it_was_sent(
    gateway: Gateway, key: str, upstreams: Upstreams, system: str | None, last: str, limit: int, stream: bool
) -> None:
    mark = uuid.uuid4().hex
    messages = [{"role": "user", "content": f"{last} {mark}"}]
    body = {
        "model": "claude",
        "max_tokens": limit,
        "messages": messages,
        "stream": stream,
        **({"system": system} if system else {}),
    }
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    answer = httpx.post(f"{gateway.url}/v1/messages", json=body, headers=headers, trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    (arrived,) = upstreams.requests("claude", contains=mark)
    assert [m["content"] for m in arrived["body"]["messages"]] in (
        [messages[0]["content"]],
        [[{"type": "text", "text": messages[0]["content"]}]],
    )
    assert arrived["body"]["max_tokens"] == limit
    assert arrived["body"]["model"] == "claude-sonnet-4-5"
    if system:
        assert system in json.dumps(arrived["body"]["system"], ensure_ascii=False) or arrived["body"]["system"] == system


@pytest.mark.requirement("P-1")
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(printable, min_size=1, max_size=5), size=st.integers(1, 64))
def test_property_embeddings_arrive_in_order(
    gateway: Gateway, key: str, upstreams: Upstreams, texts: list[str], size: int
) -> None:
    mark = uuid.uuid4().hex
    sent = [f"{text} {mark}" for text in texts]
    body = {"model": "embed", "input": sent, "dimensions": size}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{gateway.url}/v1/embeddings", json=body, headers=headers, trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    assert [(row["index"], len(row["embedding"])) for row in answer.json()["data"]] == [(i, size) for i in range(len(sent))]
    (arrived,) = upstreams.requests("embed", contains=mark)
    assert arrived["body"]["input"] == sent
