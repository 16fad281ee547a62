"""`load`, `check`, `write_effective`: the user's YAML file -> typed settings and what LiteLLM is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pointsman.cascade_settings import CASCADE_KINDS
from pointsman.litellm_config.affinity import check_affinity
from pointsman.litellm_config.callbacks import check_callbacks, named_callbacks
from pointsman.litellm_config.cascades import check_cascades
from pointsman.litellm_config.checks import (
    check_environment,
    check_references,
    check_routing,
    check_sections,
    resolve,
)
from pointsman.litellm_config.detect import Detected
from pointsman.litellm_config.effective import ENVIRONMENT, make_effective, write_yaml
from pointsman.litellm_config.models import check_models
from pointsman.litellm_config.policies import check_policies
from pointsman.litellm_config.problems import InvalidConfigError, Problem
from pointsman.litellm_config.section import read_settings
from pointsman.litellm_config.source import Source, read_source
from pointsman.litellm_config.strategies import check_strategies, translate
from pointsman.settings import PointsmanSettings
from pointsman.telemetry_settings import TraceSettings

__all__ = ["EFFECTIVE_NAME", "GatewayConfig", "check", "litellm_environment", "load", "write_effective"]

EFFECTIVE_NAME = "config.yaml"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """A configuration that can be used.

    Attributes:
        source: the user's file.
        settings: the `pointsman:` section, environment overrides included.
        effective: what LiteLLM is given.
        python_path: directories that callbacks and plugins named in the file are imported from; append them to `sys.path`.
        database_url: from `general_settings.database_url`, else from `DATABASE_URL`.
        master_key: LiteLLM's master key, if the file or the environment has one by now.
        files: the file and its includes: what to watch.
        warnings: problems that do not keep the gateway from starting.
    """

    source: Path
    settings: PointsmanSettings
    effective: dict[str, Any] = field(repr=False)
    python_path: tuple[str, ...]
    database_url: str | None = field(repr=False)
    master_key: str | None = field(default=None, repr=False)
    files: tuple[Path, ...] = ()
    warnings: tuple[Problem, ...] = ()


def check(path: Path, env: Mapping[str, str]) -> list[Problem]:
    """All problems of a file and its includes, errors and warnings, in the order of the files and lines. Never raises."""
    return _examine(path, env, ())[1]


def load(path: Path, env: Mapping[str, str], *, extra: Iterable[Detected] = ()) -> GatewayConfig:
    """Read, check and translate a file.

    Args:
        path: the user's YAML file; it is only read.
        env: the environment: overrides, references, `DATABASE_URL`.
        extra: found by `detect`; its models are added where the file has none of the name.

    Raises:
        InvalidConfigError: (a `ConfigError`) with every problem in `.problems`.
    """
    config, problems = _examine(path, env, extra)
    if config is None:
        raise InvalidConfigError(Path(path), problems)
    return config


def write_effective(config: GatewayConfig, run_dir: Path) -> Path:
    """Write the effective configuration to `run_dir/config.yaml`, mode 0600, whole or not at all; returns its path.

    Raises:
        ProcessError: E4602, it cannot be written.
    """
    path = Path(run_dir) / EFFECTIVE_NAME
    header = f"Made by Pointsman from {config.source}.\nEdit that file; changes here are overwritten."
    write_yaml(config.effective, path, header.encode("ascii", "backslashreplace").decode())
    return path


def litellm_environment(config: GatewayConfig, env: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to the environment of LiteLLM's processes. What the user has set is left out, and so wins."""
    variables = {item.name: item.value for item in ENVIRONMENT if item.name not in env}
    litellm = config.effective.get("litellm_settings") or {}
    if _exports_traces(litellm) or any(name.startswith("OTEL_") for name in env):
        sampling = _sampling(config.settings.telemetry.traces)
        if sampling.keys().isdisjoint(env):  # half of ours and half of the user's would be nobody's
            variables |= sampling
    else:
        for name in ("LITELLM_OTEL_V2", "OTEL_SEMCONV_STABILITY_OPT_IN", "OTEL_SERVICE_NAME"):
            variables.pop(name, None)  # asked for by nobody, it would print every span to standard output
    return variables


def _sampling(traces: TraceSettings) -> dict[str, str]:
    """The SDK's variables that make the sampler which the settings describe."""
    if traces.failures:
        return {"OTEL_TRACES_SAMPLER": "always_on"}  # what is dropped is dropped when it is known not to have failed
    if traces.ratio == 1.0 and traces.parent:
        return {}
    name = "parentbased_traceidratio" if traces.parent else "traceidratio"
    return {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": repr(traces.ratio)}


def _exports_traces(litellm: Mapping[str, Any]) -> bool:
    return any("otel" in name or name.startswith("arize") for name in named_callbacks(litellm))


def _examine(path: Path, env: Mapping[str, str], extra: Iterable[Detected]) -> tuple[GatewayConfig | None, list[Problem]]:
    source = read_source(Path(path))
    if source.value is None:
        return None, source.problems
    check_sections(source)
    deployments = check_models(source)
    translation = translate(source)
    settings, origins = read_settings(source, translation, env)
    if settings is not None:
        check_strategies(source, settings, origins, deployments)
        check_policies(source, settings, deployments)
        check_routing(source, settings, deployments, translation.name)
        check_affinity(source, settings, deployments)
        check_cascades(source, settings, deployments, origins)
    check_references(source, deployments, env)
    check_callbacks(source, env)
    database_url = check_environment(source, env)
    problems = _sorted(source)
    if settings is None or any(problem.severity == "error" for problem in problems):
        return None, problems
    names = {item.group for item in deployments}
    found = [entry for item in extra for entry in item.entries if entry["model_name"] not in names]
    cascades = any(strategy.kind in CASCADE_KINDS for strategy in settings.strategies.values())
    effective = make_effective(
        source.value,
        found,
        translated=translation.name is not None,
        cascades=cascades or settings.resilience.hedging.enabled,
        breakers=settings.resilience.breaker.enabled,
    )
    config = GatewayConfig(
        source=source.path,
        settings=settings,
        effective=effective,
        python_path=(str(source.path.parent),),
        database_url=database_url,
        master_key=resolve(effective["general_settings"]["master_key"], env) or None,
        files=tuple(source.files),
        warnings=tuple(problems),
    )
    return config, problems


def _sorted(source: Source) -> list[Problem]:
    order = {path: index for index, path in enumerate(source.files)}
    return sorted(source.problems, key=lambda problem: (order.get(problem.path, len(order)), problem.line or 0))
