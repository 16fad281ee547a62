"""Log lines of an instance, as its supervisor sees them: one set of levels and secrets for all processes; the start line.

The supervisor makes its own `Logs` as soon as the configuration is known, and tells each worker how to make its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pointsman.callbacks.logs import LEVELS, Logs
from pointsman.callbacks.privacy import known_secrets
from pointsman.errors import ProcessError
from pointsman.litellm_config import PROFILES, GatewayConfig, profile_path

__all__ = ["LogLines"]

logger = logging.getLogger("pointsman.start")

_LIMITS: Mapping[str, tuple[str, ...]] = {
    "litellm_settings": ("request_timeout", "max_budget", "budget_duration", "max_user_budget", "max_end_user_budget"),
    "router_settings": ("num_retries", "timeout", "allowed_fails", "cooldown_time", "max_fallbacks"),
    "general_settings": (
        "max_parallel_requests",
        "global_max_parallel_requests",
        "max_request_size_mb",
        "max_response_size_mb",
        "database_connection_pool_limit",
    ),
}
"""Settings of LiteLLM that limit what it does; those that the configuration has are told at the start."""


class LogLines:
    """The supervisor's log lines, and what it tells the workers of theirs.

    Args:
        config: the configuration in service.
        env: the instance's environment; its keys and passwords are secrets.
        output: file that the workers' output goes to, the supervisor's then as well; None: standard output.
        person: somebody looks on (`pointsman up`): text unless the configuration says otherwise, and warnings on the terminal.
    """

    def __init__(self, config: GatewayConfig, env: Mapping[str, str], output: Path | None, *, person: bool) -> None:
        settings = config.settings.telemetry.logs
        self.text = settings.format == "text" or (settings.format == "auto" and person)
        libraries = settings.library_level
        if "library_level" not in settings.model_fields_set:
            wish = env.get("LITELLM_LOG", "").lower()
            libraries = wish if wish in LEVELS else libraries  # type: ignore[assignment] # they are the type's values
        self._config, self._lock = config, Path()
        self._secrets = known_secrets(env, config.effective, config.settings.model_dump(mode="json"))
        self._file = None
        if output is not None:
            try:
                self._file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise ProcessError(
                    f"cannot write the log: {error.strerror}",
                    code="E4602",
                    where=str(output),
                    mend="choose a directory of your own with --data-dir",
                ) from error
        self.logs = Logs(
            config.settings,
            "supervisor",
            text=self.text,
            secrets=self._secrets,
            levels=(settings.level, libraries),
            descriptor=self._file if self._file is not None else 1,
            terminal=person,
        )
        self.logs.install()

    def share(self, run_dir: Path) -> None:
        """Before other processes write to the same place."""
        self._lock = run_dir / "log.lock"
        self.logs.output.share(self._lock)

    def for_worker(self, database_url: str | None) -> dict[str, Any]:
        """What a worker needs to make its own; goes over the private socket."""
        secrets = self._secrets | known_secrets({}, [database_url])
        return {"text": self.text, "levels": self.logs.levels, "secrets": sorted(secrets), "lock": str(self._lock)}

    def change(self, params: Mapping[str, Any], broadcast: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Change the levels here and in every worker, where any are given; the state after it."""
        ours, libraries = self.logs.levels
        wanted = (params.get("level") or ours, params.get("library_level") or libraries)
        if wanted != (ours, libraries):
            self.logs.set_levels(*wanted)
            broadcast({"type": "logs", "levels": wanted})
            logger.warning("log levels are now %s and, for libraries, %s", *wanted)
        return {"level": wanted[0], "library_level": wanted[1], "dropped": {"supervisor": self.logs.dropped}}

    def started(self, workers: int, url: str, strategies: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> None:
        """The line at the start: what runs, and how."""
        config = self._config
        profile = next((name for name in PROFILES if profile_path(name) == config.source), None)
        limits = {"routing.deadline_ms": config.settings.routing.deadline_ms}
        for section, names in _LIMITS.items():
            found = config.effective.get(section) or {}
            limits |= {f"{section}.{name}": found[name] for name in names if found.get(name) is not None}
        fields = {
            "version": version("pointsman"),
            "litellm_version": version("litellm"),
            "profile": profile or "none",
            "config": str(config.source),
            "url": url,
            "workers": workers,
            "strategies": {
                str(row["name"]): {name: row.get(name) for name in ("kind", "version", "degraded")} for row in strategies
            },
            "routes": {
                str(group): groups.get(str(group), "litellm")
                for group in sorted({str(entry.get("model_name")) for entry in config.effective.get("model_list") or ()})
            },
            "limits": limits,
        }
        known = ", ".join(f"{row['name']} {row.get('version') or '(none yet)'}" for row in strategies) or "none"
        logger.info(
            "Pointsman %s is ready: profile %s, %d worker(s), strategies: %s",
            fields["version"],
            fields["profile"],
            workers,
            known,
            extra={"fields": fields},
        )

    def close(self) -> None:
        """Write what waits; the last thing that the supervisor does."""
        self.logs.close()
        if self._file is not None:
            os.close(self._file)
