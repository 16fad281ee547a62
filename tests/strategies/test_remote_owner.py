"""A process of its own that misbehaves in every way there is; what runs in it stands in for LLMRouter, all else is ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import ConfigError
from pointsman.settings import ProcessSettings
from pointsman.strategies.base import AsyncScorer, Query, UnavailableError
from pointsman.strategies.catalogue import CATALOGUE
from pointsman.strategies.remote.child import tree_of
from pointsman.strategies.remote.hub import Hub
from pointsman.strategies.remote.owner import MAX_TEXT, Owner, pause_after
from pointsman.strategies.remote.prepare import llmrouter_spec
from pointsman.strategies.remote.scorer import Line
from pointsman.strategies.remote.serve import MAX_MESSAGE, pack, unpack
from support.remote import router_file, stand_in_python
from support.strategy import EASY, HARD, STRONG, WEAK

SECRETS = {"DATABASE_URL": "postgres://u:p@h/d", "OPENAI_API_KEY": "sk-1", "HTTPS_PROXY": "http://p", "PATH": "/usr/bin:/bin"}
Make = Callable[..., Awaitable[Owner]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stand_in_python(tmp_path_factory.mktemp("venv") / "v")


@pytest.fixture
async def make(python: str, tmp_path: Path) -> AsyncIterator[Make]:
    owners: list[Owner] = []

    async def maker(kind: str = "elo", at_start: str = "", *, wait: bool = True, **settings: Any) -> Owner:
        config = router_file(tmp_path / f"router-{len(owners)}", at_start=at_start)
        scratch = tmp_path / f"scratch-{len(owners)}"
        scratch.mkdir()
        limits = ProcessSettings(**{"python": python, "deadline_ms": 1000, "memory_mb": 100, **settings})
        load = partial(asyncio.to_thread, llmrouter_spec, CATALOGUE[kind], config, scratch)
        owner = Owner(f"s{len(owners)}", limits, SECRETS, scratch, load)
        owners.append(owner)
        owner.start()
        if wait:
            await until(lambda: owner.ready)
        return owner

    yield maker
    for owner in owners:
        pid = owner.status()["pid"]
        await owner.stop()
        assert pid is None or not Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - a state of another process
            await asyncio.sleep(0.02)


async def reason(asked: Awaitable[Mapping[str, float]]) -> str:
    with pytest.raises(UnavailableError) as caught:
        await asked
    return caught.value.reason


async def test_it_answers_as_llmrouter_does(make: Make, tmp_path: Path) -> None:
    owner = await make()
    assert await owner.ask(EASY, None) == {WEAK: 1.0}
    assert await owner.ask(HARD, "somebody") == {STRONG: 1.0}
    assert (owner.about.models, owner.about.scale) == ((STRONG, WEAK), "rank")
    status = owner.status()
    assert (status["state"], status["answered"], status["restarts"], status["last_error"]) == ("ready", 2, 0, None)
    assert 1 < status["rss_mb"] < 100
    assert json.dumps(status)
    # What LLMRouter writes beside its data goes into the scratch directory.
    assert [path.name for path in sorted((tmp_path / "router-0").iterdir())] == ["llm.json", "router.yaml", "routing.jsonl"]
    assert (tmp_path / "scratch-0/data/routing_data_train/routing.csv").is_file()


async def test_it_sees_no_secret(make: Make, tmp_path: Path) -> None:
    owner = await make()
    assert await reason(owner.ask("ENVIRONMENT", None)) == "worker_nonsense"  # the message quotes what it named
    pid_environment = Path(f"/proc/{os.getpid()}/environ")
    assert pid_environment.exists()
    await until(lambda: owner.ready)
    environment = Path(f"/proc/{owner.status()['pid']}/environ").read_text().split("\0")
    names = {entry.partition("=")[0] for entry in environment if entry}
    assert not names & {"DATABASE_URL", "OPENAI_API_KEY", "HTTPS_PROXY"}
    assert {"HF_HUB_OFFLINE=1", "LITELLM_LOCAL_MODEL_COST_MAP=True", f"HOME={tmp_path}/scratch-0"} <= set(environment)


@pytest.mark.parametrize(
    ("prompt", "told", "says"),
    [
        ("DIE", "worker_died", "status 3"),
        ("SEGFAULT", "worker_died", "signal 11"),
        ("HANG", "worker_deadline", "within 1 s"),
        ("LEAK", "worker_memory", "are resident"),
        ("HOARD", "worker_memory", "200 MiB"),
        ("NUMBER", "worker_nonsense", "int"),
        ("NOTHING", "worker_nonsense", "NoneType"),
        ("NAMELESS", "worker_nonsense", "without the name"),
        ("STRANGER", "worker_nonsense", "a-model-of-nobody"),
        ("RUBBISH", "worker_nonsense", "no message"),
        ("ENDLESS", "worker_nonsense", "4294967295 bytes"),
        ("BIGINT", "worker_nonsense", "no finite numbers"),
        ("MANY", "worker_nonsense", "10001 models"),
        ("HALF", "worker_died", "status 0"),
        ("HALFWAY", "worker_deadline", "within 1 s"),
        ("STOPPED", "worker_deadline", "within 1 s"),
        ("IMPORT", "worker_broken", "vllm"),
    ],
)
async def test_it_misbehaves_and_is_replaced(make: Make, prompt: str, told: str, says: str) -> None:
    owner = await make(deadline_ms=4000 if prompt == "LEAK" else 1000)
    before = owner.status()["pid"]
    assert await reason(owner.ask(prompt, None)) == told
    assert await reason(owner.ask(EASY, None)) == told  # until it is there again, everybody is told why it is not
    status = owner.status()
    assert says in status["last_error"]
    assert status["last_failure"]["reason"] == told
    await until(lambda: not Path(f"/proc/{before}").exists())
    if told == "worker_broken":
        assert status["state"] == "broken"
        owner.restart()
    await until(lambda: owner.ready)
    assert await owner.ask(EASY, None) == {WEAK: 1.0}
    after = owner.status()
    assert (after["restarts"], after["refused"], after["last_error"]) == (1, {told: 2}, None)
    assert after["last_failure"]["reason"] == told, "why there was another one is told while it runs well, too"


@pytest.mark.strategy("says what is missing", "causallm")
@pytest.mark.parametrize(
    ("kind", "at_start", "told", "says"),
    [
        ("elo", "DIE", "worker_died", "status 3; it said: loading"),
        ("elo", "HANG", "worker_deadline", "did not load within 1 s"),
        ("elo", "LEAK", "worker_memory", "resident"),
        ("elo", "HOARD", "worker_memory", "not enough memory"),
        ("elo", "RUBBISH", "worker_nonsense", "no message"),
        ("elo", "BROKEN", "worker_broken", "ValueError: there is no artifact at /nowhere"),
        ("causallm", "", "worker_broken", "No module named 'vllm', which CausalLMRouter needs"),
        ("svm", "", "worker_broken", "LLMRouter has no SVMRouter"),
    ],
)
async def test_it_does_not_load(make: Make, kind: str, at_start: str, told: str, says: str) -> None:
    owner = await make(kind, at_start, wait=False, start_s=1 if at_start == "HANG" else 20)
    assert await reason(owner.ask(EASY, None)) == "worker_starting"
    await until(lambda: owner.status()["last_error"])
    assert says in owner.status()["last_error"]
    assert await reason(owner.ask(EASY, None)) == told


@pytest.mark.strategy("loads before the first query", "causallm")
async def test_weights_are_loaded_in_the_time_for_loading(make: Make, tmp_path: Path) -> None:
    python = stand_in_python(tmp_path / "with-vllm")
    (site,) = (tmp_path / "with-vllm").glob("lib/python*/site-packages")
    (site / "vllm.py").touch()
    owner = await make("causallm", python=python)
    assert await owner.ask(EASY, None) == {WEAK: 1.0}


async def test_without_an_interpreter(make: Make) -> None:
    owner = await make(python="/nowhere/python", wait=False)
    await until(lambda: owner.status()["state"] == "broken")
    assert "/nowhere/python" in owner.status()["last_error"]


async def test_it_is_killed_from_outside_while_idle(make: Make) -> None:
    owner = await make()
    os.kill(owner.status()["pid"], signal.SIGKILL)
    await until(lambda: not owner.ready)
    assert await reason(owner.ask(EASY, None)) == "worker_died"
    await until(lambda: owner.ready)
    assert await owner.ask(EASY, None) == {WEAK: 1.0}


async def test_its_children_are_ended_with_it(make: Make) -> None:
    owner = await make()
    await owner.ask("CHILD", None)
    members = tree_of(owner.status()["pid"])
    assert len(members) == 2
    await owner.stop()
    await until(lambda: not any(_alive(pid) for pid in members))


@pytest.mark.parametrize("way", ["stopped", "replaced", "died", "killed", "supervisor"])
async def test_what_it_left_behind_is_ended(make: Make, tmp_path: Path, way: str) -> None:
    """A process in a session of its own, without a parent, that holds the output open: whatever ends the one that made it."""
    owner = await make()
    await owner.ask("DAEMON", None)
    daemon, pid = int((tmp_path / "scratch-0/daemon").read_text()), owner.status()["pid"]
    assert _alive(daemon)
    if way == "stopped":
        await owner.stop()
    elif way == "replaced":
        owner.restart()
    elif way == "died":
        assert await reason(owner.ask("DIE", None)) == "worker_died"
    elif way == "killed":
        os.kill(pid, signal.SIGKILL)
    else:  # what its guard sees of a supervisor that was killed: the line closes, and nobody says a word
        owner._child.writer.transport.abort()  # type: ignore[union-attr]
    await until(lambda: not _alive(daemon) and not _alive(pid))
    if way != "stopped":
        await until(lambda: owner.ready and owner.status()["starts"] == 2)
        assert await owner.ask(EASY, None) == {WEAK: 1.0}


async def test_nothing_is_left_of_those_that_were_replaced(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.strategies.remote.owner.FIRST_PAUSE", 0.0)
    owner = await make()
    counts = []
    for turn in range(16):
        if turn % 2:
            assert await reason(owner.ask("DIE", None)) == "worker_died"
        else:
            owner.restart()
        await until(lambda turn=turn: owner.ready and owner.status()["starts"] == turn + 2)  # type: ignore[misc]
        assert await owner.ask(EASY, None) == {WEAK: 1.0}
        # Itself, its guard; and what was replaced is no zombie.
        await until(lambda: len([pid for pid in tree_of(os.getpid())[1:] if _serves(pid)]) == 2)
        counts.append(len([*Path("/proc/self/fd").iterdir()]))
    assert counts[-1] == counts[1]


def _serves(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes() or not _alive(pid)
    return False


def test_the_pause_between_two_starts_grows_to_a_minute() -> None:
    pauses = [pause_after(failures) for failures in (1, 2, 3, 7, 8, 1_000, 10**9)]
    assert pauses == [0.5, 1, 2, 32, 60, 60, 60]


async def test_one_that_does_not_load_is_not_started_again_and_again(make: Make) -> None:
    began = asyncio.get_running_loop().time()
    owner = await make(at_start="DIE", wait=False)
    for _ in range(50):  # nor do questions hurry it
        await asyncio.sleep(0)
        await reason(owner.ask(EASY, None))
    await until(lambda: owner.status()["starts"] == 3)
    assert asyncio.get_running_loop().time() - began > pause_after(1) + pause_after(2)


async def test_what_it_prints_does_not_stop_it(make: Make) -> None:
    owner = await make()
    assert await owner.ask("SHOUT", None) == {WEAK: 1.0}
    assert owner.status()["refused"] == {}


async def test_a_user_with_a_long_name(make: Make) -> None:
    owner = await make()
    assert await owner.ask(EASY, "u" * (MAX_MESSAGE + 1)) == {WEAK: 1.0}


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_what_a_router_raises_is_one_query_s_own(make: Make) -> None:
    owner = await make()
    pid = owner.status()["pid"]
    assert await reason(owner.ask("RAISE", None)) == "error"
    assert await owner.ask(EASY, None) == {WEAK: 1.0}
    assert owner.status()["pid"] == pid


async def test_the_queue_is_bounded_and_who_gave_up_is_left_out(make: Make) -> None:
    owner = await make(max_queue=2)
    first = asyncio.ensure_future(owner.ask("SLOW", None))
    await asyncio.sleep(0)
    await until(lambda: owner.status()["queued"] == 0)
    impatient, patient = (asyncio.ensure_future(owner.ask(text, None)) for text in ("SLOW", EASY))
    await asyncio.sleep(0)
    assert await reason(owner.ask(EASY, None)) == "worker_busy"
    impatient.cancel()
    await asyncio.sleep(0)
    third = asyncio.ensure_future(owner.ask(EASY, None))  # its place is free
    assert await third == {WEAK: 1.0}
    assert await first == {WEAK: 1.0}
    assert await patient == {WEAK: 1.0}
    assert owner.status()["answered"] == 3


async def test_it_starts_when_it_is_wanted_and_stops_when_it_is_not(make: Make) -> None:
    owner = await make(warm_up=False, idle_s=0.3, wait=False)
    await asyncio.sleep(0)
    assert owner.status()["state"] == "idle"
    assert await reason(owner.ask(EASY, None)) == "worker_starting"
    await until(lambda: owner.ready)
    assert await owner.ask(EASY, None) == {WEAK: 1.0}
    await until(lambda: owner.status()["state"] == "idle" and owner.status()["pid"] is None)
    assert await reason(owner.ask(EASY, None)) == "worker_starting"
    await until(lambda: owner.ready)


async def test_prompts_are_not_logged(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pointsman.remote")
    owner = await make()
    await owner.ask("apple of my eye", None)
    assert await reason(owner.ask("RAISE apple", None)) == "error"
    await owner.stop()
    assert "loading, as LLMRouter does" in caplog.text
    assert "apple" not in caplog.text


@pytest.mark.parametrize("text", ["", "\ud83d", "\u202etfel", "x" * 1_000_000, "😀" * 200_000, "\0\x1b"])
async def test_any_prompt_goes_through(make: Make, text: str) -> None:
    owner = await make(deadline_ms=5000)
    assert await owner.ask(f"first {text}", None) == {WEAK: 1.0}
    assert len(pack({"text": "😀" * MAX_TEXT})) < MAX_MESSAGE


def test_frames() -> None:
    assert unpack(pack({"a": "\ud83d"})[4:]) == {"a": "\ud83d"}
    for wrong in (b"[]", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError):  # noqa: PT011 - any
            unpack(wrong)
    with pytest.raises(ValueError, match="at most"):
        pack({"a": "x" * MAX_MESSAGE})


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for text in ("[1]", "a: [", "\0"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"mapping|read"):
            llmrouter_spec(CATALOGUE["elo"], tmp_path / "r.yaml", tmp_path)
    for text in ("a: &a\n  b: *a", "2026-01-01: 1"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(ConfigError, match="cannot be written again"):
            llmrouter_spec(CATALOGUE["elo"], tmp_path / "r.yaml", tmp_path)
    (tmp_path / "r.yaml").write_text("trained: 2026-01-01")
    llmrouter_spec(CATALOGUE["elo"], tmp_path / "r.yaml", tmp_path)
    assert json.loads((tmp_path / "router.yaml").read_text()) == {"trained": "2026-01-01"}


async def test_over_the_socket(make: Make, tmp_path: Path) -> None:
    one, other = await make(wait=False), await make(at_start="BROKEN", wait=False)
    for owner in (one, other):
        await owner.stop()
    hub = Hub({owner.name: owner for owner in (one, other)}, tmp_path / "hub.sock")
    await hub.start()
    line = Line(tmp_path / "hub.sock")
    good, bad = line.scorer(one.name, "elo"), line.scorer(other.name, "elo")
    assert isinstance(good, AsyncScorer)
    try:
        await line.connect()
        await until(lambda: good.models == (STRONG, WEAK))
        assert await good.score_async(Query(EASY, "u" * (MAX_MESSAGE + 1))) == {WEAK: 1.0}
        answers = await asyncio.gather(*(good.score_async(Query(text)) for text in (EASY, HARD) * 20))
        assert answers == [{WEAK: 1.0}, {STRONG: 1.0}] * 20
        await until(lambda: other.status()["state"] == "broken")
        assert await reason(bad.score_async(Query(EASY))) == "worker_broken"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(good.score_async(Query("HANG")), 0.2)
        assert await reason(good.score_async(Query(EASY))) == "worker_deadline"
        await hub.stop()
        assert await reason(good.score_async(Query(EASY))) == "worker_died"
    finally:
        await line.close()
        await hub.stop()
