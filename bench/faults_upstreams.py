"""Of `bench.faults`: the upstreams, a process of their own that speaks OpenAI's chat protocol on four ports.

    python -m bench.faults_upstreams        started by `bench.faults`; it ends when standard input closes

Each port is a *door*: `a`, `b`, `c` and `spare`. The first part of a path names the model group that asks. Control is lines of
JSON on standard input, each answered by one on standard output:

    {"door": "a", "fault": "hang"}     -> {"at": T}        the fault is on since T; `null` switches it off
    {"log": "GROUP"}                   -> {"attempts": [[at, door, faulty, number, stream, id], ...]}
    {"count": "GROUP"}                 -> {"doors": {"a": 12, ...}}

Times are CLOCK_MONOTONIC, which processes of one machine share. An attempt is a request that arrived, or, where a closed port
refused it, the SYN packet that asked (seen with a packet socket, which wants CAP_NET_RAW; without it `{"syn": false}` is told).
`number` is what the client put into its question, and 0 for what no client asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from typing import Any, cast

import uvloop

__all__ = ["DOORS", "FAULTS", "PIECES", "RETRY_AFTER", "TEXT", "main"]

DOORS = ("a", "b", "c", "spare")
TEXT = "a whole answer anyhow"
PIECES = tuple(word if place == 0 else f" {word}" for place, word in enumerate(TEXT.split(" ")))
FAULTS = ("refuse", "hang", "error", "busy", "garbage", "cut-first", "cut-middle", "drip")
ANSWER_TIME, ANSWER_JITTER, PIECE_TIME = 0.05, 0.02, 0.005
"""Seconds to the answer or its first piece, what chance adds or takes off, and seconds between pieces."""
DRIP = 1.5
"""Seconds between pieces of an upstream that drips."""
CUT_TIME = 0.2
"""Seconds from the last piece to the cut: a gateway has passed on what it got, so that nobody can begin anew unseen."""
RETRY_AFTER = 2

_IPV4 = 0x0800
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"question (\d+)")
_GARBAGE = b'<html>{"choices": [{"delta": \x00 oops'


def _head(status: str, kind: str, length: int | None, more: str = "") -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{size}\r\n{more}\r\n".encode()


def _whole(status: str, body: Any, more: str = "") -> bytes:
    data = json.dumps(body).encode()
    return _head(status, "application/json", len(data), more) + data


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _failure(status: str, message: str, more: str = "") -> bytes:
    return _whole(status, {"error": {"message": message, "type": "server_error", "param": None, "code": None}}, more)


class Door:
    """One port: whether something is wrong with it, and who is connected."""

    def __init__(self, name: str, upstreams: Upstreams) -> None:
        self.name, self.upstreams = name, upstreams
        self.fault: str | None = None
        self.connections: set[Connection] = set()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", self.port, reuse_address=True, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def switch(self, fault: str | None) -> float:
        """When it was done."""
        before, self.fault = self.fault, fault
        self.upstreams.watch()
        if fault == "refuse":
            assert self._server is not None
            self._server.close()
            for connection in list(self.connections):
                connection.transport.abort()
        elif before == "refuse":
            await self.open()
        return time.monotonic()


class Connection(asyncio.Protocol):
    """HTTP/1.1 of what the clients here send: bodies with a length, one request after the other."""

    transport: asyncio.Transport

    def __init__(self, door: Door) -> None:
        self._door = door
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._door.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._next()

    def _next(self) -> None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length.group(1)) if length else 0
        if not found or len(rest) < size:
            return
        body, self._buffer = rest[:size], rest[size:]
        path = head.split(b" ", 2)[1].decode()
        self._task = asyncio.get_running_loop().create_task(self._serve(path, body))

    async def _serve(self, path: str, body: bytes) -> None:
        try:
            if path.endswith("/chat/completions"):
                await self._chat(path.split("/")[1], body)
            else:
                self.transport.write(_failure("404 Not Found", f"no such path: {path}"))
        finally:
            self._task = None
        if self._buffer and not self.transport.is_closing():
            self._next()

    async def _chat(self, group: str, body: bytes) -> None:
        asked = json.loads(body)
        fault, stream = self._door.fault, bool(asked.get("stream"))
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        answer = f"chatcmpl-{uuid.uuid4().hex}"
        number = _NUMBER.search(json.dumps(asked.get("messages")))
        self._door.upstreams.attempts.append(
            (time.monotonic(), group, self._door.name, fault is not None, int(number.group(1)) if number else 0, stream, answer)
        )
        if fault == "hang":
            await asyncio.Event().wait()  # until the gateway hangs up
        await asyncio.sleep(ANSWER_TIME + ANSWER_JITTER * random.uniform(-1, 1))  # noqa: S311 - no secret
        if fault == "error":
            self.transport.write(_failure("500 Internal Server Error", "the upstream is broken"))
        elif fault == "busy":
            self.transport.write(_failure("429 Too Many Requests", "slow down", f"retry-after: {RETRY_AFTER}\r\n"))
        elif stream:
            await self._stream(answer, str(asked.get("model")), usage, fault)
        else:
            await self._plain(answer, str(asked.get("model")), fault)

    async def _plain(self, answer: str, model: str, fault: str | None) -> None:
        message = {"role": "assistant", "content": TEXT}
        body = {
            "id": answer,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _USAGE,
        }
        data = _GARBAGE if fault == "garbage" else json.dumps(body).encode()
        self.transport.write(_head("200 OK", "application/json", len(data)))
        if fault in ("cut-first", "cut-middle"):
            self.transport.write(data[: len(data) // 2])
            self.transport.close()
        elif fault == "drip":
            step = -(-len(data) // len(PIECES))
            for start in range(0, len(data), step):
                self.transport.write(data[start : start + step])
                await asyncio.sleep(DRIP)
        else:
            self.transport.write(data)

    async def _stream(self, answer: str, model: str, usage: bool, fault: str | None) -> None:
        def event(choices: list[Any], **more: Any) -> bytes:
            about = {"id": answer, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
            return _chunk(b"data: " + json.dumps({**about, "choices": choices, **more}).encode() + b"\n\n")

        def delta(content: dict[str, Any], end: str | None = None) -> bytes:
            return event([{"index": 0, "delta": content, "finish_reason": end}])

        self.transport.write(_head("200 OK", "text/event-stream", None))
        self.transport.write(delta({"role": "assistant", "content": ""}))
        for place, piece in enumerate(PIECES):
            if (fault, place) in (("cut-first", 0), ("cut-middle", len(PIECES) // 2)):
                await asyncio.sleep(CUT_TIME)
                self.transport.close()
                return
            self.transport.write(_chunk(b"data: " + _GARBAGE + b"\n\n") if fault == "garbage" else delta({"content": piece}))
            await asyncio.sleep(DRIP if fault == "drip" else PIECE_TIME)
        self.transport.write(delta({}, "stop"))
        if usage:
            self.transport.write(event([], usage=_USAGE))
        self.transport.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


_USAGE = {"prompt_tokens": 12, "completion_tokens": len(PIECES), "total_tokens": 12 + len(PIECES)}


class Upstreams:
    """The four doors and what arrived at them."""

    def __init__(self) -> None:
        self.attempts: list[tuple[float, str, str, bool, int, bool, str]] = []
        self.doors = {name: Door(name, self) for name in DOORS}
        self._packets: socket.socket | None = None

    @property
    def sees_refused(self) -> bool:
        """Whether this process may look at packets."""
        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
        except PermissionError:
            return False
        return True

    def watch(self) -> None:
        """Count the SYN packets that closed doors refuse, while there are any."""
        closed = any(door.fault == "refuse" for door in self.doors.values())
        if closed and self._packets is None and self.sees_refused:
            self._packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # nothing until it is bound
            self._packets.setblocking(False)
            self._packets.bind(("lo", _IPV4))
            asyncio.get_running_loop().add_reader(self._packets.fileno(), self._look)
        elif not closed and self._packets is not None:
            asyncio.get_running_loop().remove_reader(self._packets.fileno())
            self._packets.close()
            self._packets = None

    def _look(self) -> None:
        assert self._packets is not None
        closed = {door.port: door.name for door in self.doors.values() if door.fault == "refuse"}
        with suppress(BlockingIOError):
            while True:
                packet, (_, _, kind, *_) = self._packets.recvfrom(128)
                if kind == socket.PACKET_OUTGOING or len(packet) < 48 or packet[23] != socket.IPPROTO_TCP:
                    continue  # on the loopback device each packet is seen going out and coming in
                begin = 14 + (packet[14] & 15) * 4
                port, flags = struct.unpack_from("!H", packet, begin + 2)[0], packet[begin + 13]
                if flags & 0x12 == 0x02 and port in closed:
                    self.attempts.append((time.monotonic(), "", closed[port], True, 0, False, ""))

    async def obey(self, line: dict[str, Any]) -> dict[str, Any]:
        """Do what a line says."""
        if "door" in line:
            return {"at": await self.doors[line["door"]].switch(line["fault"])}
        if "count" in line:
            return {"doors": Counter(door for _, group, door, *_ in self.attempts if group == line["count"])}
        kept = [one for one in self.attempts if one[1] in ("", line["log"])]
        self.attempts.clear()
        return {"attempts": [[at, *rest] for at, _, *rest in kept]}


async def _serve() -> None:
    upstreams = Upstreams()
    for door in upstreams.doors.values():
        await door.open()
    ports = {name: door.port for name, door in upstreams.doors.items()}
    print(json.dumps({"ports": ports, "syn": upstreams.sees_refused}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await upstreams.obey(json.loads(line))), flush=True)


def main() -> None:
    """Run until standard input closes."""
    uvloop.run(_serve())


if __name__ == "__main__":
    main()
