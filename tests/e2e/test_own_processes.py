"""LLMRouter in a process of its own, and code of the operator's, in a live gateway: whatever they do, requests are answered.

What stands in for LLMRouter (`support.remote`) misbehaves on command; everything else is the gateway's own.
"""

from __future__ import annotations

import os
import signal
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pointsman.strategies.remote.child import tree_of
from support.gateway import Gateway, pointsman
from support.processes import wait_for
from support.remote import router_file, stand_in_python
from support.strategy import EASY, HARD, STRONG, WEAK
from support.topology import pair, routed_config
from support.upstreams import Upstreams
from support.wheels import example_wheel

REASONS = {
    "DIE": "worker_died",
    "SEGFAULT": "worker_died",
    "HANG": "worker_deadline",
    "LEAK": "worker_memory",
    "STRANGER": "worker_nonsense",
    "RUBBISH": "worker_nonsense",
    "IMPORT": "worker_broken",
    "KILLED": "worker_died",
}
INVERTED = """
class Inverted:
    models, scale = ("openai/weak-model", "openai/strong-model"), "rank"
    def score(self, texts, users):
        return [[0.0, 1.0] for _ in texts]
def make(**options):
    return Inverted()
"""
BAD_PLUGIN = """
class Bad:
    models, scale = ("openai/weak-model", "openai/strong-model"), "quality"
    def score(self, texts, users):
        raise RuntimeError("a plugin's own mistake")
def make():
    return Bad()
"""


@pytest.fixture(scope="module")
def gateway(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("own-processes")
    home = directory / "gateway"
    home.mkdir()
    python = stand_in_python(directory / "venv")
    config = str(router_file(directory / "router"))
    process = {"config": config, "python": python, "memory_mb": 100, "deadline_ms": 1_900}
    strategies: dict[str, dict[str, Any]] = {
        f"does-{word.lower()}": {"kind": "elo", "llmrouter": {**process, "deadline_ms": 500 if word == "HANG" else 1_900}}
        for word in REASONS
    }
    strategies["unimportable"] = {"kind": "causallm", "llmrouter": process}
    # Installed as packages are: what the gateway finds on its path beside the configuration counts.
    with zipfile.ZipFile(example_wheel(directory)) as archive:
        archive.extractall(home)
    (home / "bad.py").write_text(BAD_PLUGIN)
    (home / "bad-1.0.dist-info").mkdir()
    (home / "bad-1.0.dist-info/entry_points.txt").write_text("[pointsman.strategies]\nbad = bad:make\n")
    models = ["openai/weak-model", "openai/strong-model"]
    strategies["mine"] = {"kind": "custom", "entry_point": "length", "options": {"models": models, "words": 5}}
    strategies["mistaken"] = {"kind": "custom", "entry_point": "bad"}
    strategies["unmade"] = {"kind": "custom", "entry_point": "length", "options": {"models": ["one"]}}
    published = publish(directory, "1.0.0")
    strategies["signed"] = {
        **{"kind": "custom", "entry_point": "length", "options": {"models": models, "words": 5}},
        **{"source": published["to"], "allow_signed_code": True, "trusted_keys": {"tests": published["public"]}},
        "reload_interval": 0.5,
    }
    groups = {f"to-{name}": name for name in strategies}
    entries = [entry for group in groups for entry in pair(upstreams, group)]
    config_of_it = routed_config(entries, strategies, groups)
    config_of_it["litellm_settings"]["callbacks"] = ["prometheus"]
    instance = Gateway(config_of_it, home, None)
    instance.start()
    for word in REASONS:
        wait_for(lambda word=word: process_of(instance, word)["state"] == "ready", 30, f"{word} is ready")  # type: ignore[misc]
    yield instance
    instance.kill()  # the last test killed its supervisor already


def publish(directory: Path, version: str, module: str | None = None) -> dict[str, str]:
    """By the command line, as an operator does; where to, and the public key."""
    key, to = directory / "signing.key", str(directory / "published/current.json")
    if not key.exists():
        made = pointsman("mlops", "keygen", "--out", key, "--id", "tests")
        (directory / "public").write_text(made.stdout.strip().split()[-1])
    path = example_wheel(directory, version=version, module=module)
    done = pointsman("mlops", "publish", path, "--to", to, "--key", key, "--strategy", "signed")
    assert done.returncode == 0, done.stderr
    return {"to": to, "public": (directory / "public").read_text()}


def process_of(gateway: Gateway, word: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.strategy(f"does-{word.lower()}")["process"]
    return found


def ask(gateway: Gateway, strategy: str, text: str) -> httpx.Response:
    body = {"model": f"to-{strategy}", "messages": [{"role": "user", "content": text}]}
    return gateway.admin.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("word", REASONS)
def test_every_request_is_answered_and_told_why_and_it_recovers(gateway: Gateway, word: str) -> None:
    name = f"does-{word.lower()}"
    well = ask(gateway, name, HARD)
    assert (well.status_code, well.headers["x-pointsman-model"]) == (200, f"openai/{STRONG}")
    assert well.headers["x-pointsman-strategy"] == name
    assert ask(gateway, name, EASY).headers["x-pointsman-model"] == f"openai/{WEAK}"

    before = process_of(gateway, word)
    if word == "KILLED":
        os.kill(before["pid"], signal.SIGKILL)
        wait_for(lambda: process_of(gateway, word)["state"] != "ready", 10, "its end was noticed")
    hit = ask(gateway, name, f"{word} now")
    meanwhile = ask(gateway, name, EASY)
    for answer in (hit, meanwhile):
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
    assert (hit.headers["x-pointsman-fallback"], hit.headers["x-pointsman-strategy"]) == (REASONS[word], "litellm")
    process = process_of(gateway, word)
    assert process["last_failure"]["reason"] == REASONS[word]
    assert process["refused"][REASONS[word]] >= 1

    if word == "IMPORT":  # nobody tries again and again what cannot work; an operator may
        assert process["state"] == "broken"
        assert gateway.strategy(name)["degraded"]
        gateway.admin.post(f"/pointsman/strategies/{name}/reload").raise_for_status()
    after = wait_for(lambda: (now := process_of(gateway, word))["state"] == "ready" and now, 30, "it is ready again")
    assert after["restarts"] == before["restarts"] + 1
    assert after["pid"] != before["pid"]
    again = ask(gateway, name, HARD)
    assert (again.headers["x-pointsman-model"], again.headers.get("x-pointsman-fallback")) == (f"openai/{STRONG}", None)
    assert counted(gateway, "litellm", REASONS[word]) >= 1
    assert counted(gateway, name, "") >= 3


def counted(gateway: Gateway, strategy: str, fallback: str) -> float:
    """What the scrape says of all workers together."""
    scraped = gateway.admin.get("/metrics/", timeout=30).raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(scraped) for sample in family.samples]
    wanted = {"strategy": strategy, "fallback": fallback}
    return sum(s.value for s in samples if s.name == "pointsman_routing_decisions_total" and s.labels == wanted)


@pytest.mark.alone
def test_under_load_it_is_killed_and_stopped_and_no_request_is_lost(gateway: Gateway) -> None:
    over = threading.Event()

    def client() -> list[tuple[int, str | None, str]]:
        answers = []
        while not over.is_set():
            answer = ask(gateway, "does-killed", HARD)
            answers.append((answer.status_code, answer.headers.get("x-pointsman-fallback"), answer.text))
        return answers

    with ThreadPoolExecutor(6) as clients:
        running = [clients.submit(client) for _ in range(6)]
        try:
            for signalled in (signal.SIGKILL, signal.SIGSTOP):
                before = wait_for(lambda: (now := process_of(gateway, "KILLED"))["state"] == "ready" and now, 30, "it is ready")
                wait_for(lambda: process_of(gateway, "KILLED")["answered"] > before["answered"] + 40, 30, "it is busy")  # noqa: B023
                os.kill(before["pid"], signalled)
                wait_for(
                    lambda: (now := process_of(gateway, "KILLED"))["state"] == "ready" and now["starts"] > before["starts"],  # noqa: B023
                    30,
                    "another one is ready",
                )
        finally:
            over.set()
        answers = [answer for each in running for answer in each.result()]
    assert {status for status, _, _ in answers} == {200}, [text for status, _, text in answers if status != 200][:1]
    reasons = Counter(fallback for _, fallback, _ in answers)
    assert reasons[None] > 60
    assert reasons["worker_died"] > 0
    assert reasons.keys() <= {None, "worker_died", "worker_deadline", "worker_busy", "deadline"}
    assert process_of(gateway, "KILLED")["refused"]["worker_died"] >= reasons["worker_died"]


def test_what_cannot_be_imported_is_said(gateway: Gateway) -> None:
    answer = ask(gateway, "unimportable", EASY)
    assert (answer.status_code, answer.headers["x-pointsman-fallback"]) == (200, "worker_broken")
    row = gateway.strategy("unimportable")
    assert "No module named 'vllm', which CausalLMRouter needs" in row["last_error"]
    assert row["process"]["state"] == "broken"


@pytest.mark.strategy("live", "custom")
def test_code_of_ones_own(gateway: Gateway) -> None:
    for text, model in (("two words", WEAK), ("a good deal more words than five", STRONG)):
        answer = ask(gateway, "mine", text)
        assert answer.headers["x-pointsman-model"] == f"openai/{model}"
        assert (answer.headers["x-pointsman-strategy"], answer.headers["x-pointsman-version"]) == ("mine", "1.0.0")
    assert [row["error"] for row in gateway.strategy("mine")["workers"]] == [None, None]


def test_code_that_fails_costs_the_strategy_alone(gateway: Gateway) -> None:
    for _ in range(8):  # until both workers met it
        answer = ask(gateway, "mistaken", EASY)
        assert (answer.status_code, answer.headers["x-pointsman-fallback"]) == (200, "error")
    assert {row["error"] for row in gateway.strategy("mistaken")["workers"]} <= {None, "RuntimeError while scoring"}
    assert any(row["error"] for row in gateway.strategy("mistaken")["workers"])


def test_code_that_cannot_be_made(gateway: Gateway) -> None:
    answer = ask(gateway, "unmade", EASY)
    assert (answer.status_code, answer.headers["x-pointsman-fallback"]) == (200, "plugin_broken")
    assert all("give two or more models" in row["error"] for row in gateway.strategy("unmade")["workers"])


@pytest.mark.strategy("live", "custom")
def test_signed_code_runs_in_its_own_process_and_a_new_version_takes_over(gateway: Gateway) -> None:
    def row() -> dict[str, Any]:
        return gateway.strategy("signed")

    first = wait_for(lambda: (now := row())["process"]["state"] == "ready" and now, 20, "it is ready")
    answer = ask(gateway, "signed", "two words")
    assert (answer.headers["x-pointsman-model"], answer.headers["x-pointsman-version"]) == (f"openai/{WEAK}", "1.0.0")
    publish(gateway.directory.parent, "2.0.0", INVERTED)
    wait_for(lambda: (now := row())["version"] == "2.0.0" and now["process"]["state"] == "ready", 20, "the new one is ready")
    answer = ask(gateway, "signed", "two words")
    assert (answer.headers["x-pointsman-model"], answer.headers["x-pointsman-version"]) == (f"openai/{STRONG}", "2.0.0")
    second = row()
    assert (second["sequence"], second["sha256"] != first["sha256"], second["last_error"]) == (2, True, None)
    assert second["process"]["pid"] != first["process"]["pid"]


def test_they_end_even_with_a_supervisor_that_was_killed(gateway: Gateway) -> None:
    """The last test: nobody tells them to end."""
    assert ask(gateway, "does-die", "DAEMON now").status_code == 200  # in a session of its own, without a parent
    pids = [process_of(gateway, word)["pid"] for word in REASONS]
    assert all(pids)
    guards = [pid for pid in tree_of(gateway.pid) if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    members = {member for guard in guards for member in tree_of(guard)}
    assert {*pids} < members
    (daemon,) = (int(path.read_text()) for path in Path(f"/proc/{process_of(gateway, 'DIE')['pid']}/cwd").glob("daemon"))
    assert daemon in members
    os.kill(gateway.pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members), 10, "all of them are gone")
