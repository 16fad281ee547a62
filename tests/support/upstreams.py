"""The session fixture `upstreams`: fake OpenAI and Anthropic servers in a process of their own, and faults to switch on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

__all__ = ["Upstreams", "upstreams"]

TESTS = Path(__file__).resolve().parents[1]


class Upstreams:
    """Handle on the running fakes. A name needs no declaration: `url("anything")` serves."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "upstreams.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        assert first, f"the fake upstreams ended with {self._process.wait()} before they listened"
        self.base = f"http://127.0.0.1:{json.loads(first)['port']}"
        self._http = httpx.Client(base_url=self.base, timeout=10, trust_env=False)
        self._refused: socket.socket | None = None

    def url(self, name: str) -> str:
        """OpenAI base URL of an upstream, `.../v1`."""
        return f"{self.base}/u/{name}/v1"

    def anthropic_url(self, name: str) -> str:
        """Anthropic base URL of an upstream (its SDK adds `/v1/messages`)."""
        return f"{self.base}/u/{name}"

    def refused_url(self) -> str:
        """A base URL whose port refuses connections and is nobody else's: bound, never listening."""
        if self._refused is None:
            self._refused = socket.socket()
            self._refused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._refused.getsockname()[1]}/v1"

    def fault(self, name: str, **fields: Any) -> None:
        """Switch a fault on (fields of `upstreams.state.Fault`), in place of the one before."""
        self._http.post(f"/_control/{name}", json=fields).raise_for_status()

    def script(self, name: str, *lines: tuple[str, str]) -> None:
        """What an upstream says to chats (`upstreams.state.Line`: match, answer), in place of the script before."""
        body = [{"match": match, "answer": answer} for match, answer in lines]
        self._http.post(f"/_control/{name}/script", json=body).raise_for_status()

    def clear(self, name: str | None = None) -> None:
        """Switch the fault of one upstream off, or all of them and the scripts; requests that hang go on."""
        self._http.delete("/_control" if name is None else f"/_control/{name}").raise_for_status()

    def report(self, name: str, *, contains: str | None = None, since: int = 0) -> dict[str, Any]:
        """`count`, `active` and `requests` of an upstream."""
        params = {"since": since} | ({} if contains is None else {"contains": contains})
        answer: dict[str, Any] = self._http.get(f"/_control/{name}/log", params=params).raise_for_status().json()
        return answer

    def requests(self, name: str, *, contains: str | None = None, since: int = 0) -> list[dict[str, Any]]:
        """What arrived at an upstream, oldest first; `contains` filters on the body."""
        found: list[dict[str, Any]] = self.report(name, contains=contains, since=since)["requests"]
        return found

    def count(self, name: str) -> int:
        """How many requests an upstream ever got."""
        return int(self.report(name, since=1 << 60)["count"])

    def close(self) -> None:
        """Stop the process (it ends when its standard input closes)."""
        self._http.close()
        if self._refused is not None:
            self._refused.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="session")
def upstreams() -> Iterator[Upstreams]:
    """One process of fake upstreams for the whole session; faults are off at first."""
    handle = Upstreams()
    yield handle
    handle.close()
