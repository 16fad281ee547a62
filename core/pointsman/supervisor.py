"""The supervisor: one process an instance, which owns every side effect and starts the workers.

It owns the listening socket, embedded Postgres (`up`), migrations, the query engine, the polling of strategies, the worker
pool and the drain. It never imports LiteLLM. What it starts is stopped in reverse order, whatever happens in between.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pointsman import litellm_config
from pointsman.callbacks.process_spans import ProcessSpans
from pointsman.custom_router.session_keys import session_secret
from pointsman.database_credentials import DatabaseAccess
from pointsman.database_url import migration_url, parts_of
from pointsman.decisions.feedback import Feedback
from pointsman.embedded_postgres import EmbeddedPostgres
from pointsman.errors import ConfigError, ProcessError, RequestError
from pointsman.litellm_config import GatewayConfig
from pointsman.migrations.engine import QueryEngine
from pointsman.migrations.indexes import build_indexes_task
from pointsman.process.config_sync import ConfigSync
from pointsman.process.database import keep_partitions, schema
from pointsman.process.environment import candidate_aliases, most_connections, pooled_url, worker_environment
from pointsman.process.feed import MetricsFeed
from pointsman.process.listen import bind, refuse
from pointsman.process.log_lines import LogLines
from pointsman.process.pool import WorkerPool
from pointsman.process.progress import Progress
from pointsman.process.remote import RemoteService
from pointsman.process.secrets import Secrets, load_or_create
from pointsman.process.sharing import Sharing
from pointsman.process.strategies import StrategyService, groups_in_use

__all__ = ["Options", "Supervisor"]

logger = logging.getLogger("pointsman.supervisor")

STOP_MARGIN = 30.0
"""Seconds beyond the drain that workers get to flush; then they are killed."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says.

    Attributes:
        config: the user's YAML file; never written to.
        env: the process environment (`.env` merged in by `up`).
        host, port: where to listen.
        workers: how many.
        data_dir: keys, database (embedded) and verified bundles live here.
        embedded: run Postgres ourselves and make keys (`up`); else DATABASE_URL and the keys come from outside (`serve`).
        detect: add models of the provider keys and local servers found here.
        output: file for what the workers print; None: where we print.
        database_wait: seconds to wait for a database that is not there yet.
        migrate: change the schema where it is behind; else refuse to start.
    """

    config: Path
    env: Mapping[str, str]
    host: str
    port: int
    workers: int
    data_dir: Path
    embedded: bool
    detect: bool = False
    output: Path | None = None
    database_wait: float = 30.0
    migrate: bool = True


class Supervisor:
    """Runs one instance; `await run()` returns when it was asked to stop (SIGINT, SIGTERM, SIGHUP) and everything is down.

    Raises (from `run`):
        PointsmanError: what failed at the start, or the workers cannot be kept alive.
    """

    def __init__(self, options: Options, progress: Progress, on_ready: Callable[[Supervisor], None]) -> None:
        self.options = options
        self.progress = progress
        self.secrets: Secrets | None = None
        self._started = time.time()
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._config: GatewayConfig | None = None
        self._log_lines: LogLines | None = None
        self._pool: WorkerPool | None = None
        self._strategies: StrategyService | None = None
        self._remote: RemoteService | None = None
        self._sharing: Sharing | None = None
        self._aliases: dict[str, dict[str, str]] = {}
        self._found: tuple[litellm_config.Detected, ...] = ()
        self._config_sync: ConfigSync | None = None
        self._env: dict[str, str] = {}
        self._session_secret = b""
        self._database_url: str | None = None
        self._feedback: Feedback | None = None
        self._postgres: EmbeddedPostgres | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def config(self) -> GatewayConfig:
        """The configuration in service."""
        assert self._config is not None  # noqa: S101 - narrows the type; set first thing in `run`
        return self._config

    @property
    def _own(self) -> Path:
        """Where this instance keeps its files: of `serve` there may be several with one data directory."""
        return self.options.data_dir if self.options.embedded else self.options.data_dir / f"serve-{self.options.port}"

    async def run(self) -> None:
        """Start, serve, drain, stop."""
        self._load()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        stopped = asyncio.ensure_future(self._stop.wait())
        async with AsyncExitStack() as stack:
            stack.callback(stopped.cancel)
            starting = asyncio.ensure_future(self._start(stack))
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return
            pool = await starting
            self._tell_start(pool)
            self._on_ready(self)
            failed = asyncio.ensure_future(pool.failed())
            stack.callback(failed.cancel)
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            self.progress.say("stopping: not ready, then draining")

    @property
    def log_lines(self) -> LogLines:
        """The instance's log lines."""
        assert self._log_lines is not None  # noqa: S101 - narrows the type; set with the configuration
        return self._log_lines

    def close_logs(self) -> None:
        """Write what waits of the log lines; after `run`, however that ended."""
        if self._log_lines is not None:
            self._log_lines.close()

    def _tell_start(self, pool: WorkerPool) -> None:
        assert self._strategies is not None  # noqa: S101 - narrows the type; set before the pool starts
        url = f"http://{self.options.host}:{self.options.port}"
        self.log_lines.started(len(pool.workers), url, self._strategies.status(), self._groups())

    def _load(self) -> None:
        """Keys first: the configuration refers to them."""
        options, env = self.options, dict(self.options.env)
        if options.embedded:
            self.secrets = load_or_create(options.data_dir, env)
            env |= self.secrets.environment()
        self._env = env
        self._found = tuple(litellm_config.detect(env)) if options.detect else ()
        for item in self._found:
            self.progress.detail(f"found {item.name}: {item.where}")
        self._config = config = litellm_config.load(options.config, env, extra=self._found)
        self._log_lines = lines = LogLines(config, env, options.output, person=options.embedded)
        if not options.embedded and not lines.text:
            self.progress.logger = logger
        for warning in config.warnings:
            self.progress.say(f"  ! {warning}")
        if config.master_key is None:
            raise ConfigError(
                "there is no master key",
                code="E4204",
                where=f"{options.config}: general_settings.master_key",
                mend="export LITELLM_MASTER_KEY=sk-... (long and random)",
            )

        self._aliases = candidate_aliases(config.settings)

    async def _start(self, stack: AsyncExitStack) -> WorkerPool:
        """Start everything; what is pushed on the stack is stopped in reverse order, so it is pushed before it starts."""
        options, config, progress = self.options, self.config, self.progress
        sock = bind(options.host, options.port)
        stack.callback(sock.close)
        run_dir = Path(tempfile.mkdtemp(prefix="pointsman-"))
        stack.callback(shutil.rmtree, run_dir, ignore_errors=True)
        self.log_lines.share(run_dir)
        url, direct = await self._database(stack, run_dir)
        self._database_url = url
        self._feedback = Feedback(url, config.settings.decisions)
        engine = QueryEngine(self._pooled(url), run_dir) if url is not None else None
        if engine is not None:
            stack.push_async_callback(engine.stop)
        environment = worker_environment(
            config,
            self._env,
            run_dir=run_dir,
            workers=options.workers,
            database_url=url,
            engine=dict(engine.environment) if engine is not None else {},
        )
        self._pool = pool = WorkerPool(
            run_dir, sock.fileno(), options.workers, environment, self._welcome, self._call, options.output
        )
        self._session_secret = session_secret(environment, config.master_key)
        self._sharing = sharing = Sharing.of(lambda: pool.workers, config.settings.resilience, config.effective, self._env)
        sharing.attach(pool)
        cache_dir = self._own / "bundles"
        if config.settings.strategies:
            _must_be_writable(cache_dir)
        callbacks = config.effective.get("callback_settings") or {}
        spans = ProcessSpans.from_environment(self._env, callbacks.get("otel"))
        stack.push_async_callback(asyncio.to_thread, spans.close)
        self._remote = remote = RemoteService(config.settings, run_dir, cache_dir, self._env)
        self._strategies = strategies = StrategyService(
            config.settings,
            cache_dir,
            url,
            self._groups,
            pool.broadcast,
            lambda: pool.workers,
            remote,
            self._models,
            self._aliases,
            spans.reload,
        )
        self._config_sync = ConfigSync(config, self._env, self._found, run_dir, pool)
        stack.push_async_callback(self._cancel_tasks)
        stack.push_async_callback(strategies.stop)
        stack.push_async_callback(remote.stop)
        stack.push_async_callback(self._drain, pool, sock)

        self._spawn(sharing.run())  # workers are told where the sessions are before they serve
        await pool.start()  # imports LiteLLM in the background, the longest step; the rest happens meanwhile
        if self._postgres is not None:
            self._spawn(self._postgres.run())
        if direct is not None and engine is not None:
            await self._prepare(direct, engine)
        if config.settings.strategies:
            with progress.step("strategies"):
                await remote.start()
                await strategies.start()
        with progress.step(f"LiteLLM, {options.workers} worker(s)"):
            pool.release()
            await pool.wait_until(lambda: all(worker.ready for worker in pool.workers))
        if direct is not None and options.migrate:
            self._spawn(build_indexes_task(direct))
        self._spawn(self._config_sync.run())
        self._spawn(MetricsFeed(strategies.status, self._config_sync.status, lambda: pool.workers, sharing.status).run())
        return pool

    def _models(self) -> Sequence[Mapping[str, Any]]:
        assert self._config_sync is not None  # noqa: S101 - narrows the type; set before anybody asks
        return self._config_sync.models

    def _groups(self) -> dict[str, str]:
        assert self._config_sync is not None  # noqa: S101 - narrows the type; set before anybody asks
        return groups_in_use(self.config.settings, self._config_sync.models)

    async def _database(self, stack: AsyncExitStack, run_dir: Path) -> tuple[str | None, str | None]:
        """The database's URL and the one to change its schema by; passwords that change are kept fresh from here on."""
        if self.options.embedded:
            options = self.options
            postgres = EmbeddedPostgres(options.data_dir, address=f"{options.host}:{options.port}")
            stack.push_async_callback(postgres.stop)
            with self.progress.step("Postgres"):
                own = await postgres.start()
            self._postgres = postgres
            return own, own
        url = self.config.database_url
        if url is None:
            self.progress.say("  ! no DATABASE_URL: no virtual keys, no spend, no decision records")
            return None, None
        if self._env.get("DATABASE_URL_READ_REPLICA"):
            self.progress.say("  ! DATABASE_URL_READ_REPLICA is not used: everything goes to DATABASE_URL")
        access = DatabaseAccess(self._env, run_dir)
        if access.changing and parts_of(url).password is not None:
            self.progress.say("  ! the database URL has a password, so neither a password file nor tokens are used for it")
        direct = migration_url(self._env, url) or url
        urls = await asyncio.to_thread(access.url, url), await asyncio.to_thread(access.url, direct)
        if access.changing:
            self._spawn(access.run())
        return urls

    def _pooled(self, url: str) -> str:
        config, workers = self.config, self.options.workers
        pooled = pooled_url(url, config.effective, workers)
        strategies, decisions = bool(config.settings.strategies), config.settings.decisions.enabled
        most = most_connections(pooled, workers, decisions=decisions, strategies=strategies)
        self.progress.detail(f"database connections: {most} at most")
        return pooled

    async def _prepare(self, url: str, engine: QueryEngine) -> None:
        """The database's schema, then what asks it."""
        with self.progress.step("database schema"):
            await schema(url, self.progress.detail, wait=self.options.database_wait, change=self.options.migrate)
        with self.progress.step("query engine"):
            await engine.start()
        self._spawn(engine.run())
        if self.config.settings.decisions.enabled:
            self._spawn(keep_partitions(url, self.config.settings.decisions.retention_days))

    async def _drain(self, pool: WorkerPool, sock: socket.socket) -> None:
        shutdown = self.config.settings.shutdown
        refused = asyncio.ensure_future(refuse(sock, shutdown.not_ready + 1))
        await pool.stop(shutdown.not_ready + shutdown.grace + STOP_MARGIN)
        refused.cancel()
        await asyncio.gather(refused, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("background task failed: %s", error, exc_info=error)

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _welcome(self) -> dict[str, Any]:
        """The first message to a worker: what it needs before it serves."""
        assert self._strategies is not None  # noqa: S101 - narrows the type; both are set before the pool starts
        assert self._config_sync is not None  # noqa: S101
        assert self._remote is not None  # noqa: S101
        return {
            "settings": self.config.settings.model_dump_json(),
            "database_url": self._database_url,
            "spend_journal": None if self._database_url is None else str(self._own / "spend-journal"),
            "python_path": list(self.config.python_path),
            "aliases": self._aliases,
            "started": self._started,
            "models": self._config_sync.models,
            "snapshots": self._strategies.snapshots(),
            "remote": self._remote.socket,
            "sessions": self._session_secret.hex(),
            "logs": self.log_lines.for_worker(self._database_url),
        }

    async def _call(self, method: str, params: Mapping[str, Any]) -> Any:
        """Answer a worker's endpoint."""
        assert self._strategies is not None  # noqa: S101 - narrows the type; both are set before the pool starts
        assert self._config_sync is not None  # noqa: S101
        if method == "status":
            return {"strategies": self._strategies.status(), "config": self._config_sync.status()}
        if method == "logs":
            assert self._pool is not None  # noqa: S101
            return self.log_lines.change(params, self._pool.broadcast)
        if method == "feedback":
            assert self._feedback is not None  # noqa: S101
            return asdict(await self._feedback.give(params["decision_id"], params["key_hash"], params["score"]))
        if method == "sharing":
            assert self._sharing is not None  # noqa: S101
            return self._sharing.status()
        if method == "reload":
            return await self._strategies.reload(params["name"])
        if method == "rollback":
            return await self._strategies.rollback(params["name"], params["actor"], params["reason"])
        raise RequestError(f"no method {method!r}", code="E4004")


def _must_be_writable(directory: Path) -> None:
    """The verified copies of bundles go there; without them an instance could not start while S3 is away."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return
    except OSError as error:
        raise ProcessError(
            f"cannot write to the data directory: {error.strerror}",
            code="E4602",
            where=str(directory),
            mend="choose a directory of your own with --data-dir",
        ) from error
