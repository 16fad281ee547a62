"""A real gateway: `pointsman serve` in processes of its own, with real workers, Postgres and fake upstreams.

- `Gateway`: start, stop, kill, restart one; clients for it; its log is shown when something fails.
- `gateway`: the one that the end-to-end tests share. Boots are dear (seconds): use it wherever a test leaves it as it was.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sysconfig
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest
import yaml

from support.ports import free_port
from support.processes import MARK, kill_all, marked, wait_for

if TYPE_CHECKING:
    from support.s3 import S3Server
    from support.strategy import FilePublisher, S3Publisher
    from support.upstreams import Upstreams

__all__ = ["Gateway", "clean_environment", "file_publisher", "free_port", "gateway", "pointsman", "publisher"]

# Whatever of the developer's own environment would change what the gateway does.
FOREIGN = (
    "OPENAI_",
    "ANTHROPIC_",
    "AWS_",
    "LITELLM_",
    "DATABASE_URL",
    "POINTSMAN",
    "LANGFUSE_",
    "OTEL_",
    "REDIS_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)
KEEP = ("AWS_CA_BUNDLE",)
BOOT_SECONDS = 120.0


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what is foreign to a test, no proxy to the loopback address, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if k in KEEP or not k.upper().startswith(FOREIGN)}
    return {**kept, "NO_PROXY": "127.0.0.1,localhost", "AWS_EC2_METADATA_DISABLED": "true", **extra}


def executable() -> str:
    """The installed entry point `pointsman`."""
    return str(Path(sysconfig.get_path("scripts")) / "pointsman")


def pointsman(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, as a user would; `env` is added to a clean environment."""
    mark = uuid.uuid4().hex
    environment = clean_environment(**{MARK: mark, **(env or {})})
    command = [executable(), *map(str, arguments)]
    try:
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        kill_all(environment[MARK])
        raise


class Gateway:
    """One gateway.

    Args:
        config: what goes into its YAML file.
        directory: its own; holds `config.yaml`, `gateway.log`, the data directory.
        database_url: given as DATABASE_URL; None for a gateway without a database.
        env: further environment variables.
        workers: number of worker processes.
        arguments: further options of `pointsman serve`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        directory: Path,
        database_url: str | None,
        *,
        env: Mapping[str, str] | None = None,
        workers: int = 2,
        arguments: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config_path = directory / "config.yaml"
        self.log_path = directory / "gateway.log"
        self.data_dir = directory / "data"
        self.port = free_port()
        self.workers = workers
        self.arguments = arguments
        self.database_url = database_url
        self.master_key = f"sk-{secrets.token_urlsafe(24)}"
        self.mark = uuid.uuid4().hex
        self._env = clean_environment(
            **{
                "LITELLM_MASTER_KEY": self.master_key,
                "LITELLM_SALT_KEY": f"sk-salt-{secrets.token_urlsafe(24)}",
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
                MARK: self.mark,
                **({"DATABASE_URL": database_url} if database_url else {}),
                **(env or {}),
            }
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[httpx.Client | openai.OpenAI | anthropic.Anthropic] = []
        self.config: dict[str, Any] = {}
        self.write_config(config)

    @property
    def url(self) -> str:
        """Base URL without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None, "the gateway was not started"
        return self._process.pid

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace the YAML file, at once and whole."""
        self.config = dict(config)
        temporary = self.config_path.with_suffix(".new")
        temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        temporary.replace(self.config_path)

    def log(self, lines: int = 80) -> str:
        """The last lines of what it wrote on standard output and error; what repeats itself at once is left out."""
        if not self.log_path.exists():
            return "(no log)"
        kept: list[str] = []
        recent: deque[str] = deque(maxlen=6)  # frames of a recursive traceback come in blocks of this size at most
        for line in self.log_path.read_text(errors="replace").splitlines():
            if line not in recent:
                kept.append(line)
            recent.append(line)
        return "\n".join(kept[-lines:])

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and return at once."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        command = [executable(), "serve", "--config", str(self.config_path), "--workers", str(self.workers)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--data-dir", str(self.data_dir), *self.arguments]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=self._env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process

    def start(self, timeout: float = BOOT_SECONDS) -> Gateway:
        """Start it and wait until it is ready; nothing is left running when that fails."""
        self.spawn()
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def wait_ready(self, timeout: float = BOOT_SECONDS) -> None:
        """Wait for readiness; raises with the tail of the log when it ends first or takes too long."""
        process, deadline = self._process, time.monotonic() + timeout
        assert process is not None, "the gateway was not started"
        while True:
            if process.poll() is not None:
                raise AssertionError(f"the gateway ended with status {process.returncode}:\n{self.log()}")
            if self.ready():
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"the gateway was not ready within {timeout:g} s:\n{self.log()}")
            time.sleep(0.1)

    def ready(self) -> bool:
        """Whether `GET /health/readiness` answers 200."""
        try:
            return httpx.get(f"{self.url}/health/readiness", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, timeout: float = 60) -> None:
        """SIGTERM; raises unless it ends with status 0 and leaves no process behind."""
        process = self._process
        if process is None:
            return
        self.close_clients()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            left = marked(self.mark)
            self.kill()
            raise AssertionError(f"did not stop within {timeout:g} s; running: {left}\n{self.log()}") from None
        assert status == 0, f"ended with status {status}:\n{self.log()}"
        self.assert_nothing_left()

    def assert_nothing_left(self, timeout: float = 5) -> None:
        """Raise when a process of this gateway still lives after `timeout` seconds."""
        try:
            wait_for(lambda: not marked(self.mark), timeout, "every process of the gateway is gone")
        except AssertionError:
            left = marked(self.mark)
            kill_all(self.mark)
            raise AssertionError(f"left running: {left}\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL everything that belongs to it, whatever parent it has by now."""
        self.close_clients()
        kill_all(self.mark)
        if self._process is not None:
            self._process.wait(10)

    def restart(self) -> Gateway:
        """Stop it if it runs, start it again on the same port, database and directory."""
        if self._process is not None and self._process.poll() is None:
            self.stop()
        return self.start()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, by index, as `/hot-reload/status` tells them (needs a strategy in the configuration)."""
        rows = self.status()["strategies"][0]["workers"]
        return [row["pid"] for row in sorted(rows, key=lambda row: int(row["worker"]))]

    def status(self) -> dict[str, Any]:
        """`GET /hot-reload/status`."""
        answer: dict[str, Any] = self.admin.get("/hot-reload/status").raise_for_status().json()
        return answer

    def strategy(self, name: str) -> dict[str, Any]:
        """The row of one strategy in `/hot-reload/status`."""
        return next(row for row in self.status()["strategies"] if row["name"] == name)

    def http(self, key: str | None, **kwargs: Any) -> httpx.Client:
        """A plain client that sends `key`; closed when the gateway stops."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        client = httpx.Client(base_url=self.url, headers=headers, trust_env=False, **{"timeout": 30, **kwargs})
        self._clients.append(client)
        return client

    @property
    def admin(self) -> httpx.Client:
        """A plain client with the master key."""
        for client in self._clients:
            if isinstance(client, httpx.Client) and client.headers.get("authorization") == f"Bearer {self.master_key}":
                return client
        return self.http(self.master_key)

    def openai(self, key: str | None = None, **kwargs: Any) -> openai.OpenAI:
        """The real OpenAI SDK; no retries of its own, so that a test sees what the gateway does."""
        options = {"max_retries": 0, "timeout": 30, **kwargs}
        http = httpx.Client(trust_env=False, timeout=options["timeout"])
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.master_key, http_client=http, **options)
        self._clients.append(client)
        return client

    def anthropic(self, key: str | None = None, **kwargs: Any) -> anthropic.Anthropic:
        """The real Anthropic SDK; no retries of its own."""
        options = {"max_retries": 0, "timeout": 30, **kwargs}
        http = httpx.Client(trust_env=False, timeout=options["timeout"])
        client = anthropic.Anthropic(base_url=self.url, api_key=key or self.master_key, http_client=http, **options)
        self._clients.append(client)
        return client

    def new_key(self, **fields: Any) -> str:
        """A new virtual key (`POST /key/generate`, LiteLLM's fields)."""
        answer = self.admin.post("/key/generate", json=fields)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}\n{self.log()}"
        return str(answer.json()["key"])

    def key_info(self, key: str) -> dict[str, Any]:
        """What the gateway knows of a key."""
        info: dict[str, Any] = self.admin.get("/key/info", params={"key": key}).raise_for_status().json()["info"]
        return info

    def close_clients(self) -> None:
        """Close every client that was made here."""
        while self._clients:
            self._clients.pop().close()


@pytest.fixture(scope="session")
def publisher(s3: S3Server) -> S3Publisher:
    """Publishes the shared gateway's first strategy to S3; version `1.0.0` is there before the gateway starts."""
    from support.strategy import S3Publisher

    maker = S3Publisher(s3)
    maker.publish("1.0.0")
    return maker


@pytest.fixture(scope="session")
def file_publisher(tmp_path_factory: pytest.TempPathFactory) -> FilePublisher:
    """Publishes the shared gateway's second strategy to a directory; version `1.0.0` is there before the gateway starts."""
    from support.strategy import FILE_STRATEGY, FilePublisher

    maker = FilePublisher(tmp_path_factory.mktemp("published"), FILE_STRATEGY)
    maker.publish("1.0.0")
    return maker


@pytest.fixture(scope="session")
def gateway(
    upstreams: Upstreams,
    publisher: S3Publisher,
    file_publisher: FilePublisher,
    new_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """The shared gateway: two workers, the groups of `support.topology`, a strategy from S3 and one from files."""
    from support.topology import shared_config

    config = shared_config(upstreams, publisher, file_publisher)
    instance = Gateway(config, tmp_path_factory.mktemp("gateway"), new_database())
    instance.start()
    yield instance
    instance.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the tail of a gateway's log beside a failure of a test that used it."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        values: Sequence[Any] = list(getattr(item, "funcargs", {}).values())
        for value in values:
            if isinstance(value, Gateway):
                report.sections.append((f"log of the gateway on port {value.port}", value.log()))
