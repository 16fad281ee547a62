"""The child of `isolation`: limits itself, loads the bundle as the gateway would, says what it found, ends."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

_BARE = 1024 * 2**20
"""Address space of the child with everything imported and no bundle, generously: some 600 MB, most of it never touched."""


def _limit(memory: int, cpu: int) -> None:
    def lower(kind: int, value: int) -> None:
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    lower(resource.RLIMIT_AS, memory)
    lower(resource.RLIMIT_CPU, cpu)
    lower(resource.RLIMIT_FSIZE, 0)  # nothing is written
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_NOFILE, 64)


def main() -> int:
    """Read the request from standard input, write the answer to standard output."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    arguments: dict[str, Any] = request["arguments"]
    for name in ("path", "encoders_dir"):
        if arguments[name] is not None:
            arguments[name] = Path(arguments[name])
    _limit(_BARE + int(request["memory"]) + int(request["memory_factor"]) * _beside(arguments), int(request["cpu"]))
    answer: dict[str, Any] = {"error": None}
    try:
        from pointsman.errors import PointsmanError
        from pointsman.strategies.bundle import load_bundle

        path = arguments.pop("path")
        try:
            load_bundle(path, **arguments)
        except PointsmanError as error:
            answer["error"] = {"code": error.code, "message": error.message, "where": error.where, "mend": error.mend}
            if _of_memory(error.message):
                answer["error"]["code"] = "memory"
    except MemoryError:
        answer["error"] = {"code": "memory", "message": "out of memory"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


def _beside(arguments: dict[str, Any]) -> int:
    """Bytes of the largest files in the encoders' directory that the bundle names; unreadable ones count nothing here."""
    import zipfile

    try:
        with zipfile.ZipFile(arguments["path"]) as archive:
            external = json.loads(archive.read("manifest.json"))["encoder"].get("external", {})
        return sum(min(int(entry["size"]), 4 * 2**30) for entry in external.values())
    except Exception:  # noqa: BLE001 - `load_bundle` says what is wrong with it
        return 0


def _of_memory(message: str) -> bool:
    """Whether native code was refused memory: it tells that in words only."""
    return any(words in message for words in ("bad_alloc", "Failed to allocate", "bad allocation", "Available memory of"))


if __name__ == "__main__":
    sys.exit(main())
