"""A real S3 API over HTTP for the session: moto's server in a process of its own, behind a small TCP proxy with faults.

- `s3`: the server; `.endpoint_url`, `.client`, `.new_bucket()`, `.environment`
- `s3.stop()` / `s3.start()`: connections are refused, then accepted again, on the same port; the data stay
- `with s3.fault("hang")`: accepts and never answers; `"refuse"`: as `stop`; `"cut"`: passes `after` bytes of each answer, then
  closes; `"forbidden"`, `"broken"`: answers 403 InvalidAccessKeyId, 503 (moto checks no credentials)
- `s3.requests`: (method, path, status) of everything that went through, e.g. to see that nothing was fetched twice
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Coroutine, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.config import Config

from support.ports import free_port

KEY, SECRET, REGION = "test-access-key", "test-secret-key", "us-east-1"
_REQUEST = re.compile(rb"^([A-Z]+) (\S+) HTTP/1\.1\r\n")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")

_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
    "<RequestId>0</RequestId></Error>"
)
_FORBIDDEN = ("403 Forbidden", "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
_BROKEN = ("503 Service Unavailable", "ServiceUnavailable", "Please reduce your request rate.")


class Request(NamedTuple):
    """One request that went through the proxy."""

    method: str
    path: str
    status: int


class FaultyProxy:
    """Passes TCP connections on, or does what `mode` says. Everything runs on one loop in one thread."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.mode = "pass"
        self.after = 0
        self.requests: list[Request] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3-proxy", daemon=True)
        self._thread.start()
        self.call(self._listen())

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def set(self, mode: str, after: int = 0) -> None:
        """Change what happens to connections; those that are open are closed, so that it holds at once."""
        self.call(self._set(mode, after))

    def close(self) -> None:
        self.call(self._set("refuse", 0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _set(self, mode: str, after: int) -> None:
        self.mode, self.after = mode, after
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()
        if mode != "refuse" and self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "hang":
            await reader.read(-1)  # until the other side gives up
            return
        if self.mode in ("forbidden", "broken"):
            while True:
                await self._refuse(reader, writer, *(_FORBIDDEN if self.mode == "forbidden" else _BROKEN))
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        self._open.add(up_writer)
        waiting: list[tuple[str, str]] = []
        try:
            ways = {
                asyncio.ensure_future(self._pass_requests(reader, up_writer, waiting)),
                asyncio.ensure_future(self._pass_answers(up_reader, writer, waiting)),
            }
            _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in pending:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open.discard(up_writer)
            up_writer.close()

    async def _refuse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: str, code: str, message: str
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            if re.search(rb"(?i)expect: 100-continue", head):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await reader.readexactly(int(length[1]))
        body = _ERROR.format(code=code, message=message).encode()
        fields = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(fields.encode() + (b"" if head.startswith(b"HEAD") else body))
        await writer.drain()
        if found := _REQUEST.match(head):
            self.requests.append(Request(found[1].decode(), found[2].decode(), int(status[:3])))

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: list[tuple[str, str]]
    ) -> None:
        while data := await reader.read(65536):
            if found := _REQUEST.match(data):  # clients send a request's head in one piece, and do not pipeline
                waiting.append((found[1].decode(), found[2].decode()))
            writer.write(data)
            await writer.drain()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: list[tuple[str, str]]
    ) -> None:
        left = self.after
        while data := await reader.read(65536):
            found = _STATUS.match(data)
            if found and waiting and found[1] != b"100":
                self.requests.append(Request(*waiting.pop(0), int(found[1])))
            if self.mode == "cut":
                writer.write(data[:left])
                left -= len(data)
                if left <= 0:
                    await writer.drain()
                    return
            else:
                writer.write(data)
            await writer.drain()


class S3Server:
    """See the module."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self._log = (directory / "moto.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=directory,
        )
        self._await(port, directory)
        self.proxy = FaultyProxy(port)
        self.endpoint_url = f"http://127.0.0.1:{self.proxy.port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """What a process needs to reach it, besides the endpoint."""

    def _await(self, port: int, directory: Path) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5):
                    return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"moto did not start: {(directory / 'moto.log').read_text()[-2000:]}") from error
                time.sleep(0.05)

    @property
    def requests(self) -> list[Request]:
        """Everything that went through, oldest first; clear it as you like."""
        return self.proxy.requests

    @cached_property
    def client(self) -> Any:
        """A boto3 client with good credentials, through the proxy; any thread may use it."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=Config(s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=10),
        )

    def new_bucket(self) -> str:
        """Make an empty bucket; returns its name."""
        name = f"bucket-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name)
        return name

    def stop(self) -> None:
        """Refuse connections; the data stay."""
        self.proxy.set("refuse")

    def start(self) -> None:
        """Accept them again, without any fault."""
        self.proxy.set("pass")

    @contextlib.contextmanager
    def fault(self, mode: str, after: int = 0) -> Iterator[None]:
        """A fault for as long as the block lasts; see the module."""
        self.proxy.set(mode, after)
        try:
            yield
        finally:
            self.proxy.set("pass")

    def close(self) -> None:
        self.proxy.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's S3 server; a test that sets a fault takes it back."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def s3_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, and good credentials in this process's environment for one test."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3
