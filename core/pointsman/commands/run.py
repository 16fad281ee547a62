"""`pointsman up` and `pointsman serve`: run an instance until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path

from pointsman import litellm_config
from pointsman.errors import ProcessError
from pointsman.migrations import install
from pointsman.process.progress import Progress
from pointsman.settings import default_data_dir
from pointsman.supervisor import Options, Supervisor

__all__ = ["serve", "up"]

LOG_NAME = "gateway.log"
LOG_BYTES = 50 * 2**20


def up(
    *,
    config: Path | None,
    profile: str | None,
    host: str,
    port: int,
    data_dir: Path | None,
    env: Mapping[str, str],
) -> None:
    """Run a whole gateway on this machine: its own Postgres, its own keys, one worker.

    Raises:
        PointsmanError: what failed.
    """
    progress = Progress()
    where = (data_dir or default_data_dir(env)).expanduser().absolute()
    progress.say("Pointsman is starting")
    if install.problems():
        with progress.step("set-up: query engine and database client"):
            install.ensure_installed(progress.detail)
    detect = config is None and profile in (None, "local")
    config = config or litellm_config.profile_path(profile or "local")
    options = Options(
        config=config,
        env=env,
        host=host,
        port=port,
        workers=1,
        data_dir=where,
        embedded=True,
        detect=detect,
        output=where / LOG_NAME,
    )
    _rotate(where / LOG_NAME)
    _run(Supervisor(options, progress, _announce_up))


def serve(
    *,
    config: Path,
    workers: int,
    host: str,
    port: int,
    data_dir: Path | None,
    database_wait: float,
    migrate: bool = True,
    env: Mapping[str, str],
) -> None:
    """Run an instance of a production gateway: nothing embedded, `DATABASE_URL` and keys from the environment.

    Raises:
        PointsmanError: what failed.
    """
    where = (data_dir or default_data_dir(env)).expanduser().absolute()
    options = Options(
        config=config,
        env=env,
        host=host,
        port=port,
        workers=workers,
        data_dir=where,
        embedded=False,
        database_wait=database_wait,
        migrate=migrate,
    )
    _run(Supervisor(options, Progress(), _announce_serve))


def _rotate(log: Path) -> None:
    """Start a new log when the old one is large; one old one is kept."""
    try:
        if log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ProcessError(
            f"cannot use the data directory: {error.strerror}",
            code="E4602",
            where=str(log.parent),
            mend="choose a directory of your own with --data-dir",
        ) from error


def _run(supervisor: Supervisor) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(supervisor.run())
        supervisor.progress.say("stopped")
    finally:
        supervisor.close_logs()


def _base_url(options: Options) -> str:
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104 - compares, binds nothing
    return f"http://[{host}]:{options.port}" if ":" in host else f"http://{host}:{options.port}"


def _announce_serve(supervisor: Supervisor) -> None:
    supervisor.progress.say(f"ready: {_base_url(supervisor.options)}")


def _announce_up(supervisor: Supervisor) -> None:
    options, secrets = supervisor.options, supervisor.secrets
    base = _base_url(options)
    key_path = secrets.master_key_path if secrets is not None else None
    key = f"$(cat {shlex.quote(str(key_path))})" if key_path is not None else "$LITELLM_MASTER_KEY"
    models = supervisor.config.effective.get("model_list") or [{}]
    model = str(models[0].get("model_name"))
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    supervisor.progress.say(
        f"""
Pointsman is ready.
  Base URL    {base}/v1
  Master key  {key_path if key_path is not None else "as LITELLM_MASTER_KEY says"}
  Admin UI    {base}/ui   (user admin, password: the master key)
  Data        {options.data_dir}
  Log         {options.output}

  Try it:
  curl -s {base}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d {shlex.quote(body)}

  Ctrl-C stops it; the data stay."""
    )
