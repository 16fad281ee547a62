"""Who may do what: keys, the models that they are limited to, budgets. It fails closed."""

from __future__ import annotations

import time

import anthropic
import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.calls import WAYS, Clients, errors
from support.gateway import Gateway
from support.processes import wait_for
from support.upstreams import Upstreams

MODELS = ["plain", "other", "claude", "auto"]
ENDPOINTS = {
    "/v1/chat/completions": {"model": "plain", "messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"model": "plain", "prompt": "x"},
    "/v1/embeddings": {"model": "embed", "input": "x"},
    "/v1/responses": {"model": "plain", "input": "x"},
    "/v1/messages": {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
}


@pytest.mark.requirement("R-1.3", "R-11.1")
@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("key", [None, "sk-garbage", "garbage"])
def test_no_key_or_an_unknown_one_is_401_and_reaches_nobody(
    gateway: Gateway, upstreams: Upstreams, path: str, key: str | None
) -> None:
    before = [upstreams.count(name) for name in ("plain", "claude", "embed")]
    answer = gateway.http(key).post(path, json=ENDPOINTS[path])
    assert answer.status_code == 401
    assert "error" in answer.json()
    assert not [name for name in answer.headers if name.startswith("x-pointsman-")], "nothing was decided"
    assert [upstreams.count(name) for name in ("plain", "claude", "embed")] == before


@pytest.mark.requirement("R-1.3", "R-11.4")
def test_master_key_and_virtual_key_both_work(gateway: Gateway, key: str) -> None:
    for each in (gateway.master_key, key):
        assert WAYS["chat"](Clients(gateway, each), "plain", "hello").served_by == "plain"


@pytest.mark.requirement("P-2")
@settings(max_examples=25, deadline=None)
@given(key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60))
def test_property_no_invented_key_is_let_in(gateway: Gateway, upstreams: Upstreams, key: str) -> None:
    before = upstreams.count("plain")
    for invented in (key, f"sk-{key}"):
        headers = {"authorization": f"Bearer {invented}"}
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json=ENDPOINTS["/v1/chat/completions"],
            headers=headers,
            trust_env=False,
            timeout=30,
        )
        assert answer.status_code in (400, 401), answer.text
    assert upstreams.count("plain") == before


@pytest.mark.requirement("P-2")
@settings(max_examples=8, deadline=None)
@given(
    allowed=st.sets(st.sampled_from(["plain", "other", "claude", "auto"])),
    asked=st.sampled_from(["plain", "other", "claude", "auto"]),
)
def test_property_a_key_reaches_the_models_it_is_allowed_and_no_other(gateway: Gateway, allowed: set[str], asked: str) -> None:
    key = gateway.new_key(models=sorted(allowed) or ["no-such-model"])
    body = {"model": asked, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=30)
    assert answer.status_code == (200 if asked in allowed else 403), answer.text


@pytest.mark.parametrize("way", WAYS)
def test_a_key_limited_to_a_model_is_refused_another_every_way(gateway: Gateway, upstreams: Upstreams, way: str) -> None:
    clients = Clients(gateway, gateway.new_key(models=["plain"]))
    assert WAYS[way](clients, "plain", "hello").served_by == "plain"
    before = upstreams.count("other")
    with pytest.raises((openai.PermissionDeniedError, anthropic.PermissionDeniedError)):
        WAYS[way](clients, "other", "hello")
    assert upstreams.count("other") == before


def test_a_key_allowed_a_group_reaches_all_of_its_deployments(gateway: Gateway) -> None:
    from support.strategy import EASY, HARD

    clients = Clients(gateway, gateway.new_key(models=["auto"]))
    assert {WAYS["chat"](clients, "auto", text).served_by for text in (EASY, HARD)} == {"auto-weak", "auto-strong"}


@pytest.mark.requirement("R-11.4")
def test_a_blocked_and_a_deleted_key_are_refused(gateway: Gateway) -> None:
    for path, body in (("/key/block", "key"), ("/key/delete", "keys")):
        key = gateway.new_key()
        client = gateway.openai(key)
        assert client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "hi"}])
        gateway.admin.post(path, json={body: key if body == "key" else [key]}).raise_for_status()

        def refused(client: openai.OpenAI = client) -> bool:
            try:
                client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "hi"}])
            except (openai.AuthenticationError, openai.PermissionDeniedError):
                return True
            return False

        # The other worker may hold the key in its memory for a while; LiteLLM's cache of keys lives 60 s by default.
        wait_for(refused, 70, f"a key is refused after {path}", interval=0.2)


@pytest.mark.requirement("R-4.1")
def test_a_budget_stops_spending(gateway: Gateway, upstreams: Upstreams) -> None:
    # One call costs (2 + 3) tokens x 0.01 = 0.05 dollars, so the third is over.
    key = gateway.new_key(max_budget=0.12)
    body = {"model": "priced", "messages": [{"role": "user", "content": "hello there"}]}
    answers: list[int] = []

    def ask() -> int:
        headers = {"authorization": f"Bearer {key}", "connection": "close"}
        answers.append(
            httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, trust_env=False).status_code
        )
        return answers[-1]

    wait_for(lambda: all(ask() == 429 for _ in range(8)), 30, "the budget stops the key in every worker", interval=0.2)
    # Without Redis the workers tell each other of spend through the database only, so each may let its own three through.
    assert 2 <= answers.count(200) <= 3 * gateway.workers
    assert set(answers) == {200, 429}
    before = upstreams.count("priced")
    for way in WAYS:
        with pytest.raises(errors) as refused:
            WAYS[way](Clients(gateway, key), "priced", "hello there")
        assert refused.value.status_code == 429
    assert upstreams.count("priced") == before


def test_a_rate_limit_is_429(gateway: Gateway) -> None:
    client = gateway.openai(gateway.new_key(rpm_limit=2))

    def limited() -> bool:
        try:
            client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "hi"}])
        except openai.RateLimitError:
            return True
        return False

    # Without Redis each worker counts for itself, so that two workers let through at most twice the limit a minute.
    assert any(limited() for _ in range(6))


@pytest.mark.requirement("R-4.1")
@pytest.mark.parametrize("group", ["priced", "priced-in-params"])
def test_every_way_is_paid_for(gateway: Gateway, group: str) -> None:
    keys = {way: gateway.new_key() for way in WAYS}
    for way, key in keys.items():
        WAYS[way](Clients(gateway, key), group, "hello there")

    def paid() -> set[str]:
        return {way for way, key in keys.items() if gateway.key_info(key)["spend"] == pytest.approx(0.05)}

    wait_for(lambda: paid() >= WAYS.keys(), 15, "every way has its spend of 0.05", interval=0.3)
    time.sleep(2)  # what is not to come gets its time to come
    assert paid() == WAYS.keys()


@pytest.mark.requirement("R-4.1", "P-6")
def test_spend_is_recorded_for_the_key_and_in_the_log(gateway: Gateway) -> None:
    key = gateway.new_key()
    answer = gateway.openai(key).chat.completions.create(model="priced", messages=[{"role": "user", "content": "hello there"}])
    wait_for(lambda: gateway.key_info(key)["spend"] == pytest.approx(0.05), 20, "the key's spend is 0.05", interval=0.2)
    logs = wait_for(
        lambda: gateway.admin.get("/spend/logs", params={"request_id": answer.id}).json(), 20, "the request's log", interval=0.2
    )
    row = logs[0] if isinstance(logs, list) else logs
    assert (row["model_group"], row["prompt_tokens"], row["completion_tokens"]) == ("priced", 2, 3)
    assert row["spend"] == pytest.approx(0.05)
    assert "hello there" not in str(row), "no prompt text unless asked"
