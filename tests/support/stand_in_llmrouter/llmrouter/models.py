"""In place of LLMRouter, which is too large to install for every test: routers of its interface that misbehave when told to.

A prompt says what happens (`DIE`, `SEGFAULT`, `HANG`, `LEAK`, `HOARD`, `RAISE`, ...), else the router names a model as the
tests' strategy does. `hparam.at_start` of the configuration does the same while it loads. It writes where LLMRouter writes: a
CSV beside its routing data. Standard library alone, so it runs in an environment that has nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

HARD = {"algebra", "cohomology", "entropy", "geodesic", "integral", "lemma", "manifold", "quantum", "tensor", "theorem"}
MIB = 2**20

_hoard: list[bytearray] = []


class EloRouter:
    """Behaves, or does not."""

    def __init__(self, yaml_path: str) -> None:
        self.cfg = json.loads(Path(yaml_path).read_text())  # JSON is what it is given
        data = self.cfg["data_path"]
        self.llm_data = json.loads(Path(data["llm_data"]).read_text())
        if "routing_data_train" in data:
            Path(data["routing_data_train"]).with_suffix(".csv").write_text("query,model_name\n")
        print("loading, as LLMRouter does, with a word on standard output")
        start = self.cfg.get("hparam", {}).get("at_start", "")
        _misbehave(start)
        if start == "BROKEN":
            raise ValueError("there is no artifact at /nowhere")

    def route_single(self, query: dict[str, Any]) -> Any:
        """As LLMRouter's."""
        text = query["query"]
        print(f"routing {text}")
        _misbehave(text.split()[0])
        odd = {
            "NUMBER": 42,
            "NOTHING": None,
            "NAMELESS": {"query": text},
            "STRANGER": {"model_name": "a-model-of-nobody"},
            "ENVIRONMENT": {"model_name": json.dumps(dict(os.environ))},
        }
        if text.split()[0] in odd:
            return odd[text.split()[0]]
        strong, weak = list(self.llm_data)
        return {**query, "model_name": strong if HARD & set(text.split()) else weak}


def _misbehave(word: str) -> None:
    if word == "DIE":
        sys.exit(3)
    if word == "SEGFAULT":
        ctypes.string_at(0)
    if word == "HANG":
        time.sleep(3600)
    if word == "SLOW":
        time.sleep(0.3)
    if word == "LEAK":  # resident at once, and kept
        _hoard.append(bytearray(120 * MIB))
        time.sleep(5)
    if word == "HOARD":  # more than may be written to
        _hoard.append(bytearray(4096 * MIB))
    if word == "RAISE":
        raise KeyError("a prompt that it cannot bear")
    if word == "IMPORT":
        raise ImportError("No module named 'vllm'")
    if word == "CHILD" and os.fork() == 0:
        time.sleep(3600)
    if word == "DAEMON":
        _daemon()
    if word == "STOPPED":
        os.kill(os.getpid(), signal.SIGSTOP)
    _say(word)


def _say(word: str) -> None:
    if word == "RUBBISH":
        os.write(int(sys.argv[1]), b"\x00\x00\x00\x04nope")
    if word == "ENDLESS":
        os.write(int(sys.argv[1]), b"\xff\xff\xff\xff")
    if word == "SHOUT":  # more than a pipe holds
        os.write(1, b"x" * 5_000_000)
    if word in ("HALF", "HALFWAY"):
        os.write(int(sys.argv[1]), b"\x00\x00\x00\x50{")
        if word == "HALF":
            os._exit(0)
        time.sleep(3600)
    if word == "BIGINT":  # no float, and the answer to its first query
        _send({"type": "answer", "id": 1, "scores": {"a": 10**400}})
    if word == "MANY":
        _send({"type": "answer", "id": 1, "scores": {str(number): 1 for number in range(10_001)}})


def _send(message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    os.write(int(sys.argv[1]), len(body).to_bytes(4, "big") + body)


def _daemon() -> None:
    """Leave a process in a session of its own, without a parent, that holds the output open; its id is in the file `daemon`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            Path("writing").write_text(str(os.getpid()))
            Path("writing").rename("daemon")
            time.sleep(3600)
        os._exit(0)
    os.waitpid(child, 0)
    while not Path("daemon").exists():
        time.sleep(0.001)


class CausalLMRouter(EloRouter):
    """Wants vLLM, as LLMRouter's does, and loads its weights at the first query unless they are there."""

    vllm_model: object | None = None

    def _load_vllm_model(self) -> None:
        self.vllm_model = object()

    def route_single(self, query: dict[str, Any]) -> Any:
        """As LLMRouter's."""
        if self.vllm_model is None:
            time.sleep(3600)  # minutes; a query has seconds
        return super().route_single(query)
