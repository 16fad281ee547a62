"""Of `bench.faults`: the clients, and the handle on the upstreams' process.

Thirty-two clients, each with one connection that it keeps, every second one streaming. Each asks at its own pace: the next
question a period after the one before, or at once if that was not answered in time. They give up after 30 s. On a connection
that breaks before any answer came they ask once more, of the next instance if there are several: what a load balancer's
clients do. Such a request counts once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
from bench.faults_upstreams import TEXT

__all__ = ["CLIENTS", "PATIENCE", "PRICE", "Answer", "Attempt", "Load", "Upstreams", "upstreams"]

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 32
PATIENCE = 30.0
"""Seconds after which a client gives up."""
PRICE = 0.01
"""Dollars a token, sent or received."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request, or a refused connection, as an upstream saw it; `at` is monotonic seconds, `number` the client's question."""

    at: float
    door: str
    faulty: bool
    number: int
    stream: bool
    answer: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A request as its client saw it.

    Attributes:
        number: of the question.
        key: place of the key that it was asked with.
        asked: monotonic seconds.
        seconds: until the end of the answer.
        failure: why it is no answer; empty: it is the whole text.
        clear: of a failure, whether an error in OpenAI's shape said so.
        id: of the answer, as LiteLLM's table of requests has it.
        cost: dollars, by the usage that the answer told.
        again: whether it was asked again after a broken connection.
        ahead: seconds that the gateway's wall clock, as its `date` header tells, is ahead of this one.
    """

    number: int
    key: int
    stream: bool
    asked: float
    seconds: float
    failure: str
    clear: bool
    id: str
    cost: float
    again: bool
    ahead: float


class Upstreams:
    """Handle on the process of `bench.faults_upstreams`."""

    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, int], sees_refused: bool) -> None:
        self._process, self.ports, self.sees_refused = process, ports, sees_refused

    async def _tell(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        told: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return told

    async def switch(self, doors: Sequence[str], fault: str | None) -> float:
        """Switch a fault on, or with None off, at some doors; the monotonic time at which the last was done."""
        return max([float((await self._tell({"door": door, "fault": fault}))["at"]) for door in doors])

    async def counts(self, group: str) -> dict[str, int]:
        """Attempts of a group by door, so far."""
        return dict((await self._tell({"count": group}))["doors"])

    async def take(self, group: str) -> list[Attempt]:
        """The attempts of a group; all others are forgotten, too."""
        return [Attempt(*row) for row in (await self._tell({"log": group}))["attempts"]]


@asynccontextmanager
async def upstreams() -> AsyncIterator[Upstreams]:
    """The upstreams, running inside the block."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.faults_upstreams"),
        stdin=pipe,
        stdout=pipe,
        limit=1 << 26,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = json.loads(await process.stdout.readline())
        yield Upstreams(process, told["ports"], told["syn"])
    finally:
        process.stdin.close()
        await process.wait()


class Broken(Exception):
    """The connection went before there was an answer."""


class Load:
    """The clients of one scenario; `begin`, then `end`.

    Args:
        urls: of the instances.
        keys: the clients' keys, dealt out in turns.
        group: the model group that they ask for.
        rate: requests a second, of all clients together, while answers come in time.
    """

    numbers = itertools.count(1)
    """Of this process, so that no two questions have the same."""

    def __init__(self, urls: Sequence[str], keys: Sequence[str], group: str, rate: float) -> None:
        self.answers: list[Answer] = []
        self._urls, self._keys, self._group, self._period = urls, keys, group, CLIENTS / rate
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._tasks = [asyncio.create_task(self._client(place)) for place in range(CLIENTS)]

    async def end(self) -> None:
        """No further question; returns when all are answered or given up."""
        self._over.set()
        await asyncio.gather(*self._tasks)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), max(0.0, seconds))

    async def _client(self, place: int) -> None:
        await self._pause(self._period * place / CLIENTS)
        home, timeout = place, aiohttp.ClientTimeout(total=PATIENCE)
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            while not self._over.is_set():
                begun = time.monotonic()
                answer, home = await self._ask(http, place, home)
                self.answers.append(answer)
                await self._pause(begun + self._period * random.uniform(0.8, 1.2) - time.monotonic())  # noqa: S311 - no secret

    async def _ask(self, http: aiohttp.ClientSession, place: int, home: int) -> tuple[Answer, int]:
        """One question; the answer, and whom to ask next."""
        number, key, stream, asked = next(self.numbers), place % len(self._keys), bool(place % 2), time.monotonic()
        found = _Found()
        for again in (False, True):
            try:
                await self._once(http, self._urls[home % len(self._urls)], key, number, stream, found)
            except Broken as error:
                found.failure = f"connection: {error}"
                home += 1
                if not again:
                    continue
            except TimeoutError:
                found.failure = "no answer in 30 s"
            break
        seconds = time.monotonic() - asked
        cost = 0.0 if found.failure else PRICE * found.tokens
        return (
            Answer(number, key, stream, asked, seconds, found.failure, found.clear, found.id, cost, again, found.ahead),
            home,
        )

    async def _once(self, http: aiohttp.ClientSession, url: str, key: int, number: int, stream: bool, found: _Found) -> None:
        found.failure = ""
        body: dict[str, Any] = {
            "model": self._group,
            "messages": [{"role": "user", "content": f"question {number}: what makes a whole answer?"}],
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            answer = await http.post(
                f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {self._keys[key]}"}
            )
        except aiohttp.ClientConnectionError as error:
            raise Broken(type(error).__name__) from error
        async with answer:
            if told := answer.headers.get("date"):
                found.ahead = parsedate_to_datetime(told).timestamp() - time.time()
            try:
                if answer.status != 200:
                    found.refused(answer.status, await answer.text())
                elif stream:
                    await found.stream(answer)
                else:
                    found.plain(await answer.text())
            except aiohttp.ClientError as error:  # the headers came: no client asks again by itself
                found.failure = f"broken off: {type(error).__name__}"


class _Found:
    """What one answer is made of, so far."""

    def __init__(self) -> None:
        self.failure, self.clear, self.id, self.tokens, self.ahead = "", False, "", 0, 0.0

    def refused(self, status: int, text: str) -> None:
        self.failure = f"status {status}"
        with suppress(ValueError, TypeError, KeyError):
            self.clear = bool(json.loads(text)["error"]["message"])

    def plain(self, text: str) -> None:
        try:
            body = json.loads(text)
            self.id, self.tokens = body["id"], body["usage"]["total_tokens"]
            if body["choices"][0]["message"]["content"] != TEXT:
                self.failure = "another text"
        except (ValueError, TypeError, KeyError):
            self.failure = "no chat completion"

    async def stream(self, answer: aiohttp.ClientResponse) -> None:
        text, done = "", False
        async for line in answer.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                done = True
                continue
            try:
                event = json.loads(data)
                if "error" in event:
                    self.failure, self.clear = ("error event" if text else "error event before content"), True
                    return
                self.id = event["id"]
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                self.tokens = (event.get("usage") or {}).get("total_tokens", self.tokens)
            except (ValueError, TypeError, KeyError):
                self.failure = "no event"
                return
        if not done:
            self.failure = "ended in the middle" if text else "ended before content"
        elif text != TEXT:
            self.failure = "another text"
