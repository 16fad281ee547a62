"""What an embedder of LiteLLM has to put into the environment of its workers: what its own command line would have done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointsman.database_url import parts_of
from pointsman.errors import ConfigError
from pointsman.litellm_config import GatewayConfig, litellm_environment, write_effective
from pointsman.litellm_config.candidates import aliases_of, read_candidates
from pointsman.settings import PointsmanSettings

__all__ = ["candidate_aliases", "most_connections", "pooled_url", "worker_environment"]

DEFAULT_POOL_LIMIT = 10
DEFAULT_POOL_TIMEOUT = 60
_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
# With these a worker's LiteLLM would replace its query engine to renew a token, which the supervisor does, or start another.
_NOT_FOR_WORKERS = ("AZURE_POSTGRESQL_AUTH", "DATABASE_URL_READ_REPLICA", "IAM_TOKEN_DB_AUTH")


def pooled_url(url: str, effective: Mapping[str, Any], workers: int) -> str:
    """The database URL with LiteLLM's `database_*` settings as parameters; what the URL itself says wins.

    LiteLLM's limit is a worker's; the workers share one engine, so the engine's pool is that times the workers. A limit in the
    URL is the whole engine's.
    """
    general = effective.get("general_settings") or {}
    timeout = general.get("database_connection_timeout") or general.get("database_connection_pool_timeout")
    wanted: dict[str, Any] = {
        "connection_limit": int(general.get("database_connection_pool_limit") or DEFAULT_POOL_LIMIT) * workers,
        "pool_timeout": math.ceil(float(timeout or DEFAULT_POOL_TIMEOUT)),
    }
    for name in ("connect_timeout", "socket_timeout", "max_idle_connection_lifetime"):
        if (value := general.get(f"database_{name}")) is not None:
            wanted[name] = math.ceil(float(value))
    if general.get("database_disable_prepared_statements") is True:
        wanted["pgbouncer"] = "true"
    extra = general.get("database_extra_connection_params") or {}
    parts = parts_of(url).missing([(name, str(value)) for name, value in (wanted | extra).items()])
    options = [parts.get("options") or ""]
    options += [
        f"-c {name}={int(float(general[f'database_{name}']) * 1000)}"
        for name in _TIMEOUTS
        if general.get(f"database_{name}") is not None and f"{name}=" not in options[0]
    ]
    text = " ".join(option for option in options if option)
    return str(parts.having(options=text) if text else parts)


def most_connections(url: str, workers: int, *, decisions: bool, strategies: bool) -> int:
    """How many connections to the database an instance has at most.

    The engine's pool; one a worker to write decision records; in the supervisor one for the upkeep of the records, one for
    feedback, two for the strategies' desired state, two to build indexes. (Migrations have two as well, before the others
    start.)

    Args:
        url: with its `connection_limit`, as `pooled_url` returns it.
        workers: how many.
        decisions: whether records are kept.
        strategies: whether there are any.
    """
    engine = int(parts_of(url).get("connection_limit") or DEFAULT_POOL_LIMIT)
    return engine + (workers + 2 if decisions else 0) + (2 if strategies else 0) + 2


def worker_environment(
    config: GatewayConfig,
    env: Mapping[str, str],
    *,
    run_dir: Path,
    workers: int,
    database_url: str | None,
    engine: Mapping[str, str],
) -> dict[str, str]:
    """Environment of the preloader and the workers; writes the effective configuration into `run_dir`."""
    result = dict(env)
    result.update(litellm_environment(config, env))
    result["CONFIG_FILE_PATH"] = str(write_effective(config, run_dir))
    result["NUM_WORKERS"] = str(workers)
    # One request's scores are small; threads of the linear algebra library would only contend with the other workers.
    result.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in ("DATABASE_URL", *_NOT_FOR_WORKERS):
        result.pop(name, None)
    if database_url is not None:
        result["DATABASE_URL"] = database_url  # LiteLLM asks only whether there is one; its client reaches the engine
        result.update(engine)
    if workers > 1:
        metrics = run_dir / "prometheus"
        metrics.mkdir(mode=0o700, exist_ok=True)
        result.setdefault("PROMETHEUS_MULTIPROC_DIR", str(metrics))
    return result


def candidate_aliases(settings: PointsmanSettings) -> dict[str, dict[str, str]]:
    """Strategy -> (candidate's name -> deployment's model), from LLMRouter's metadata files (`llm_data_path`).

    The format is LLMRouter's `llm_data` JSON: an object of candidates, each with an optional `model`.

    Raises:
        ConfigError: E4203, the file cannot be read or has another shape.
    """
    return {
        name: _aliases(Path(strategy.llm_data_path)) if strategy.llm_data_path else {}
        for name, strategy in settings.strategies.items()
    }


def _aliases(path: Path) -> dict[str, str]:
    try:
        return aliases_of(read_candidates(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the candidates' metadata: {error}",
            code="E4203",
            where=str(path),
            mend="give LLMRouter's llm_data JSON",
        ) from error
