"""CPU time of a request with telemetry, beside one without, in one run: ours, and LiteLLM's own.

    python -m bench.telemetry [--rounds 7] [--requests 300] [--json]     from the repository's root; `make bench-telemetry`

Three gateways with one worker, the same strategy and the same upstream, no database; they are asked in turn, few requests at a
time, so that what else happens on the machine happens to all of them:

- **none**: no callbacks; our sinks are taken out of the worker, log lines below errors are off.
- **litellm**: LiteLLM's callbacks `otel` and `prometheus`, every trace kept; our sinks are still out.
- **both**: the same, and ours: spans of decision, encoding and attempt, metrics, JSON log lines on standard output and by OTLP.

Traces and logs go to a collector in this process that throws them away. What is counted is the processor time (user and
system) of all of a gateway's processes, from a round's first request until the exporters have had time to send what it left,
less what the gateway takes in the same time when nobody asks it. `ours` is (both - litellm) / none and `litellm` is
(litellm - none) / none, medians over the rounds. There is no database and the upstream answers at once, so that a request costs
as little as it can and telemetry's share is as large as it can be. What stays in all three: middleware that takes times and
ids. The upstream and the collector are in no figure.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench.startup import FOREIGN, KEYS, free_port

from pointsman.strategies.bundle import build_bundle
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.manifest import Provenance

__all__ = ["KINDS", "Report", "main", "measure"]

KINDS = ("none", "litellm", "both")
PARTS = ("spans", "logs", "metrics")
"""Of ours one kind of signal each, beside LiteLLM's."""
MARK = "BENCH_TELEMETRY"
PATIENCE = 120.0
SETTLE = 2.0
"""Seconds after a round for what the exporters still hold; they send every second."""
IDLE = 6.0
"""Seconds in which nobody is asked, to see what a gateway takes by itself."""
AT_A_TIME = 25
"""Requests to one gateway before the next has its turn."""

MUTE = '''\
"""Takes our sinks out of a worker, but for the records of decisions; LiteLLM imports it when it reads its configuration."""

import os

from litellm.integrations.custom_logger import CustomLogger

from pointsman.callbacks.logs import Logs
from pointsman.callbacks.metrics import Metrics
from pointsman.callbacks.spans import RequestSpans
from pointsman.custom_router.hook import router_hook
from pointsman.decisions.store import DecisionStore

instance = CustomLogger()  # in all gateways, so that it costs them the same
kind = os.environ["BENCH_TELEMETRY"]
kept = {"both": (DecisionStore, Metrics, RequestSpans, Logs), "spans": (DecisionStore, RequestSpans)}
kept |= {"metrics": (DecisionStore, Metrics), "logs": (DecisionStore, Logs)}
owners = kept.get(kind, (DecisionStore,))
router_hook._sinks = tuple(put for put in router_hook._sinks if isinstance(getattr(put, "__self__", None), owners))
if RequestSpans not in owners:
    router_hook._spans = None
if Metrics not in owners:
    Metrics.request = lambda *_: None
'''


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured.

    Attributes:
        milliseconds: processor time of a request by kind of gateway, median over the rounds.
        ours: what our signals add, as a share of a request without telemetry.
        litellm: what LiteLLM's add.
        rounds: ours in each round.
        cores: processors that this process may use.
    """

    milliseconds: dict[str, float]
    ours: float
    litellm: float
    rounds: tuple[float, ...]
    cores: int


class _Quiet(BaseHTTPRequestHandler):
    """Answers chats as OpenAI would, and takes and forgets whatever else is sent."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        chat = self.path.endswith("/chat/completions")
        kind, body = ("application/json", _ANSWER) if chat else ("application/x-protobuf", b"")
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing."""


_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
).encode()
_QUESTION = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "what is a group, and who cares?"}]})


@contextmanager
def _receiver() -> Iterator[int]:
    """Port of an upstream and collector."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _bundle(path: Path) -> None:
    """A kNN over a few dozen hashed texts: what a decision usually does, in little."""
    texts = [f"question {number} of {'algebra' if number % 2 else 'cooking'}" for number in range(60)]
    scores = np.array([[1.0, 0.2] if number % 2 else [0.1, 1.0] for number in range(60)], np.float32)
    encoder = HashingEncoder(256)
    strategy = KnnStrategy(("openai/small", "openai/large"), encoder.encode(texts), scores, np.ones(scores.shape, np.uint8), 5)
    origin = Provenance(code_version="bench", seed=0, rows=len(texts))
    data = build_bundle(
        name="learned", version="1.0.0", encoder=encoder, strategy=strategy, provenance=origin, probe_texts=texts[:4]
    )
    path.write_bytes(data)


def _config(kind: str, folder: Path, port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}"
    logs: dict[str, Any] = {"format": "json", "level": "info" if kind in ("both", "logs") else "error"}
    if kind in ("both", "logs"):
        logs["otlp"] = {"endpoint": url}
    strategy = {"source": str(folder.parent / "bundle.zip"), "require_signature": False}
    return {
        "model_list": [
            {"model_name": "auto", "litellm_params": {"model": model, "api_base": f"{url}/v1", "api_key": "none"}}
            for model in ("openai/small", "openai/large")
        ],
        "litellm_settings": {"callbacks": [*([] if kind == "none" else ["otel", "prometheus"]), "bench_mute.instance"]},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        "pointsman": {
            "strategies": {"learned": strategy},
            "routing": {"groups": {"auto": "learned"}, "deadline_ms": 2_000},
            "telemetry": {"logs": logs},
            "shutdown": {"not_ready": 0.1},
        },
    }


class _Gateway:
    """One of them."""

    def __init__(self, kind: str, folder: Path, collector: int) -> None:
        self.kind, self.folder = kind, folder
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(_config(kind, folder, collector)), encoding="utf-8")
        (folder / "bench_mute.py").write_text(MUTE, encoding="utf-8")
        self.port = free_port()
        self.mark = f"{MARK}={kind}".encode()
        env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | KEYS | {MARK: kind}
        if kind != "none":
            env |= {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": f"http://127.0.0.1:{collector}"}
            env |= {"OTEL_BSP_SCHEDULE_DELAY": "1000"}
        command = [str(Path(sys.executable).parent / "pointsman"), "serve", "--config", str(folder / "config.yaml")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--data-dir", str(folder / "data")]
        self.log = folder / "gateway.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._ask("GET", "/health/readiness", None) == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.kind} was not ready:\n" + self.log.read_text(errors="replace")[-4000:])
            time.sleep(0.1)

    def _ask(self, method: str, path: str, body: str | None) -> int:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            line.request(method, path, body)
            return line.getresponse().status
        finally:
            line.close()

    def ask(self, count: int) -> None:
        """As many requests on one connection, one after the other."""
        headers = {"authorization": f"Bearer {KEYS['LITELLM_MASTER_KEY']}", "content-type": "application/json"}
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            for _ in range(count):
                line.request("POST", "/v1/chat/completions", _QUESTION, headers)
                answer = line.getresponse()
                text = answer.read()
                if answer.status != 200 or answer.headers["x-pointsman-strategy"] != "learned":
                    raise SystemExit(f"{self.kind} answered {answer.status}, {dict(answer.headers)}: {text[:300]!r}")
        finally:
            line.close()

    def seconds(self) -> float:
        """Processor time of its processes so far; proc(5), fields 14 and 15 of `stat`."""
        ticks = 0
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark in (entry / "environ").read_bytes().split(b"\0"):
                    values = (entry / "stat").read_text().rpartition(")")[2].split()
                    ticks += int(values[11]) + int(values[12])
            except OSError:  # gone in the meantime, or somebody else's
                continue
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def measure(folder: Path, *, rounds: int, requests: int, parts: bool = False, log: Any = sys.stderr) -> Report:
    """Start the gateways in `folder`, warm them up, and ask them in turn.

    Args:
        folder: an empty directory.
        rounds: after each, what was taken is written down.
        requests: of a round to each gateway; rounded up to a multiple of `AT_A_TIME`.
        parts: measure each kind of signal by itself, too.
        log: where progress is written.
    """
    _bundle(folder / "bundle.zip")
    with ExitStack() as stack:
        collector = stack.enter_context(_receiver())
        kinds = KINDS + PARTS if parts else KINDS
        gateways = [_Gateway(kind, folder / kind, collector) for kind in kinds]
        for gateway in gateways:
            stack.callback(gateway.stop)
        for gateway in gateways:
            gateway.wait()
            gateway.ask(max(50, requests // 3))
        time.sleep(SETTLE)
        idle = _used(gateways, lambda: time.sleep(IDLE))
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        turns = -(-requests // AT_A_TIME)
        for number in range(rounds):
            begun = time.monotonic()
            used = _used(gateways, lambda: _ask_in_turn(gateways, turns))
            share = (time.monotonic() - begun) / IDLE
            for kind in kinds:
                taken[kind].append((used[kind] - idle[kind] * share) * 1000 / (turns * AT_A_TIME))
            said = ", ".join(f"{kind} {values[-1]:.2f} ms" for kind, values in taken.items())
            print(f"round {number + 1}: {said}", file=log, flush=True)
    ours = [(both - mine) / none for none, mine, both in zip(*(taken[kind] for kind in KINDS), strict=True)]
    theirs = [(mine - none) / none for none, mine in zip(taken["none"], taken["litellm"], strict=True)]
    return Report(
        {kind: round(statistics.median(values), 3) for kind, values in taken.items()},
        round(statistics.median(ours), 4),
        round(statistics.median(theirs), 4),
        tuple(round(value, 4) for value in ours),
        len(os.sched_getaffinity(0)),
    )


def _used(gateways: Sequence[_Gateway], work: Callable[[], None]) -> dict[str, float]:
    """Seconds of processor time that each took meanwhile."""
    before = {gateway.kind: gateway.seconds() for gateway in gateways}
    work()
    return {gateway.kind: gateway.seconds() - before[gateway.kind] for gateway in gateways}


def _ask_in_turn(gateways: Sequence[_Gateway], turns: int) -> None:
    for number in range(turns):
        first = number % len(gateways)
        for gateway in (*gateways[first:], *gateways[:first]):
            gateway.ask(AT_A_TIME)
    time.sleep(SETTLE)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.telemetry", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="times that what was taken is written down (default 7)")
    parser.add_argument("--requests", type=int, default=300, help="requests of a round to each gateway (default 300)")
    parser.add_argument("--parts", action="store_true", help="measure spans, logs and metrics by themselves, too")
    parser.add_argument("--json", action="store_true", help="print only JSON on standard output")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as scratch:
        report = measure(Path(scratch), rounds=max(1, chosen.rounds), requests=max(10, chosen.requests), parts=chosen.parts)
    if chosen.json:
        print(json.dumps(asdict(report)))
    else:
        each = ", ".join(f"{kind} {value:.2f} ms" for kind, value in report.milliseconds.items())
        print(f"CPU of a request: {each}; ours {report.ours:+.1%}, LiteLLM's {report.litellm:+.1%} ({report.cores} cores)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
