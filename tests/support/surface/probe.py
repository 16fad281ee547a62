"""What a worker tells of itself to the tour: which routes it has, and each error that the query engine answered it with.

`install` is a start-up hook of LiteLLM's workers (`LITELLM_WORKER_STARTUP_HOOKS`). LiteLLM swallows many errors of its database
layer, some without a line in the log; so they are written down where the client receives them, before anybody can swallow them.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["EngineError", "Route", "engine_errors", "hook_environment", "install", "routes"]

DIRECTORY = "SURFACE_DIRECTORY"
TESTS = Path(__file__).resolve().parents[2]


class Route(NamedTuple):
    """One operation: its method, its path as the application declares it, and the handler's module and name."""

    method: str
    path: str
    handler: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class EngineError(NamedTuple):
    """An error as the query engine answered it, and LiteLLM's functions that asked, innermost first."""

    code: str
    message: str
    callers: list[str]

    def __str__(self) -> str:
        return f"{self.code or 'no code'} in {' < '.join(self.callers[:4])}: {self.message[:500]}"


def hook_environment(directory: Path) -> dict[str, str]:
    """Variables with which a gateway registers every route at its start and its workers write into `directory`."""
    return {
        "LITELLM_DISABLE_LAZY_ROUTES": "True",
        "LITELLM_WORKER_STARTUP_HOOKS": f"{__name__}:install",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)])),
        DIRECTORY: str(directory),
    }


def install() -> None:
    """Runs inside a worker, before LiteLLM reads its configuration."""
    from litellm.proxy.proxy_server import app

    directory = Path(os.environ[DIRECTORY])
    rows = sorted({tuple(route) for route in _operations(app)})
    (directory / "routes.json").write_text(json.dumps(rows), encoding="utf-8")
    _record_errors(directory / "errors.jsonl")


def routes(directory: Path) -> list[Route]:
    """Every operation of the application."""
    return [Route(*row) for row in json.loads((directory / "routes.json").read_text(encoding="utf-8"))]


def engine_errors(directory: Path) -> list[EngineError]:
    """Every error that the query engine has answered so far."""
    file = directory / "errors.jsonl"
    return [EngineError(*json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _operations(app: Any) -> Iterator[Route]:
    from fastapi.routing import iter_route_contexts

    for context in iter_route_contexts(app.routes):
        endpoint = getattr(context, "endpoint", None)
        handler = f"{getattr(endpoint, '__module__', '')}.{getattr(endpoint, '__name__', '')}"
        for method in getattr(context, "methods", None) or ():
            if method not in ("HEAD", "OPTIONS"):
                yield Route(method, context.path or "", handler)


def _record_errors(file: Path) -> None:
    from prisma.engine import utils

    original = utils.handle_response_errors

    def recording(response: Any, errors: Any) -> Any:
        frames = [frame for frame in reversed(traceback.extract_stack()) if "/litellm/" in frame.filename]
        callers = [f"{Path(frame.filename).stem}.{frame.name}" for frame in frames]
        with file.open("a", encoding="utf-8") as out:
            for error in errors:
                facing = error.get("user_facing_error") or {}
                message = facing.get("message") or error.get("error") or str(error)
                out.write(json.dumps([facing.get("error_code") or "", message, callers]) + "\n")
        return original(response, errors)

    utils.handle_response_errors = recording
