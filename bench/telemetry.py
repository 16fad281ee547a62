"""CPU time of a request with telemetry, beside one without, in one run: ours, and LiteLLM's own.

    python -m bench.telemetry [--rounds 100] [--json]     from the repository's root; `make bench-telemetry`

Two gateways with one worker, the same strategy and the same upstream, no database; they are asked in turn:

- **none**: no callbacks; our sinks are taken out of the worker, log lines below errors are off.
- the other has LiteLLM's callbacks `otel` and `prometheus`, every trace kept. In its turn as **litellm** our sinks are out
  there, too; as **both** they are in: spans of decision, encoding and attempt, metrics, JSON log lines on standard output and
  by OTLP. It is one process that is switched, because two of one program differ by several percent for life.

Traces and logs go to a collector in this process that throws them away. What is counted is the worker's processor time. That of
the thread that serves is taken over many short turns, so that what else happens on the machine happens to all ways alike; that
of the others (scoring, writing, exporting), which lag behind, over a few long ones with time to finish. `ours` is
(both - litellm) / none and `litellm` is (litellm - none) / none, means over the turns, `ours` with its standard error. There is
no database and the upstream answers at once, so that a request costs as little as it can and telemetry's share is as large as
it can be. What stays in all: middleware that takes times and ids. The upstream and the collector are in no figure.
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
from collections.abc import Iterator, Sequence
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

__all__ = ["Report", "main", "measure"]

PARTS = ("spans", "logs", "metrics")
"""Of ours one kind of signal each, beside LiteLLM's."""
MARK = "BENCH_TELEMETRY"
PATIENCE = 120.0
SETTLE = 1.5
"""Seconds after a turn for what the exporters still hold; they send every second."""
WARM_UP = 100
"""Requests that count for nothing."""
SHORT, LONG, LONG_TURNS = 10, 200, 3
"""Requests of a short turn and of a long one, and how many long ones there are."""

SWITCH = '''\
"""Takes our sinks out of a worker, but for the records of decisions, or puts some in; LiteLLM imports it.

Each SIGUSR1 goes to the next of the ways that BENCH_TELEMETRY names.
"""

import itertools
import os
import signal

from litellm.integrations.custom_logger import CustomLogger

from pointsman.callbacks.logs import Logs
from pointsman.callbacks.metrics import Metrics
from pointsman.callbacks.spans import RequestSpans
from pointsman.custom_router.hook import router_hook

instance = CustomLogger()  # in all gateways, so that it costs them the same
sinks, spans, count = router_hook.outcomes.sinks, router_hook._spans, Metrics.request
signals = {"both": (Metrics, RequestSpans, Logs), "spans": (RequestSpans,), "metrics": (Metrics,), "logs": (Logs,)}
ways = itertools.cycle(os.environ["BENCH_TELEMETRY"].split(","))


def turn(*_):
    told = signals.get(next(ways), ())
    silent = tuple({Metrics, RequestSpans, Logs} - {*told})  # the store, breakers and scores listen always
    router_hook.outcomes.sinks = tuple(put for put in sinks if not isinstance(getattr(put, "__self__", None), silent))
    router_hook._spans = spans if RequestSpans in told else None
    Metrics.request = count if Metrics in told else lambda *_: None


signal.signal(signal.SIGUSR1, turn)
turn()
'''


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured.

    Attributes:
        milliseconds: processor time of a request by kind of gateway, mean over the rounds.
        ours: what our signals add, as a share of a request without telemetry.
        error: its standard error.
        litellm: what LiteLLM's add.
        cores: processors that this process may use.
    """

    milliseconds: dict[str, float]
    ours: float
    error: float
    litellm: float
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


def _config(signals: bool, folder: Path, port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}"
    logs: dict[str, Any] = {"format": "json", "level": "info" if signals else "error"}
    if signals:
        logs["otlp"] = {"endpoint": url}
    strategy = {"source": str(folder.parent / "bundle.zip"), "require_signature": False}
    return {
        "model_list": [
            {"model_name": "auto", "litellm_params": {"model": model, "api_base": f"{url}/v1", "api_key": "none"}}
            for model in ("openai/small", "openai/large")
        ],
        "litellm_settings": {"callbacks": [*(["otel", "prometheus"] if signals else []), "bench_switch.instance"]},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        "pointsman": {
            "strategies": {"learned": strategy},
            "routing": {"groups": {"auto": "learned"}, "deadline_ms": 2_000},
            "telemetry": {"logs": logs},
            "shutdown": {"not_ready": 0.1},
        },
    }


class _Gateway:
    """One of them; `ways` are what it is switched between, one each turn."""

    def __init__(self, ways: Sequence[str], folder: Path, collector: int) -> None:
        self.ways = ways
        signals = "none" not in ways
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(_config(signals, folder, collector)), encoding="utf-8")
        (folder / "bench_switch.py").write_text(SWITCH, encoding="utf-8")
        self.port = free_port()
        self._mark = f"{MARK}={','.join(ways)}".encode()
        env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | KEYS
        env |= {MARK: ",".join(ways)}
        if signals:
            env |= {"OTEL_EXPORTER": "otlp_http", "OTEL_ENDPOINT": f"http://127.0.0.1:{collector}"}
            env |= {"OTEL_BSP_SCHEDULE_DELAY": "1000"}
        command = [str(Path(sys.executable).parent / "pointsman"), "serve", "--config", str(folder / "config.yaml")]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--data-dir", str(folder / "data")]
        self.log = folder / "gateway.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _processes(self) -> Iterator[Path]:
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self._mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield entry
            except OSError:  # gone in the meantime, or somebody else's
                continue

    def _worker(self) -> int:
        """The youngest of its processes."""
        return max(int(entry.name) for entry in self._processes())

    def switch(self) -> None:
        """Go to the next way."""
        os.kill(self._worker(), signal.SIGUSR1)

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._ask("GET", "/health/readiness", None) == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.ways} was not ready:\n" + self.log.read_text(errors="replace")[-4000:])
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
                    raise SystemExit(f"{self.ways} answered {answer.status}, {dict(answer.headers)}: {text[:300]!r}")
        finally:
            line.close()

    def _threads(self) -> tuple[int, int]:
        """Nanoseconds that the worker's serving thread, and its others, have run; proc(5), `schedstat`."""
        worker = self._worker()
        main = others = 0
        for entry in Path(f"/proc/{worker}/task").iterdir():
            ran = int((entry / "schedstat").read_text().split()[0])
            if int(entry.name) == worker:
                main = ran
            else:
                others += ran
        return main, others

    def serving(self, count: int) -> float:
        """Milliseconds of the serving thread for one request, as it is switched now."""
        before, _ = self._threads()
        self.ask(count)
        return (self._threads()[0] - before) / count / 1e6

    def behind(self, count: int) -> float:
        """Milliseconds of the other threads for one request."""
        time.sleep(SETTLE)
        _, before = self._threads()
        self.ask(count)
        time.sleep(SETTLE)
        return (self._threads()[1] - before) / count / 1e6

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def measure(folder: Path, *, rounds: int, parts: bool = False, log: Any = sys.stderr) -> Report:
    """Start the gateways in `folder`, warm them up, and ask them in turn.

    Args:
        folder: an empty directory.
        rounds: a short turn of each way in each of them.
        parts: measure each kind of signal by itself, too.
        log: where progress is written.
    """
    _bundle(folder / "bundle.zip")
    ways = ("litellm", "both", *(PARTS if parts else ()))
    serving: dict[str, list[float]] = {way: [] for way in ("none", *ways)}
    behind: dict[str, list[float]] = {way: [] for way in ("none", *ways)}
    with ExitStack() as stack:
        collector = stack.enter_context(_receiver())
        without, switched = (_Gateway(names, folder / names[0], collector) for names in (("none",), ways))
        for gateway in (without, switched):
            stack.callback(gateway.stop)
        for gateway in (without, switched):
            gateway.wait()
            for _ in gateway.ways:
                gateway.ask(WARM_UP)
                gateway.switch()
        for taken, turns, count in ((serving, rounds, SHORT), (behind, LONG_TURNS, LONG)):
            for _ in range(turns):
                for gateway in (without, switched):
                    for way in gateway.ways:
                        taken[way].append(gateway.serving(count) if taken is serving else gateway.behind(count))
                        gateway.switch()
            said = ", ".join(f"{way} {statistics.fmean(values):.3f} ms" for way, values in taken.items())
            print(f"{'serving thread' if taken is serving else 'other threads'}: {said}", file=log, flush=True)
    total = {way: statistics.fmean(serving[way]) + statistics.fmean(behind[way]) for way in serving}
    differences = [both - mine for mine, both in zip(serving["litellm"], serving["both"], strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if rounds > 1 else float("nan")
    return Report(
        {way: round(value, 3) for way, value in total.items()},
        round((total["both"] - total["litellm"]) / total["none"], 4),
        round(error / total["none"], 4),
        round(total["litellm"] / total["none"] - 1, 4),
        len(os.sched_getaffinity(0)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.telemetry", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="short turns of each way (default 100)")
    parser.add_argument("--parts", action="store_true", help="measure spans, logs and metrics by themselves, too")
    parser.add_argument("--json", action="store_true", help="print only JSON on standard output")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as scratch:
        report = measure(Path(scratch), rounds=max(2, chosen.rounds), parts=chosen.parts)
    if chosen.json:
        print(json.dumps(asdict(report)))
    else:
        each = ", ".join(f"{kind} {value:.2f} ms" for kind, value in report.milliseconds.items())
        ours, theirs = f"ours {report.ours:+.1%} ± {report.error:.1%}", f"LiteLLM's {report.litellm:+.1%}"
        print(f"CPU of a request: {each}; {ours}, {theirs} ({report.cores} cores)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
