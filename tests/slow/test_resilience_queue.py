"""The priority queue in a booted gateway of two workers, asked by the real SDKs.

Each worker has its queue and a connection stays with its worker, so the tests hold connections of a known worker: `Stand.line`.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest

from support.gateway import Gateway
from support.processes import wait_for
from support.topology import deployment, routed_config, single
from support.upstreams import Upstreams

pytestmark = [pytest.mark.slow("resilience"), pytest.mark.timeout(280)]

PATIENCE = 4
SIZE = 6
"""Of a worker."""
QUICK = 2.0
"""Seconds; what does not wait has its answer within."""
RESULTS = ("admitted", "full", "late", "closing", "gone")


class Line:
    """One connection, to one worker, and the SDKs that speak over it."""

    def __init__(self, http: httpx.Client, gateway: Gateway, worker: int) -> None:
        self.http, self.gateway, self.worker = http, gateway, worker

    def openai(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.gateway.url}/v1", api_key=key, max_retries=0, http_client=self.http)

    def anthropic(self, key: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.gateway.url, api_key=key, max_retries=0, http_client=self.http)

    def chat(self, key: str, text: str, model: str = "plain", **headers: str) -> str:
        named = {f"x-pointsman-{name.replace('_', '-')}": value for name, value in headers.items()}
        asked: Any = [{"role": "user", "content": text}]
        answer = self.openai(key).chat.completions.create(model=model, messages=asked, extra_headers=named)
        return str(answer.choices[0].message.content)

    def queue(self) -> dict[str, Any]:
        admin = {"authorization": f"Bearer {self.gateway.master_key}"}
        told: dict[str, Any] = self.http.get("/pointsman/queue", headers=admin).raise_for_status().json()
        assert told["worker"] == self.worker, "the connection was made anew"
        return told


class Stand:
    """The gateway, its keys, and connections to its workers."""

    def __init__(self, gateway: Gateway, upstreams: Upstreams) -> None:
        self.gateway, self.upstreams = gateway, upstreams
        self.keys = {
            name: gateway.new_key(metadata=metadata)
            for name, metadata in {
                "high": {"pointsman_priority": "high"},
                "normal": {},
                "other": {},
                "low": {"pointsman_priority": "low"},
                "free": {"pointsman_allow_override": ["priority"]},
            }.items()
        }
        self.pool = ThreadPoolExecutor(40)
        self._lines: list[Line] = []
        self.watch = [self.line(worker) for worker in range(2)]

    def line(self, worker: int) -> Line:
        """A new connection to this worker."""
        for _ in range(60):
            one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
            http = httpx.Client(base_url=self.gateway.url, trust_env=False, timeout=30, limits=one)
            admin = {"authorization": f"Bearer {self.gateway.master_key}"}
            if http.get("/pointsman/queue", headers=admin).raise_for_status().json()["worker"] == worker:
                self._lines.append(Line(http, self.gateway, worker))
                return self._lines[-1]
            http.close()
        raise AssertionError(f"60 connections, and none of worker {worker}")

    def state(self, worker: int = 0, group: str | None = None) -> dict[str, Any]:
        rows = self.watch[worker].queue()["queues"]
        found: dict[str, Any] = next(row for row in rows if row["group"] == group)
        return found

    def waiting(self, worker: int = 0) -> dict[str, int]:
        return {row["priority"]: row["waiting"] for row in self.state(worker)["classes"]}

    def counts(self, worker: int = 0, group: str | None = None) -> Counter[str]:
        found: Counter[str] = Counter()
        for row in self.state(worker, group)["classes"]:
            found.update(row["counts"])
        return found

    def until_waiting(self, count: int, worker: int = 0) -> None:
        wait_for(lambda: sum(self.waiting(worker).values()) == count, 15, f"{count} wait", 0.01)

    def idle(self) -> None:
        """Nobody runs and nobody waits, in either worker."""
        for worker in range(2):
            wait_for(lambda: self.state(worker)["running"] == 0, 15, "nobody runs")  # noqa: B023 - called at once
            assert sum(self.waiting(worker).values()) == 0

    def go(self, what: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        return self.pool.submit(what, *args, **kwargs)

    @contextlib.contextmanager
    def held(self, worker: int = 0) -> Iterator[Future[str]]:
        """The worker's only place is taken by a request that the upstream answers at the end."""
        self.upstreams.fault("plain", hang=True, match="HOLD")
        holder = self.go(self.line(worker).chat, self.keys["normal"], "HOLD")
        try:
            wait_for(lambda: self.state(worker)["running"] == 1, 15, "it runs")
            yield holder
        finally:
            self.upstreams.clear("plain")
            holder.result(30)

    def close(self) -> None:
        self.upstreams.clear()
        self.pool.shutdown(wait=True, cancel_futures=True)
        for line in self._lines:
            line.http.close()


@pytest.fixture(scope="module")
def stand(upstreams: Upstreams, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    models = [
        single(upstreams, "plain", "openai/plain-model"),
        single(upstreams, "embed", "openai/text-embedding-3-small", {"mode": "embedding"}),
        single(upstreams, "bad", "openai/bad-model"),
        single(upstreams, "adapt", "openai/adapt-model"),
        deployment("claude", "claude", "anthropic/claude-sonnet-4-5", upstreams.anthropic_url("claude")),
    ]
    queue = {
        "enabled": True,
        "limit": {"limit": 2},  # one for each worker
        "size": 2 * SIZE,
        "patience": PATIENCE,
        "max_wait": 25.0,
        "groups": {"adapt": {"kind": "adaptive", "limit": 16, "least": 4, "most": 80}},
    }
    section = {"shutdown": {"not_ready": 1.5, "grace": 6.0}, "resilience": {"queue": queue}}
    config = routed_config(models, {}, {}, **section)
    config["litellm_settings"]["callbacks"] = ["prometheus"]
    instance = Gateway(config, tmp_path_factory.mktemp("queue"), new_database())
    instance.start()
    try:
        made = Stand(instance, upstreams)
        yield made
        made.close()
        instance.stop()
    finally:
        instance.kill()


def order_at(upstreams: Upstreams, since: int) -> list[str]:
    return [str(one["body"]["messages"][-1]["content"]) for one in upstreams.requests("plain", since=since)]


@pytest.mark.requirement("L-7")
def test_high_overtakes_normal_overtakes_low_and_low_does_not_starve(stand: Stand) -> None:
    """One place. The bound that is stated: the first of LOW is passed over `patience` times in a row at most."""
    lines = [stand.line(0) for _ in range(12)]
    since = stand.upstreams.count("plain")
    asked: list[Future[str]] = []
    with stand.held() as holder:
        for name, count in (("low", 2), ("normal", 4), ("high", 6)):
            for number in range(count):
                asked.append(stand.go(lines[len(asked)].chat, stand.keys[name], f"{name[0]}{number}"))
                stand.until_waiting(len(asked))
        assert stand.waiting() == {"high": 6, "normal": 4, "low": 2}
        assert not any(one.done() for one in [holder, *asked])
    assert all("served by plain" in one.result(30) for one in asked)
    expected = "h0 h1 h2 h3 l0 n0 h4 h5 n1 l1 n2 n3"
    assert order_at(stand.upstreams, since) == ["HOLD", *expected.split()]
    stand.idle()


@pytest.mark.requirement("L-7")
def test_keys_of_one_class_take_turns(stand: Stand) -> None:
    lines = [stand.line(1) for _ in range(6)]
    since = stand.upstreams.count("plain")
    asked = []
    with stand.held(1):
        for number, (name, text) in enumerate(zip(["normal"] * 4 + ["other"] * 2, "abcdyz", strict=True)):
            asked.append(stand.go(lines[number].chat, stand.keys[name], text))
            stand.until_waiting(number + 1, 1)
    for one in asked:
        one.result(30)
    assert order_at(stand.upstreams, since) == ["HOLD", *"aybzcd"]


def test_a_header_asks_for_less_and_for_more_where_the_key_may(stand: Stand) -> None:
    lines = [stand.line(0) for _ in range(3)]
    with pytest.raises(openai.PermissionDeniedError) as refused:
        lines[0].chat(stand.keys["normal"], "x", priority="high")
    assert "E4110" in refused.value.response.text
    with stand.held():
        asked = [
            stand.go(lines[0].chat, stand.keys["high"], "x", priority="low"),
            stand.go(lines[1].chat, stand.keys["free"], "x", priority="high"),
            stand.go(lines[2].chat, stand.keys["normal"], "x"),
        ]
        stand.until_waiting(3)
        assert stand.waiting() == {"high": 1, "normal": 1, "low": 1}
    for one in asked:
        one.result(30)


def told(error: openai.APIStatusError | anthropic.APIStatusError) -> tuple[int, str, bool]:
    """Status, our code, and whether the client is told when to come again."""
    after = error.response.headers.get("retry-after", "")
    found = re.search(r"E4\d{3}", error.response.text)
    return error.status_code, found[0] if found else error.response.text, after.isdigit() and 1 <= int(after) <= 60


def ways(line: Line, key: str, **headers: str) -> dict[str, Callable[[], Any]]:
    """The same question on every endpoint that speaks, streamed ones too."""
    client, claude = line.openai(key), line.anthropic(key)
    said: Any = [{"role": "user", "content": "x"}]
    return {
        "chat": lambda: client.chat.completions.create(model="plain", messages=said, extra_headers=headers),
        "chat stream": lambda: client.chat.completions.create(model="plain", messages=said, stream=True, extra_headers=headers),
        "responses": lambda: client.responses.create(model="plain", input="x", extra_headers=headers),
        "responses stream": lambda: client.responses.create(model="plain", input="x", stream=True, extra_headers=headers),
        "completions": lambda: client.completions.create(model="plain", prompt="x", extra_headers=headers),
        "embeddings": lambda: client.embeddings.create(model="embed", input="x", extra_headers=headers),
        "messages": lambda: claude.messages.create(model="claude", max_tokens=9, messages=said, extra_headers=headers),
        "messages stream": lambda: claude.messages.create(
            model="claude", max_tokens=9, messages=said, stream=True, extra_headers=headers
        ),
    }


@pytest.mark.requirement("L-7")
def test_full_is_429_and_what_asks_no_model_is_answered_all_the_same(stand: Stand) -> None:
    lines = [stand.line(0) for _ in range(SIZE)]
    line, fresh = stand.line(0), stand.line(0)
    with stand.held():
        waits = []
        for number in range(SIZE):
            waits.append(stand.go(lines[number].chat, stand.keys["low"], f"w{number}"))
            stand.until_waiting(number + 1)
        for way, ask in ways(line, stand.keys["low"]).items():
            began = time.monotonic()
            with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as full:
                ask()
            assert told(full.value) == (429, "E4720", True), way
            assert time.monotonic() - began < QUICK, way
            body = full.value.response.json()
            assert isinstance(body["error"]["message"], str), way
            if "messages" in way:
                assert (body["type"], body["error"]["type"]) == ("error", "rate_limit_error"), way
        before = stand.counts()["joined"]
        admin = {"authorization": f"Bearer {stand.gateway.master_key}"}
        key = {"authorization": f"Bearer {stand.keys['low']}"}
        nobody = {"authorization": "Bearer sk-nobody"}
        asked: list[tuple[str, str, dict[str, str], int]] = [
            *(("GET", path, {}, 200) for path in ("/health/liveliness", "/health/readiness", "/ui/")),
            *(("GET", path, admin, 200) for path in ("/metrics/", "/pointsman/queue", "/key/list", "/hot-reload/status")),
            ("GET", "/v1/models", key, 200),
            ("POST", "/v1/chat/completions", nobody, 401),
        ]
        for method, path, headers, status in asked:
            began = time.monotonic()
            body = {"model": "plain", "messages": []} if method == "POST" else None
            answer = line.http.request(method, path, headers=headers, json=body, follow_redirects=True)
            assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:200]}"
            assert time.monotonic() - began < QUICK, path
        assert stand.counts()["joined"] == before, "what asks no model, or has no key, has stood in the queue"
        # One of another key finds room all the same: the newest of the key that has all the room gives way.
        other = stand.go(fresh.chat, stand.keys["other"], "other", priority="low")
        with pytest.raises(openai.RateLimitError) as gave_way:
            waits[-1].result(10)
        assert told(gave_way.value) == (429, "E4720", True)
        assert not other.done()
    for one in [*waits[:-1], other]:
        one.result(30)
    stand.idle()


@pytest.mark.requirement("L-7")
def test_late_is_503_after_the_time_that_the_client_has(stand: Stand) -> None:
    line = stand.line(0)
    with stand.held():
        for way, ask in ways(line, stand.keys["high"], **{"x-pointsman-deadline-ms": "150"}).items():
            began = time.monotonic()
            with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)) as late:
                ask()
            assert told(late.value) == (503, "E4721", True), way
            assert 0.14 <= time.monotonic() - began < 0.15 + QUICK, way
    stand.idle()


@pytest.mark.requirement("L-7")
def test_who_hangs_up_leaves_at_once(stand: Stand) -> None:
    impatient, line = stand.line(0), stand.line(0)
    impatient.http.timeout = httpx.Timeout(0.5)
    gone = stand.counts()["gone"]
    with stand.held():
        leaves = stand.go(impatient.chat, stand.keys["high"], "never")
        stand.until_waiting(1)
        stays = stand.go(line.chat, stand.keys["low"], "stays")
        with pytest.raises(openai.APITimeoutError):
            leaves.result(10)
        wait_for(lambda: stand.waiting()["high"] == 0, QUICK, "it has left", 0.01)
        assert stand.counts()["gone"] == gone + 1
    stays.result(30)
    assert stand.upstreams.requests("plain", contains="never") == []
    stand.idle()


@pytest.mark.requirement("L-7")
@pytest.mark.parametrize("hangs_up", [False, True])
def test_a_stream_holds_its_place_until_its_end(stand: Stand, hangs_up: bool) -> None:
    said: Any = [{"role": "user", "content": "STALL"}]
    stand.upstreams.fault("plain", match="STALL", stall_after_chunks=3)
    client = stand.line(0).openai(stand.keys["normal"])
    stream = client.chat.completions.create(model="plain", messages=said, stream=True)
    next(stream)
    try:
        waits = stand.go(stand.line(0).chat, stand.keys["normal"], "after")
        stand.until_waiting(1)
        assert stand.state()["running"] == 1
        if hangs_up:
            stream.response.close()
        else:
            stand.upstreams.clear("plain")
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"
        assert "served by plain" in waits.result(10)
    finally:
        stand.upstreams.clear("plain")
    stand.idle()


@pytest.mark.requirement("L-7")
def test_errors_give_their_place_back(stand: Stand) -> None:
    line = stand.line(0)
    for fault in ({"status": 400}, {"status": 500}, {"garbage": True}, {"cut_after_chunks": 1}):
        stand.upstreams.fault("bad", **fault)
        for streamed in (False, True):
            with contextlib.suppress(openai.APIError):
                said: Any = [{"role": "user", "content": "x"}]
                answer = line.openai(stand.keys["normal"]).chat.completions.create(model="bad", messages=said, stream=streamed)
                for _ in answer if streamed else ():
                    pass
    stand.idle()
    assert "served by" in line.chat(stand.keys["normal"], "and now")


def test_nothing_leaks_under_a_mixed_load_and_the_numbers_add_up(stand: Stand) -> None:
    """Streams, short deadlines, errors and clients that leave, on both workers; whoever joined was told something."""
    workers = range(2)
    before = [stand.counts(worker) for worker in workers]
    seen: Counter[str] = Counter()
    lock = threading.Lock()
    stand.upstreams.fault("plain", delay=0.03)
    stand.upstreams.fault("bad", status=400)

    def client(number: int) -> None:
        chance = random.Random(number)
        for _ in range(8):
            patience = chance.choice((0.05, 30.0, 30.0))
            named = {"x-pointsman-deadline-ms": chance.choice(("40", "400", "20000"))}
            key = stand.keys[chance.choice(("high", "normal", "other", "low"))]
            said: Any = [{"role": "user", "content": f"load {number}"}]
            streamed = chance.random() < 0.4
            with httpx.Client(trust_env=False, timeout=patience) as http:
                sdk = openai.OpenAI(base_url=f"{stand.gateway.url}/v1", api_key=key, max_retries=0, http_client=http)
                try:
                    answer = sdk.chat.completions.create(
                        model=chance.choice(("plain", "plain", "plain", "bad")),
                        messages=said,
                        stream=streamed,
                        extra_headers=named,
                    )
                    for _ in answer if streamed else ():
                        pass
                    result = "200"
                except openai.APIStatusError as error:
                    result = f"{error.status_code} {told(error)[1]}" if "E47" in error.response.text else "error"
                except openai.APIConnectionError:  # the client lost patience
                    result = "left"
            with lock:
                seen[result] += 1

    try:
        for one in [stand.go(client, number) for number in range(24)]:
            one.result(60)
    finally:
        stand.upstreams.clear()
    stand.idle()
    spent: Counter[str] = Counter()
    for worker in workers:
        counts = stand.counts(worker)
        assert counts["joined"] == sum(counts[result] for result in RESULTS), counts
        spent.update(counts - before[worker])
    assert seen.total() == 24 * 8
    # 504: it had its turn, and the rest of the deadline was too short for the answer.
    assert set(seen) <= {"200", "429 E4720", "503 E4721", "504 E4730", "error", "left"}, seen
    assert spent["joined"] <= seen.total()
    assert spent["full"] >= seen["429 E4720"]  # whoever had left was not told
    assert spent["late"] >= seen["503 E4721"] > 0
    assert spent["admitted"] >= seen["200"] > 0
    assert spent["gone"] + spent["admitted"] + spent["late"] >= seen["left"] > 0
    told_of: Counter[str] = Counter()
    text = stand.watch[0].http.get("/metrics/", headers={"authorization": f"Bearer {stand.gateway.master_key}"}).text
    for line in text.splitlines():
        if line.startswith('pointsman_queue_requests_total{group=""'):
            found = re.search(r'result="(\w+)"', line)
            told_of[found[1] if found else "?"] += int(float(line.rpartition(" ")[2]))
    everything = stand.counts(0) + stand.counts(1)
    assert told_of == Counter({result: everything[result] for result in RESULTS if everything[result]})


def test_an_adaptive_limit_follows_the_upstreams_latency(stand: Stand) -> None:
    """Up while answers take as long as ever, down when they take longer, and up again: measured at the gateway, by worker."""
    stop = threading.Event()

    def client(line: Line) -> None:
        while not stop.is_set():
            try:
                line.chat(stand.keys["normal"], "adapt", "adapt")
            except openai.RateLimitError:  # full
                time.sleep(0.05)

    def limit() -> int:
        return int(stand.state(0, "adapt")["limit"])

    began = limit()
    stand.upstreams.fault("adapt", delay=0.25)
    lines = [stand.line(0) for _ in range(24)]  # before there is load, which would send connections to the other worker
    clients = [stand.go(client, line) for line in lines]
    try:
        wait_for(lambda: limit() >= began + 6, 40, "it grows while latency stays")
        stand.upstreams.fault("adapt", delay=1.2)
        top = limit()
        wait_for(lambda: limit() < top * 0.75, 40, "it falls when latency rises")
        low = limit()
        stand.upstreams.fault("adapt", delay=0.25)
        wait_for(lambda: limit() > low, 40, "it grows again")
        print(f"limit of worker 0: {began} -> {top} -> {low} -> {limit()}")
    finally:
        stop.set()
        stand.upstreams.clear("adapt")
        for one in clients:
            one.result(30)


@pytest.mark.requirement("L-7")
def test_a_drain_serves_or_tells_to_come_again(stand: Stand) -> None:
    """The last of this gateway. Those in flight are in the metrics before, and served; who waits in vain gets 503."""
    stand.idle()
    early = stand.line(0)
    lines = [stand.line(1) for _ in range(3)]
    gateway, upstreams = stand.gateway, stand.upstreams
    with stand.held(0), stand.held(1) as held:
        waits = [stand.go(line.chat, stand.keys["normal"], "waits") for line in lines]
        stand.until_waiting(3, 1)

        def in_flight() -> float:
            text = stand.watch[0].http.get("/metrics/", headers={"authorization": f"Bearer {gateway.master_key}"}).text
            rows = [line for line in text.splitlines() if line.startswith("pointsman_requests_in_flight")]
            return sum(float(line.rpartition(" ")[2]) for line in rows)

        wait_for(lambda: in_flight() >= 5, 12, "the five are told of")
        began = time.monotonic()
        assert gateway._process is not None
        gateway._process.send_signal(signal.SIGTERM)
        wait_for(lambda: not gateway.ready(), 5, "it is not ready any more")
        answer = early.http.get("/health/liveliness")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        for one in waits:
            with pytest.raises(openai.InternalServerError) as refused:
                one.result(20)
            assert told(refused.value) == (503, "E4722", True)
        assert 5.0 < time.monotonic() - began < 8.0, "a second before what is in flight would be cut"
        assert not held.done()
        upstreams.clear("plain")
        assert "served by plain" in held.result(5)
    assert gateway._process.wait(30) == 0
