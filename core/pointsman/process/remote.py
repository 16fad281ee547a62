"""The strategies of an instance that run in processes of their own, and what the status tells of those that have no bundle."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pointsman.errors import ConfigError
from pointsman.settings import PointsmanSettings
from pointsman.strategies.remote.code import CodeSource
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
        cache_dir: where verified copies of what came from sources are kept.
        env: the instance's environment.
    """

    def __init__(self, settings: PointsmanSettings, run_dir: Path, cache_dir: Path, env: Mapping[str, str]) -> None:
        self._settings = settings
        self._owners: dict[str, Owner] = {}
        self._code: dict[str, CodeSource] = {}
        self._tasks: list[asyncio.Task[None]] = []
        for index, (name, strategy) in enumerate(settings.strategies.items()):
            served, scratch = how(name, strategy), run_dir / f"process-{index}"
            if served in ("llmrouter", "code"):
                scratch.mkdir(mode=0o700)
            if served == "code":
                self._code[name] = code = CodeSource(name, strategy, cache_dir / name, scratch, partial(self.restart, name))
                self._owners[name] = owner = Owner(name, strategy.process, env, scratch, code.spec)
                owner.on_loaded, owner.on_unloadable = code.proved, code.failed
            elif strategy.llmrouter is not None:
                load = partial(self._llmrouter, name, scratch)
                self._owners[name] = Owner(name, strategy.llmrouter, env, scratch, load)
        self._hub = Hub(self._owners, run_dir / SOCKET)

    @property
    def socket(self) -> str | None:
        """Where workers ask, None when there is nothing to ask."""
        return str(self._hub.path) if self._owners else None

    async def start(self) -> None:
        """Listen, look at the sources once, start what shall be warm; waits for no process."""
        await asyncio.gather(*(code.start() for code in self._code.values()))
        if self._owners:
            await self._hub.start()
        self._tasks = [asyncio.create_task(code.run(), name=f"code-{name}") for name, code in self._code.items()]

    async def stop(self) -> None:
        """End the polling and every process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
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
        process, code = owner.status(), self._code.get(name)
        error, number = process["last_error"], "E4710" if process["last_error"] else None
        if code is not None and code.error is not None:
            error, number = str(code.error), code.error.code
        return StrategyStatus(
            name=name,
            source=source if code is not None else f"{served}:{source}",
            kind=kind,
            version=owner.about.version or None,
            sha256=code.current.sha256 if code is not None and code.current is not None else None,
            last_check=code.last_check if code is not None else None,
            sequence=code.sequence if code is not None else 0,
            counters=code.counters if code is not None else {},
            last_error=error,
            last_error_code=number,
            degraded=not owner.ready,
            process=process,
        )

    async def reload(self, name: str) -> bool:
        """Look at a strategy's source now, and start a new process for it; whether it has one."""
        if (code := self._code.get(name)) is not None:
            await code.poll()
        return self.restart(name)

    def restart(self, name: str) -> bool:
        """Replace a strategy's process by a new one; whether it has one."""
        owner = self._owners.get(name)
        if owner is not None:
            owner.restart()
        return owner is not None
