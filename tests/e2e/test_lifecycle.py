"""What a gateway survives, how it stops, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import openai
import pytest

from support.calls import WAYS, Clients
from support.gateway import Gateway
from support.processes import marked, wait_for
from support.s3 import S3Server
from support.strategy import HARD, STRATEGY, S3Publisher
from support.topology import small_config
from support.upstreams import Upstreams

Make = Callable[..., Gateway]
HELLO: Any = [{"role": "user", "content": "hello there"}]


@pytest.mark.requirement("P-6")
def test_a_killed_worker_is_replaced_and_serves_the_current_strategy(
    gateway: Gateway, publisher: S3Publisher, key: str
) -> None:
    published = publisher.publish("7.0.0")
    gateway.admin.post(f"/pointsman/strategies/{STRATEGY}/reload").raise_for_status()
    before = gateway.worker_pids()
    os.kill(before[0], signal.SIGKILL)
    start = time.monotonic()

    def replaced() -> bool:
        try:
            row = gateway.strategy(STRATEGY)
        except httpx.TransportError:
            return False  # the connection was to the worker that died
        workers = row["workers"]
        return (
            all(w["ready"] and w["generation"] == row["desired_generation"] for w in workers) and workers[0]["pid"] != before[0]
        )

    wait_for(replaced, 30, "the worker is replaced and has caught up", interval=0.1)
    assert time.monotonic() - start < 15
    after = gateway.worker_pids()
    assert after[1] == before[1], "the other one was left alone"
    clients = Clients(gateway, key)
    for _ in range(12):
        said = WAYS["chat"](clients, "auto", HARD)
        assert (said.served_by, said.header("version")) == ("auto-strong", published.version)


def fetch(url: str) -> int | None:
    """The status of a GET over a connection of its own, or None when nobody answers."""
    try:
        return httpx.get(url, timeout=5, trust_env=False, headers={"connection": "close"}).status_code
    except httpx.TransportError:
        return None


def read_stream(gateway: Gateway, key: str, path: str, body: dict[str, Any], out: list[str]) -> None:
    """Append the lines of a stream to `out` as they come; a broken connection appends `broken`."""
    headers = {"authorization": f"Bearer {key}", "x-api-key": key, "anthropic-version": "2023-06-01"}
    try:
        with httpx.stream("POST", f"{gateway.url}{path}", json=body, headers=headers, timeout=60, trust_env=False) as answer:
            out.extend(line for line in answer.iter_lines() if line)
    except httpx.TransportError as error:
        out.append(f"broken: {error!r}")


@pytest.mark.slow("persistence")
@pytest.mark.requirement("R-4.1", "P-6", "R-4.6")
def test_keys_and_spend_survive_kill_9_of_everything_and_sigterm_drains(
    own_gateway: Make, upstreams: Upstreams, publisher: S3Publisher, s3: S3Server
) -> None:
    # Two boots in one test, because boots are dear: a hard end, then a soft one.
    instance = own_gateway(small_config(upstreams, publisher, shutdown={"not_ready": 1.0, "grace": 4.0})).start()
    limited = instance.new_key(models=["priced"], max_budget=50)
    served = instance.openai(limited).chat.completions.create(model="priced", messages=HELLO)
    wait_for(lambda: instance.key_info(limited)["spend"] == pytest.approx(0.05), 20, "the spend is written", interval=0.2)
    version = instance.strategy(STRATEGY)["version"]

    instance.kill()
    assert not marked(instance.mark)
    s3.stop()  # a start without S3 uses the verified copy on disk
    try:
        instance.start()
        row = instance.strategy(STRATEGY)
        assert row["version"] == version
        assert instance.key_info(limited)["spend"] == pytest.approx(0.05)
        client = instance.openai(limited)
        assert client.chat.completions.create(model="priced", messages=HELLO).id != served.id
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model="plain", messages=HELLO)
        clients = Clients(instance, instance.new_key())
        said = WAYS["chat"](clients, "auto", HARD)
        assert (said.served_by, said.header("version")) == ("auto-strong", version)
    finally:
        s3.start()

    drain(instance, upstreams)


def drain(instance: Gateway, upstreams: Upstreams) -> None:
    """SIGTERM with a stream that ends in time and two that never do."""
    key = instance.new_key()
    upstreams.fault("plain", chunk_delay=0.4)  # about 2 s
    upstreams.fault("other", stall_after_chunks=3)
    upstreams.fault("priced", stall_after_chunks=6)  # the gateway makes Anthropic's events of these
    chat = {"messages": [{"role": "user", "content": "hello there"}], "stream": True}
    jobs: dict[str, tuple[str, dict[str, Any]]] = {
        "slow": ("/v1/chat/completions", {**chat, "model": "plain"}),
        "stuck": ("/v1/chat/completions", {**chat, "model": "other"}),
        "stuck_messages": ("/v1/messages", {**chat, "model": "priced", "max_tokens": 20}),
    }
    out: dict[str, list[str]] = {name: [] for name in jobs}
    threads = [
        threading.Thread(target=read_stream, args=(instance, key, path, body, out[name])) for name, (path, body) in jobs.items()
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: all(out.values()), 10, f"every stream has begun: {out}")
    children = marked(instance.mark)
    assert len(children) >= 4, f"supervisor, preloader, workers, engine: {children}"

    os.kill(instance.pid, signal.SIGTERM)
    start = time.monotonic()
    wait_for(lambda: fetch(f"{instance.url}/health/readiness") == 503, 2, "not ready is said first", interval=0.02)
    assert fetch(f"{instance.url}/health/liveliness") == 200, "still accepting while it says so"
    wait_for(lambda: fetch(f"{instance.url}/health/liveliness") is None, 5, "new connections are refused")
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    instance.stop(timeout=30)
    took = time.monotonic() - start

    assert out["slow"][-1] == "data: [DONE]", out["slow"]
    for name in ("stuck", "stuck_messages"):
        assert "event: error" in out[name], out[name]
        assert json.loads(out[name][-1].removeprefix("data: "))["error"]["code"] == "E4701", out[name]
        assert not [line for line in out[name] if line.startswith("broken")]
    assert 4.0 <= took < 25, f"{took:.1f} s: the grace period, and not for ever"
    assert fetch(f"{instance.url}/health/liveliness") is None


@pytest.mark.requirement("R-3.4", "R-2.2", "R-2.3")
def test_a_fresh_instance_without_s3_serves_and_catches_up(own_gateway: Make, upstreams: Upstreams, s3: S3Server) -> None:
    publisher = S3Publisher(s3)
    published = publisher.publish("1.0.0")
    instance = own_gateway(small_config(upstreams, publisher), workers=1)
    s3.stop()
    try:
        instance.start()
        clients = Clients(instance, instance.new_key())
        said = WAYS["chat"](clients, "auto", HARD)
        assert said.served_by.startswith("auto-")
        assert (said.header("strategy"), said.header("fallback")) == ("litellm", "no_bundle")
        row = instance.strategy(STRATEGY)
        assert row["degraded"] is True
        assert "E4400" in str(row["last_error"])
        assert row["version"] is None
    finally:
        s3.start()
    wait_for(lambda: instance.strategy(STRATEGY)["version"] == published.version, 20, "the strategy is there", interval=0.1)
    said = wait_for(lambda: said if (said := WAYS["chat"](clients, "auto", HARD)).header("version") else None, 5, "it decides")
    assert said.served_by == "auto-strong"
    assert instance.strategy(STRATEGY)["degraded"] is False
    instance.stop()


@pytest.mark.requirement("R-11.1", "R-11.4", "R-4.6")
@pytest.mark.slow("databasefaults")
def test_without_its_database_it_says_503_and_recovers(
    own_gateway: Make, upstreams: Upstreams, publisher: S3Publisher, postgres_server: Any, new_database: Callable[[], str]
) -> None:
    from support.forward import Door

    url = new_database()
    door = Door(postgres_server.port)
    try:
        through = url.replace(f":{postgres_server.port}/", f":{door.port}/")
        assert through != url
        instance = own_gateway(small_config(upstreams, publisher), database_url=through, workers=1).start()
        known, unknown = instance.new_key(), instance.new_key()
        claude = instance.anthropic(unknown, timeout=60)
        clients = Clients(instance, known)
        assert WAYS["chat"](clients, "plain", "hello").served_by == "plain"
        door.shut()
        assert WAYS["chat"](clients, "plain", "hello").served_by == "plain", "a key in memory goes on"
        body = {"model": "plain", "messages": HELLO}
        start = time.monotonic()
        answer = instance.http(unknown, timeout=60).post("/v1/chat/completions", json=body)
        assert answer.status_code == 503, f"not 401: the key may be good ({answer.status_code} {answer.text})"
        assert time.monotonic() - start < 30
        with pytest.raises(anthropic.InternalServerError) as failed:
            claude.messages.create(model="plain", max_tokens=9, messages=HELLO)
        assert failed.value.status_code == 503
        garbage = instance.http("sk-garbage", timeout=60).post("/v1/chat/completions", json=body)
        assert garbage.status_code in (401, 503), "never let in"
        assert fetch(f"{instance.url}/health/liveliness") == 200
        wait_for(lambda: fetch(f"{instance.url}/health/readiness") == 503, 30, "readiness tells it", interval=0.5)
        door.open()
        wait_for(
            lambda: instance.http(unknown).post("/v1/chat/completions", json=body).status_code == 200,
            30,
            "recovered",
            interval=0.3,
        )
        wait_for(instance.ready, 30, "ready again", interval=0.3)
        assert instance.http("sk-garbage").post("/v1/chat/completions", json=body).status_code == 401
        instance.stop()
    finally:
        door.close()
