"""When the pick is down, another deployment of the group serves; nobody is tried twice; a failed one rests for a while."""

from __future__ import annotations

import uuid
from typing import Any

import openai
import pytest

from support.calls import WAYS, Clients, Said
from support.gateway import Gateway
from support.known import COMPLETION_STREAM_FAILOVER, except_for
from support.processes import wait_for
from support.strategy import HARD
from support.upstreams import Upstreams

FAULTS: dict[str, dict[str, Any]] = {
    "status": {"status": 500},
    "busy": {"status": 429, "retry_after": 1},
    "refuse": {},  # its strong deployment's port refuses connections, always
    "cut": {"cut_after_chunks": 1},
    "hang": {"hang": True},
    "garbage": {"garbage": True},
}


def marked_prompt() -> tuple[str, str]:
    """A prompt that the strategy sends to the strong candidate, and a mark to find it by in an upstream's log."""
    mark = uuid.uuid4().hex
    return f"{HARD} {mark}", mark


@pytest.fixture(scope="module")
def clients(gateway: Gateway, key: str) -> Clients:
    return Clients(gateway, key)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_sibling_serves_whatever_the_failure(upstreams: Upstreams, clients: Clients, kind: str) -> None:
    if FAULTS[kind]:
        upstreams.fault(f"{kind}-strong", **FAULTS[kind])
    text, mark = marked_prompt()
    said = WAYS["chat"](clients, kind, text)
    assert said.served_by == f"{kind}-weak"
    assert said.header("model") == "openai/weak-model"
    assert said.headers["x-litellm-model-id"] == f"{kind}-weak"
    assert len(upstreams.requests(f"{kind}-weak", contains=mark)) == 1
    if kind != "refuse":
        assert len(upstreams.requests(f"{kind}-strong", contains=mark)) == 1, "tried once, and never again"


@pytest.mark.parametrize("way", except_for("completion_stream", COMPLETION_STREAM_FAILOVER, WAYS))
def test_a_sibling_serves_every_way(upstreams: Upstreams, clients: Clients, way: str) -> None:
    group = f"way-{way}"
    upstreams.fault(f"{group}-strong", status=503)
    text, mark = marked_prompt()
    said = WAYS[way](clients, group, text)
    assert said.served_by == f"{group}-weak"
    assert said.header("model") == "openai/weak-model"
    assert len(upstreams.requests(f"{group}-strong", contains=mark)) == 1
    assert len(upstreams.requests(f"{group}-weak", contains=mark)) == 1


def test_with_everybody_down_each_is_tried_and_the_error_is_the_providers(upstreams: Upstreams, clients: Clients) -> None:
    for size in ("weak", "strong"):
        upstreams.fault(f"dead-{size}", status=503)
    text, mark = marked_prompt()
    with pytest.raises(openai.APIStatusError) as failed:
        WAYS["chat"](clients, "dead", text)
    assert failed.value.status_code in (500, 503)
    assert failed.value.response.headers["x-pointsman-decision-id"].startswith("dec_")
    tries = [len(upstreams.requests(f"dead-{size}", contains=mark)) for size in ("weak", "strong")]
    assert tries[0] >= 1
    assert tries[1] >= 1
    assert sum(tries) <= 3, f"two retries were asked for: {tries}"


def test_a_failed_deployment_cools_down_and_comes_back(gateway: Gateway, upstreams: Upstreams, clients: Clients) -> None:
    upstreams.fault("cool-strong", status=500)
    for _ in range(12):
        assert WAYS["chat"](clients, "cool", HARD).served_by == "cool-weak"
    # Each worker learns of it once; without Redis they do not tell each other.
    assert upstreams.count("cool-strong") <= gateway.workers
    upstreams.clear("cool-strong")

    def back() -> Said | None:
        said = WAYS["chat"](clients, "cool", HARD)
        return said if said.served_by == "cool-strong" else None

    said = wait_for(back, 15, "the strong one serves again after its cooldown", interval=0.2)
    assert said.header("model") == "openai/strong-model"


def test_a_stream_that_breaks_off_ends_with_an_error_and_not_as_if_complete(upstreams: Upstreams, clients: Clients) -> None:
    upstreams.fault("other", cut_after_chunks=3)
    with pytest.raises((openai.APIError, ConnectionError)):
        WAYS["chat_stream"](clients, "other", "hello")
