"""A changed YAML file is taken up by every worker: validated whole, then the effective file, then the workers' routers.

Owned by the supervisor's event loop. Only `model_list` changes while running; for the other sections the status says which
wait for a restart. What a worker refuses is taken back everywhere, so that the workers never differ for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pointsman.errors import ConfigError
from pointsman.litellm_config import Detected, GatewayConfig, write_effective
from pointsman.litellm_config.reload import ConfigWatcher, model_diff, restart_reasons
from pointsman.process.models import MODELS
from pointsman.process.pool import Worker, WorkerPool

__all__ = ["ConfigSync"]

WORKER_SECONDS = 15.0
"""How long the workers may take to follow."""


class ConfigSync:
    """Watches the file of an instance.

    Args:
        config: the configuration in service.
        env: as it was loaded with.
        extra: models found on the machine, as it was loaded with.
        run_dir: where the effective file lies.
        pool: the workers.
    """

    def __init__(
        self, config: GatewayConfig, env: Mapping[str, str], extra: tuple[Detected, ...], run_dir: Path, pool: WorkerPool
    ) -> None:
        settings = config.settings.config_reload
        self._enabled = settings.enabled
        self._watcher = ConfigWatcher(config.source, env, settings.interval, self._apply, config, extra=extra)
        self._running = config
        self._run_dir = run_dir
        self._pool = pool
        self._generation = 0
        self._models: list[dict[str, Any]] = config.effective["model_list"]
        self._waits_for_restart: tuple[str, ...] = ()
        pool.on_ready = self._catch_up

    @property
    def models(self) -> list[dict[str, Any]]:
        """The effective `model_list` in service."""
        return self._models

    def status(self) -> dict[str, Any]:
        """For `/hot-reload/status`."""
        workers = [
            {
                "worker": worker.index,
                # A worker that started after the last change read it from the effective file.
                "generation": worker.generations.get(MODELS, self._generation if worker.ready else None),
                "error": worker.errors.get(MODELS),
            }
            for worker in self._pool.workers
        ]
        return {
            **asdict(self._watcher.status()),
            "hot_reload": self._enabled,
            "desired_generation": self._generation,
            "workers": workers,
            "waits_for_restart": list(self._waits_for_restart),
        }

    async def run(self) -> None:
        """Watch until cancelled; returns at once when the settings say not to."""
        if self._enabled:
            await self._watcher.run()

    async def _apply(self, old: GatewayConfig, new: GatewayConfig) -> None:
        difference = model_diff({"model_list": self._models}, new.effective)
        self._waits_for_restart = restart_reasons(self._running, new)
        if not difference:
            return
        before = self._models
        try:
            await self._distribute(new.effective["model_list"])
        except ConfigError:
            await self._distribute(before)
            raise

    async def _distribute(self, models: list[dict[str, Any]]) -> None:
        """Effective file first, or LiteLLM's own reconcile would evict what the workers add."""
        effective = {**self._running.effective, "model_list": models}
        await asyncio.to_thread(write_effective, replace(self._running, effective=effective), self._run_dir)
        self._models = models
        self._generation += 1
        generation = self._generation
        for worker in self._pool.workers:
            worker.errors.pop(MODELS, None)
        self._pool.broadcast(self._message())

        def followed() -> bool:
            return all(
                worker.generations.get(MODELS, 0) >= generation or MODELS in worker.errors
                for worker in self._pool.workers
                if worker.ready
            )

        try:
            async with asyncio.timeout(WORKER_SECONDS):
                await self._pool.wait_until(followed)
        except TimeoutError:
            raise ConfigError(f"not every worker followed within {WORKER_SECONDS:g} s") from None
        refused = [worker.errors[MODELS] for worker in self._pool.workers if MODELS in worker.errors]
        if refused:
            raise ConfigError(refused[0])

    def _message(self) -> dict[str, Any]:
        return {"type": "models", "generation": self._generation, "models": self._models}

    def _catch_up(self, worker: Worker) -> None:
        """A worker that was starting during a change gets the list again; equal entries cost it nothing."""
        if self._generation and worker.channel is not None:
            worker.channel.send(self._message())
