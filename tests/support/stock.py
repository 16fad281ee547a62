"""Stock LiteLLM, as its own command line starts it, on a database: what an installation was before it became Pointsman.

Prisma's native engine cannot be had everywhere, so it finds a query engine that is already there: ours. All else is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sysconfig
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from pointsman.litellm_config import litellm_environment, load
from pointsman.migrations.engine import QueryEngine
from support.gateway import clean_environment, free_port
from support.processes import MARK, kill_all, wait_for

__all__ = ["StockLiteLLM"]

BOOT_SECONDS = 180.0


class StockLiteLLM:
    """A context manager: runs inside the block.

    Args:
        config: what goes into its YAML file.
        directory: its own.
        database_url: with LiteLLM's tables in it; it does not migrate.
        keys: LITELLM_MASTER_KEY and LITELLM_SALT_KEY, and whatever else it shall find in its environment.
        workers: processes that serve.
    """

    def __init__(
        self, config: Mapping[str, Any], directory: Path, database_url: str, keys: Mapping[str, str], workers: int = 1
    ) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = directory / "stock.log"
        self.port = free_port()
        self._config = directory / "config.yaml"
        self._config.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        self.mark = uuid.uuid4().hex
        self._workers = workers
        self._keys = dict(keys)
        self._url = database_url
        folder = directory / "engine"
        folder.mkdir(mode=0o700)
        self._engine = QueryEngine(database_url, folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> StockLiteLLM:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._engine.start(), self._loop).result(60)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        """Start its command line and wait until it is ready; by itself only where that was killed."""
        environment = clean_environment(**self._keys, **{MARK: self.mark})
        environment |= litellm_environment(load(self._config, environment), environment) | dict(self._engine.environment)
        environment |= self._schema_engine() | {"DATABASE_URL": self._url, "DISABLE_SCHEMA_UPDATE": "true"}
        command = [str(Path(sysconfig.get_path("scripts")) / "litellm"), "--config", str(self._config)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--num_workers", str(self._workers)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._ready, BOOT_SECONDS, f"stock LiteLLM is ready; see {self.log_path}", interval=0.2)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            kill_all(self.mark)
            self._process.wait(10)
        asyncio.run_coroutine_threadsafe(self._engine.stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def http(self, key: str) -> httpx.Client:
        """A client that sends `key`."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60, trust_env=False)

    def log(self) -> str:
        """The end of what it wrote."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-60:])

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"stock LiteLLM ended:\n{self.log()}"
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/readiness", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def _schema_engine(self) -> dict[str, str]:
        """Its comparison of schemas at each start would download an engine; a program that does nothing stands in."""
        stub = self.directory / "schema-engine"
        stub.write_text("#!/bin/sh\necho schema-engine-cli\n", encoding="utf-8")
        stub.chmod(0o755)
        return {
            "PRISMA_CLI_QUERY_ENGINE_TYPE": "binary",
            "PRISMA_QUERY_ENGINE_LIBRARY": str(stub),
            "PRISMA_SCHEMA_ENGINE_BINARY": str(stub),
        }
