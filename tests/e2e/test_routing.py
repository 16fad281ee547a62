"""The strategy picks by the prompt's text on every endpoint, and each answer tells what was decided."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.calls import WAYS, Clients, errors
from support.gateway import Gateway
from support.strategy import EASY, EASY_WORDS, HARD, HARD_WORDS, STRATEGY, STRONG, wanted
from support.upstreams import Upstreams

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
DECISION = re.compile(r"dec_[0-9a-f]{32}")


@pytest.fixture(scope="module")
def clients(gateway: Gateway, key: str) -> Clients:
    return Clients(gateway, key)


@pytest.mark.requirement("R-2.2")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("group", ["auto", "mixed"])
@pytest.mark.parametrize(("text", "size"), [(EASY, "weak"), (HARD, "strong")])
def test_the_text_picks_every_way(clients: Clients, way: str, group: str, text: str, size: str) -> None:
    said = WAYS[way](clients, group, text)
    assert said.served_by == f"{group}-{size}"
    assert DECISION.fullmatch(said.header("decision-id") or "")
    assert said.header("strategy") == STRATEGY
    assert said.header("version")
    assert (said.header("model") or "").partition("/")[2] == f"{size}-model"
    assert said.header("fallback") is None


def some_of(words: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(words), min_size=2, max_size=12)


@pytest.mark.requirement("R-2.2")
@settings(max_examples=40, deadline=None)
@given(
    words=st.sampled_from([EASY_WORDS, HARD_WORDS]).flatmap(
        lambda kind: st.lists(st.sampled_from(kind), min_size=2, max_size=12)
    ),
    way=st.sampled_from(sorted(WAYS)),
)
def test_property_the_pick_is_the_strategys(gateway: Gateway, key: str, words: list[str], way: str) -> None:
    text = " ".join(words)
    said = WAYS[way](Clients(gateway, key), "auto", text)
    assert said.served_by == ("auto-strong" if wanted(text) == STRONG else "auto-weak")


def test_the_last_user_text_of_a_conversation_counts(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="auto",
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": HARD}]},
        ],
    )
    assert answer.choices[0].message.content == "served by auto-strong"


def test_mixed_requests_at_once_each_get_their_own_pick(clients: Clients) -> None:
    jobs = [(way, text) for way in WAYS for text in (EASY, HARD)] * 5

    def run(job: tuple[str, str]) -> tuple[str, str | None]:
        said = WAYS[job[0]](clients, "auto", job[1])
        return said.served_by, said.header("decision-id")

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(run, jobs))
    assert [who for who, _ in results] == ["auto-strong" if text == HARD else "auto-weak" for _, text in jobs]
    assert len({decision for _, decision in results}) == len(jobs)


@pytest.mark.parametrize("way", WAYS)
def test_a_group_of_one_has_nothing_to_choose_but_is_told(clients: Clients, way: str) -> None:
    said = WAYS[way](clients, "plain", HARD)
    assert DECISION.fullmatch(said.header("decision-id") or "")
    assert said.header("strategy") == "litellm"
    assert said.header("model") == "openai/plain-model"
    assert said.header("version") is None


@pytest.mark.parametrize("given_input", ["one", ["one", "two"], [1, 2, 3], [[1, 2], [3]]])
def test_embeddings_carry_the_headers(client: openai.OpenAI, given_input: Any) -> None:
    raw = client.embeddings.with_raw_response.create(model="embed", input=given_input)
    assert DECISION.fullmatch(raw.headers["x-pointsman-decision-id"])
    assert raw.headers["x-pointsman-model"] == "openai/text-embedding-3-small"


def test_a_prompt_without_text_falls_back_to_litellms_choice(clients: Clients) -> None:
    picture = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    raw = clients.openai.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]}]
    )
    assert (raw.parse().choices[0].message.content or "").startswith("served by auto-")
    assert raw.headers["x-pointsman-strategy"] == "litellm"
    assert raw.headers["x-pointsman-fallback"] == "no_text"


@pytest.mark.parametrize("way", WAYS)
def test_an_error_after_the_decision_carries_the_headers(upstreams: Upstreams, clients: Clients, way: str) -> None:
    upstreams.fault("other", status=400)
    with pytest.raises(errors) as failed:
        WAYS[way](clients, "other", "hello")
    assert DECISION.fullmatch(failed.value.response.headers["x-pointsman-decision-id"])


def test_the_header_names_who_served(gateway: Gateway, key: str) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": HARD}]}
    answer = httpx.post(
        f"{gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, trust_env=False
    )
    assert answer.headers["x-pointsman-model"] == f"openai/{STRONG}"
    assert answer.headers["x-litellm-model-id"] == "auto-strong"
