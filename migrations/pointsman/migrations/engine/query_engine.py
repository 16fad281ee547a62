"""Owns the one query engine of an instance: starts it, waits until it is ready, restarts it when it dies, stops it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointsman.database_url import check
from pointsman.errors import DatabaseError, ProcessError
from pointsman.migrations.engine.joiner import write_joiner, write_openssl_stub
from pointsman.migrations.install.layout import Layout, node_binary
from pointsman.settings import environment

__all__ = ["QueryEngine"]

logger = logging.getLogger("pointsman.engine")

START_TIMEOUT = 20.0
"""Seconds until a started engine must be ready; 0.2 is usual."""

STOP_TIMEOUT = 8.0
"""Seconds until a stopped engine must be gone; it gives requests in flight 5. Then it is killed."""

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 5.0
"""Seconds before the first restart, and at most; doubling in between."""

PATIENCE = 300.0
"""Seconds that a transaction of spend waits for a database that is away, and that the outcome of a COMMIT is looked for."""

MEMORY = 1024
"""MiB that the engine may have for JavaScript's objects, and twice that and `SET_ASIDE` in all; some 100 MiB in all are usual.
One that wants more, for an answer of a million rows, ends and is replaced."""

SET_ASIDE = 512
"""MiB that Node sets aside without using them, which count all the same."""

STEADY = 30.0
"""An engine that ran this many seconds was fine; the next restart is quick again."""

LINE_LIMIT = 1 << 20
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "ready": logging.INFO,
    "replaced": logging.INFO,
    "warning": logging.WARNING,
}
SERVER = Path(__file__).resolve().parent / "server" / "main.mjs"
# What Node itself reads; the URL brings all that the driver needs, and the rest of the environment is nobody's business.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR")


class QueryEngine:
    """One engine for one database, shared by all workers.

    Args:
        database_url: in Prisma's dialect; ``connection_limit`` and ``pool_timeout`` are honoured for the whole instance.
        run_dir: private directory of this run; the engine's files go below it.
        env: the process environment; looked up when absent.
        patience: seconds, see `PATIENCE`.
        memory: MiB, see `MEMORY`.
    """

    def __init__(
        self,
        database_url: str,
        run_dir: Path,
        env: Mapping[str, str] | None = None,
        *,
        patience: float = PATIENCE,
        memory: int = MEMORY,
    ) -> None:
        self._database_url = database_url
        self._patience = patience
        self._memory = memory
        self._directory = run_dir / "engine"
        self._env = environment() if env is None else dict(env)
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._started_at = 0.0
        self._engine_pid: int | None = None
        self._restarts = 0
        self._last_error: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make LiteLLM's database client use this engine; valid before `start`."""
        variables = {"PRISMA_QUERY_ENGINE_BINARY": str(self._joiner)}
        if shutil.which("openssl", path=self._env.get("PATH")) is None:
            variables["PATH"] = f"{self._env.get('PATH') or '/usr/local/bin:/usr/bin:/bin'}:{self._tools}"
        return variables

    async def start(self) -> None:
        """Start it and wait until it answers. The database need not be there yet: queries then fail with P1001.

        Raises:
            DatabaseError: E4504 for a malformed URL; E4503 when it does not start, with its reason.
            ProcessError: E4604 when set-up has not run.
        """
        check(self._database_url)
        self._ports.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(write_joiner, self._joiner, self._ports, self._env)
        write_openssl_stub(self._tools / "openssl")
        self._stopping.clear()
        await self._spawn()

    async def run(self) -> None:
        """Restart the engine whenever it dies, on the same ports; returns after `stop`."""
        delay = BACKOFF_FIRST
        while not self._stopping.is_set():
            process = self._process
            if process is not None:
                await process.wait()
                if self._stopping.is_set():
                    return
                if time.monotonic() - self._started_at > STEADY:
                    delay = BACKOFF_FIRST
                self._last_error = f"exited with code {process.returncode}"
                logger.error("the query engine died (exit code %s); restarting it in %.1f s", process.returncode, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return
            delay = min(delay * 2, BACKOFF_MOST)
            try:
                await self._spawn()
                self._restarts += 1
            except (DatabaseError, ProcessError) as error:
                self._last_error = str(error)
                logger.error("the query engine does not start: %s", error)

    async def stop(self) -> None:
        """Let requests in flight finish, then end it; idempotent, and harmless before `start`."""
        self._stopping.set()
        process, self._process = self._process, None
        if process is not None:
            await self._end(process)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._readers.clear()

    def status(self) -> dict[str, Any]:
        """JSON-able state: state, pid, engine_pid (the process that does the work, a child of the former), restarts of either,
        uptime in seconds, ports of the joined clients, last_error.
        """
        process = self._process
        alive = process is not None and process.returncode is None
        return {
            "state": "stopped"
            if self._stopping.is_set() or not self._started_at
            else "ready"
            if alive and self._ready.is_set()
            else "restarting",
            "pid": process.pid if process is not None and alive else None,
            "engine_pid": self._engine_pid if process is not None and alive else None,
            "restarts": self._restarts,
            "uptime": round(time.monotonic() - self._started_at, 1) if alive else 0.0,
            "ports": sorted(int(entry.name) for entry in self._ports.glob("[1-9]*")) if self._ports.is_dir() else [],
            "last_error": self._last_error,
        }

    @property
    def _joiner(self) -> Path:
        return self._directory / "query-engine"

    @property
    def _ports(self) -> Path:
        return self._directory / "ports"

    @property
    def _tools(self) -> Path:
        return self._directory / "bin"

    async def _spawn(self) -> None:
        layout = Layout.current()
        if not (layout.engine_modules / "node_modules").is_dir() or not layout.schema.is_file():
            raise ProcessError(
                "The query engine is not installed.",
                code="E4604",
                where=str(layout.root),
                mend="Run: python -m pointsman.migrations.install",
            )
        self._ready.clear()
        process = await asyncio.create_subprocess_exec(
            str(node_binary()),
            f"--max-old-space-size={self._memory}",
            str(SERVER),
            str(layout.engine_modules),
            cwd=self._directory,
            env={name: self._env[name] for name in PASSED_ON if name in self._env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            start_new_session=True,  # Ctrl-C is for the supervisor, which stops the engine last
        )
        with contextlib.suppress(ProcessLookupError):  # it died at once; the wait below tells
            limit = (2 * self._memory + SET_ASIDE) << 20
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))  # WASM's memory is not JavaScript's
        if self._stopping.is_set():  # `stop` came while the process was being made, and has not seen it
            await self._end(process)
            return
        self._process = process
        self._started_at = time.monotonic()
        assert process.stdin is not None  # noqa: S101 - narrows the types; asked for above
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        self._readers = [
            asyncio.create_task(self._read(process.stdout, logging.WARNING)),
            asyncio.create_task(self._read(process.stderr, logging.ERROR)),
        ]
        settings = {
            "databaseUrl": self._database_url,
            "schema": str(layout.schema),
            "ports": str(self._ports),
            "patience": int(self._patience * 1000),
        }
        try:
            # The pipe stays open: its end tells the engine that we are gone.
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died at once; the wait below tells
        try:
            await self._wait_ready(process)
        except BaseException:
            await self._end(process)
            raise

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        waits = {asyncio.ensure_future(self._ready.wait()), asyncio.ensure_future(process.wait())}
        try:
            await asyncio.wait(waits, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._ready.is_set():
            return
        if process.returncode is not None:
            await asyncio.gather(*self._readers)  # its last words
            what = f"The query engine ended with exit code {process.returncode}: {self._last_error or 'no reason given'}."
        else:
            what = f"The query engine was not ready after {START_TIMEOUT:.0f} s."
        raise DatabaseError(
            what, code="E4503", where=str(SERVER), mend="Run `pointsman doctor`; the log has the engine's own words."
        )

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _read(self, stream: asyncio.StreamReader, fallback: int) -> None:
        """Pass the engine's lines on to the log until it ends."""
        while True:
            try:
                raw = await stream.readline()
            except ValueError:  # longer than LINE_LIMIT; the rest of it follows as lines of its own
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").strip()
            try:
                record = json.loads(line)
                level, message = str(record.pop("level")), str(record.pop("message"))
            except (ValueError, KeyError, AttributeError, TypeError):
                if line:
                    logger.log(fallback, "%s", line)
                continue
            if level == "ready":
                self._ready.set()
                self._engine_pid = int(record["pid"])
            elif level == "replaced":
                self._restarts += 1
                self._engine_pid = int(record["pid"])
                self._last_error = str(record["reason"])
            elif level == "critical":
                self._last_error = str(record.get("reason") or message).splitlines()[0]
            details = " ".join(f"{key}={value}" for key, value in record.items())
            logger.log(LEVELS.get(level, logging.ERROR), "%s", f"{message} {details}".strip())
