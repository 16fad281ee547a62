"""The strategies of an instance that run in processes of their own, and what the status tells of those that have no bundle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pointsman.errors import ConfigError
from pointsman.settings import PointsmanSettings
from pointsman.strategies.remote.hub import Hub
from pointsman.strategies.remote.owner import Owner
from pointsman.strategies.remote.prepare import llmrouter_spec
from pointsman.strategies.serving import entry_for, how
from pointsman.strategies.snapshot import StrategyStatus

__all__ = ["RemoteService"]

SOCKET = "remote.sock"


class RemoteService:
    """Owns the owners.

    Args:
        settings: the strategies.
        run_dir: private to this run (0700); holds the socket and a directory for each process.
        env: the instance's environment.
    """

    def __init__(self, settings: PointsmanSettings, run_dir: Path, env: Mapping[str, str]) -> None:
        self._settings = settings
        self._owners: dict[str, Owner] = {}
        for index, (name, strategy) in enumerate(settings.strategies.items()):
            if how(name, strategy) == "llmrouter" and strategy.llmrouter is not None:
                scratch = run_dir / f"process-{index}"
                scratch.mkdir(mode=0o700)
                load = partial(self._llmrouter, name, scratch)
                self._owners[name] = Owner(name, strategy.llmrouter, env, scratch, load)
        self._hub = Hub(self._owners, run_dir / SOCKET)

    @property
    def socket(self) -> str | None:
        """Where workers ask, None when there is nothing to ask."""
        return str(self._hub.path) if self._owners else None

    async def start(self) -> None:
        """Listen and start what shall be warm; waits for no process."""
        if self._owners:
            await self._hub.start()

    async def stop(self) -> None:
        """End every process."""
        await self._hub.stop()

    async def _llmrouter(self, name: str, scratch: Path) -> Mapping[str, Any]:
        strategy = self._settings.strategies[name]
        entry, llmrouter = entry_for(name, strategy), strategy.llmrouter
        if entry is None or llmrouter is None or not entry.llmrouter:
            raise ConfigError(f"{name!r} is none of LLMRouter's strategies", code="E4206", mend="give its `kind`")
        if entry.broken is not None:
            raise ConfigError(entry.broken, code="E4206")
        return await asyncio.to_thread(llmrouter_spec, entry, Path(llmrouter.config), scratch)

    def row(self, name: str) -> StrategyStatus:
        """What there is to tell of a strategy without a bundle."""
        strategy = self._settings.strategies[name]
        served, entry, owner = how(name, strategy), entry_for(name, strategy), self._owners.get(name)
        source = strategy.llmrouter.config if strategy.llmrouter is not None else strategy.source or strategy.entry_point or ""
        kind = entry.kind if entry is not None else None
        if owner is None:
            return StrategyStatus(name=name, source=f"{served}:{source}", kind=kind, degraded=False)
        process = owner.status()
        return StrategyStatus(
            name=name,
            source=f"{served}:{source}",
            kind=kind,
            version=owner.about.version or None,
            last_error=process["last_error"],
            last_error_code="E4710" if process["last_error"] else None,
            degraded=not owner.ready,
            process=process,
        )

    def restart(self, name: str) -> bool:
        """Replace a strategy's process by a new one; whether it has one."""
        owner = self._owners.get(name)
        if owner is not None:
            owner.restart()
        return owner is not None
