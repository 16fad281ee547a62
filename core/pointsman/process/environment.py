"""What an embedder of LiteLLM has to put into the environment of its workers: what its own command line would have done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pointsman.errors import ConfigError
from pointsman.litellm_config import GatewayConfig, litellm_environment, write_effective
from pointsman.settings import PointsmanSettings

__all__ = ["candidate_aliases", "pooled_url", "worker_environment"]

DEFAULT_POOL_LIMIT = 10
DEFAULT_POOL_TIMEOUT = 60


def pooled_url(url: str, effective: Mapping[str, Any], workers: int) -> str:
    """The database URL with LiteLLM's pool settings as Prisma parameters; what the URL itself says wins.

    LiteLLM's limit is a worker's; the workers share one engine, so the engine's pool is that times the workers.
    """
    general = effective.get("general_settings") or {}
    limit = int(general.get("database_connection_pool_limit") or DEFAULT_POOL_LIMIT) * workers
    timeout = (
        general.get("database_connection_timeout") or general.get("database_connection_pool_timeout") or DEFAULT_POOL_TIMEOUT
    )
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    query.setdefault("connection_limit", str(limit))
    query.setdefault("pool_timeout", str(timeout))
    return urlunsplit(parts._replace(query=urlencode(query)))


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
    result.pop("DATABASE_URL", None)
    if database_url is not None:
        result["DATABASE_URL"] = database_url
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
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the candidates' metadata: {error}",
            code="E4203",
            where=str(path),
            mend="give LLMRouter's llm_data JSON",
        ) from error
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ConfigError(
            "not an object of candidates", code="E4203", where=str(path), mend='write {"name": {"model": ..., ...}, ...}'
        )
    return {name: str(entry["model"]) for name, entry in data.items() if entry.get("model")}
