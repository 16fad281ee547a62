"""The strategies of an instance: one reloader each, owned by the supervisor; what workers serve is compared with it.

A poll, a verification and a copy on disk happen here once per instance. Workers get the path of the verified copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pointsman.cascade_settings import CASCADE_KINDS
from pointsman.errors import RequestError
from pointsman.process.fitting import fitting
from pointsman.process.pool import Worker
from pointsman.process.remote import RemoteService
from pointsman.settings import PointsmanSettings, StrategySettings
from pointsman.strategies.reloader import Reload, Reloader, Snapshot
from pointsman.strategies.rollout import open_rollout
from pointsman.strategies.serving import how

__all__ = ["StrategyService", "groups_in_use"]


class StrategyService:
    """Owns the reloaders.

    Args:
        settings: strategies and routing.
        cache_dir: where verified bundles are kept, a directory a strategy.
        database_url: for the fleet's desired state, or None (then it is kept in `cache_dir`).
        groups: tells which model groups use which strategy now.
        broadcast: sends a message to every worker.
        workers: the worker slots, for the status.
        remote: the strategies that have no bundle.
        models: the entries of `model_list` in service.
        aliases: strategy -> (bundle's candidate name -> deployment's model).
        observe: is told of each bundle that came into service or was refused.
    """

    def __init__(
        self,
        settings: PointsmanSettings,
        cache_dir: Path,
        database_url: str | None,
        groups: Callable[[], Mapping[str, str]],
        broadcast: Callable[[Mapping[str, Any]], None],
        workers: Callable[[], Sequence[Worker]],
        remote: RemoteService,
        models: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        aliases: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
        observe: Callable[[Reload], None] = lambda _: None,
    ) -> None:
        self._settings, self._models, self._aliases = settings, models, aliases
        self._names = tuple(settings.strategies)
        self._remote = remote
        self._groups = groups
        self._broadcast = broadcast
        self._workers = workers
        self._snapshots: dict[str, Snapshot] = {}
        self._rollout = open_rollout(database_url, cache_dir)
        encoders = Path(settings.encoders_dir) if settings.encoders_dir else None
        self._reloaders = {
            name: Reloader(
                name, _served(strategy), cache_dir / name, self._rollout, self._publish, encoders_dir=encoders, observe=observe
            )
            for name, strategy in settings.strategies.items()
            if strategy.source is not None and how(name, strategy) in ("bundle", "cascade")
        }
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Bring up what is known of every strategy, at once; a source that is away delays nothing."""
        await asyncio.gather(*(reloader.start() for reloader in self._reloaders.values()))
        self._tasks = [asyncio.create_task(reloader.run(), name=f"reload-{name}") for name, reloader in self._reloaders.items()]

    async def stop(self) -> None:
        """End the polling."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._rollout.close()

    async def _publish(self, snapshot: Snapshot) -> None:
        self._snapshots[snapshot.strategy] = snapshot
        self._broadcast({"type": "snapshot", "snapshot": asdict(snapshot)})

    def snapshots(self) -> list[dict[str, Any]]:
        """What a new worker has to load."""
        return [asdict(snapshot) for snapshot in self._snapshots.values()]

    def status(self) -> list[dict[str, Any]]:
        """One row a strategy: its reloader's or process's state, what each worker serves, and which groups use it."""
        return [self._row(name) for name in self._names]

    def _row(self, name: str) -> dict[str, Any]:
        status = self._reloaders[name].status() if name in self._reloaders else self._remote.row(name)
        row: dict[str, Any] = asdict(status) if is_dataclass(status) else dict(status)
        snapshot = self._snapshots.get(name)
        row["desired_generation"] = snapshot.generation if snapshot is not None else None
        row["workers"] = [
            {
                "worker": worker.index,
                "pid": worker.pid,
                "ready": worker.ready,
                "generation": worker.generations.get(name),
                "error": worker.errors.get(name),
            }
            for worker in self._workers()
        ]
        row["in_use_by"] = sorted(group for group, strategy in self._groups().items() if strategy == name)
        row |= fitting(name, self._settings, snapshot, self._models(), row["in_use_by"], self._aliases.get(name, {}))
        return row

    async def reload(self, name: str) -> dict[str, Any]:
        """Check the source now, or start a new process for it; the row after it."""
        if not await self._remote.reload(name):
            await self._reloader(name).reload()
        return self._row(name)

    async def rollback(self, name: str, actor: str, reason: str) -> dict[str, Any]:
        """Block the present bundle and return to the previous good one; the row after it."""
        await self._reloader(name).rollback(actor, reason)
        return self._row(name)

    def _reloader(self, name: str) -> Reloader:
        try:
            return self._reloaders[name]
        except KeyError:
            if name in self._names:
                mend = "publish the older wheel again, or install the older package"
                raise RequestError(f"the strategy {name!r} has no bundle", code="E4004", mend=mend) from None
            known = ", ".join(sorted(self._reloaders)) or "none"
            raise RequestError(f"no strategy {name!r}", code="E4004", mend=f"configured: {known}") from None


def _served(strategy: StrategySettings) -> StrategySettings:
    """A cascade that asks a bundle asks one of kNN."""
    return strategy.model_copy(update={"kind": "knn"}) if strategy.kind in CASCADE_KINDS else strategy


def groups_in_use(settings: PointsmanSettings, models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Model group -> strategy, for groups of two or more deployments (one leaves nothing to choose)."""
    counts: dict[str, int] = {}
    for entry in models:
        name = str(entry.get("model_name"))
        counts[name] = counts.get(name, 0) + 1
    routing = settings.routing
    chosen = {group: routing.groups.get(group, routing.default) for group, count in counts.items() if count > 1}
    return {group: strategy for group, strategy in chosen.items() if strategy is not None}
