"""The process of its own: loads LLMRouter's router, or an operator's signed code, and answers one query after the other.

Run by `guard.py` under whichever interpreter the operator named, so it imports the standard library alone and is a file, not a
module: that interpreter has nothing of ours, and `-I` keeps its environment and this directory out of `sys.path`.

Messages are JSON objects behind their length (4 bytes, big endian), over the socket that FD is. The owner says `load` once,
then `score` and `ping`; the process says `hello`, then `ready` or `broken`, then `answer` and `pong`. It ends when the socket
closes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["HEADER", "LOADED", "MAX_MESSAGE", "MAX_NAMES", "PROTOCOL", "main", "pack", "unpack"]

PROTOCOL = 1
"""Version of the messages; the owner refuses another."""

MAX_MESSAGE = 4 * 2**20
"""Longest message in bytes, both ways."""

MAX_NAMES = 10_000
"""Most models that a router may have, and score."""

LOADED = b"\0 loaded"
"""A line of its output: from here on, output may quote prompts."""

HEADER = struct.Struct(">I")

# Where `llmrouter.models` swallows the error of an import, the module says what was wrong.
_MODULES = {
    "CausalLMRouter": "causallm_router",
    "GMTRouter": "gmtrouter",
    "GraphRouter": "graphrouter",
    "PersonalizedRouter": "personalizedrouter",
    "RouterR1": "router_r1",
    "TSRouter": "tsrouter",
}

Scorer = Callable[[str, "str | None"], "dict[str, Any]"]


class BrokenError(Exception):
    """It cannot be loaded, and trying again at once would not help; the message tells the operator why."""


def pack(message: dict[str, Any]) -> bytes:
    """A message with its length before it. ASCII, so that half a surrogate pair in a prompt goes through.

    Raises:
        ValueError: NaN or infinity, longer than `MAX_MESSAGE`.
    """
    body = json.dumps(message, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a message has at most {MAX_MESSAGE} bytes")
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """The message of a body.

    Raises:
        ValueError: no JSON object.
    """
    try:
        message = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def _confine(data_bytes: int) -> None:
    """No core files, and a bound on writable memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if data_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))


def _router_class(name: str) -> Any:
    models = importlib.import_module("llmrouter.models")
    found = getattr(models, name, None)
    if found is None and name in _MODULES:
        importlib.import_module(f"llmrouter.models.{_MODULES[name]}")  # says why it is missing
    if found is None:
        raise BrokenError(f"LLMRouter has no {name}")
    return found


def _names_of(router: Any) -> list[str]:
    """Every model that the router may name, as far as it tells: its candidates' data, its list, its training rows."""
    names: dict[str, None] = {}
    for listed in (getattr(router, "llm_data", None), getattr(router, "model_names", None)):
        if isinstance(listed, dict | list | tuple):
            names.update((str(name), None) for name in listed)
    rows = getattr(router, "routing_data_train", None)
    with contextlib.suppress(Exception):  # a router without such rows, or with rows of another shape, tells by the others
        names.update((str(name), None) for name in rows["model_name"].unique())  # type: ignore[index]
    return list(names)[:MAX_NAMES]


def _load_llmrouter(spec: dict[str, Any]) -> tuple[Scorer, dict[str, Any]]:
    for module in spec["needs"]:
        if importlib.util.find_spec(module) is None:
            raise BrokenError(f"No module named {module!r}, which {spec['class']} needs")
    router = _router_class(spec["class"])(spec["config"])
    load = getattr(router, "_load_vllm_model", None)
    if load is not None:  # CausalLMRouter loads at its first query, which has a query's deadline
        load()

    def score(text: str, user: str | None) -> dict[str, Any]:
        query: dict[str, Any] = {"query": text}
        if user is not None and user.isdecimal():  # LLMRouter's users are numbers
            query["user_id"] = int(user)
        answer = router.route_single(query)
        name = answer.get("model_name") if isinstance(answer, dict) else None
        if not isinstance(name, str):
            return {"nonsense": f"route_single answered {type(answer).__name__} without the name of a model"}
        return {"scores": {name: 1.0}}

    version = "unknown"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("llmrouter-lib")
    return score, {"version": version, "models": _names_of(router), "scale": "rank"}


def _load_code(spec: dict[str, Any]) -> tuple[Scorer, dict[str, Any]]:
    sys.path.insert(0, spec["directory"])
    found = [
        point
        for distribution in importlib.metadata.distributions(path=[spec["directory"]])
        for point in distribution.entry_points
        if point.group == spec["group"] and point.name == spec["entry_point"]
    ]
    if len(found) != 1:
        raise BrokenError(f"the wheel has no entry point {spec['entry_point']!r} in the group {spec['group']!r}")
    code = found[0].load()(**spec["options"])
    models = [str(name) for name in code.models]

    def score(text: str, user: str | None) -> dict[str, Any]:
        rows = code.score([text], [user])
        row = rows[0] if not isinstance(rows, dict) else {name: column[0] for name, column in rows.items()}
        if isinstance(row, dict):
            return {"scores": {str(name): float(value) for name, value in row.items()}}
        values = [float(value) for value in row]
        if len(values) != len(models):
            return {"nonsense": f"{len(values)} scores for {len(models)} models"}
        return {"scores": dict(zip(models, values, strict=True))}

    return score, {"version": spec["version"], "models": models[:MAX_NAMES], "scale": str(code.scale)}


class _Line:
    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def send(self, **message: Any) -> None:
        self._socket.sendall(pack(message))

    def receive(self) -> dict[str, Any] | None:
        """The owner's next message; None: it is gone."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        body = self._exactly(min(HEADER.unpack(header)[0], MAX_MESSAGE))
        return None if body is None else unpack(body)

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self._socket.recv(size - len(data))
            except ConnectionError:
                return None
            if not part:
                return None
            data += part
        return data


def _answer(score: Scorer, message: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = score(message["text"], message["user"])
        pack(answer)
    except MemoryError:
        return {"memory": True}
    except ImportError as error:  # LLMRouter imports vLLM at its first query
        return {"broken": str(error)[:500]}
    except Exception as error:  # noqa: BLE001 - whatever it is, the owner is told; its message may quote the prompt
        return {"error": type(error).__name__}
    return answer


def main(descriptor: int) -> int:
    """Serve until the owner is gone; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # LLMRouter prints; half a surrogate pair in a prompt must not raise there
        stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    line = _Line(descriptor)
    line.send(type="hello", protocol=PROTOCOL, pid=os.getpid())
    spec = line.receive()
    if spec is None:
        return 0
    _confine(int(spec["data_bytes"]))
    loaders = {"llmrouter": _load_llmrouter, "code": _load_code}
    try:
        score, about = loaders[spec["mode"]](spec)
        os.write(1, b"\n" + LOADED + b"\n")
        line.send(type="ready", **about)
    except MemoryError:
        line.send(type="failed", memory=True)
        return 1
    except Exception as error:  # noqa: BLE001 - others' code: whatever it is, the operator reads it in the status
        line.send(type="broken", message=f"{type(error).__name__}: {error}"[:2000])
        return 1
    while (message := line.receive()) is not None:
        if message["type"] == "ping":
            line.send(type="pong", id=message["id"])
        else:
            line.send(type="answer", id=message["id"], **_answer(score, message))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
