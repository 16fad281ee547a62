"""What the workers' metrics cannot know by themselves: the supervisor tells them how the reloads and the configuration are.

Prometheus scrapes a worker, so the supervisor's facts have to be in a worker's metrics. States go to every worker, of whom the
last to write counts; events go to one, so that they are counted once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pointsman.process.pool import Worker

__all__ = ["MetricsFeed"]

SECONDS = 5.0


class MetricsFeed:
    """Tells the workers, every five seconds.

    Args:
        strategies: rows of `StrategyService.status`.
        config: `ConfigSync.status`.
        workers: the worker slots.
        sharing: `Sharing.status`.
    """

    def __init__(
        self,
        strategies: Callable[[], Sequence[Mapping[str, Any]]],
        config: Callable[[], Mapping[str, Any]],
        workers: Callable[[], Sequence[Worker]],
        sharing: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._strategies, self._config, self._workers, self._sharing = strategies, config, workers, sharing
        self._counted: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            self.tell()
            await asyncio.sleep(SECONDS)

    def tell(self) -> None:
        """Tell them once."""
        ready = [worker.channel for worker in self._workers() if worker.ready and worker.channel is not None]
        if not ready:
            return
        rows = [_state(row) for row in self._strategies()]
        config = self._config()
        message: dict[str, Any] = {"type": "metrics", "config_failing": int(bool(config.get("last_error")))}
        sharing = self._sharing()
        message["sharing_failing"] = int(sharing.get("instances", {}).get("state") == "local")
        refused = self._events({"name": "facts", "events": _refused(sharing)})
        for number, channel in enumerate(ready):
            events = [{**row, "events": {} if number else self._events(row)} for row in rows]
            channel.send({**message, "strategies": events, "refused": {} if number else refused})

    def _events(self, row: Mapping[str, Any]) -> dict[str, int]:
        """How many there were since this was asked last."""
        new = {}
        for result, count in row["events"].items():
            new[result] = max(0, count - self._counted.get((row["name"], result), 0))
            self._counted[row["name"], result] = count
        return new


def _refused(sharing: Mapping[str, Any]) -> dict[str, int]:
    """Topic -> what was no fact."""
    topics = {topic: row["refused"] for topic, row in sharing.get("topics", {}).items()}
    return topics | {"other": sharing.get("unknown", 0) + sharing.get("instances", {}).get("refused", 0)}


def _state(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": row["name"],
        "failing": int(row["last_error_code"] is not None),
        "degraded": int(bool(row["degraded"])),
        "desired_generation": row["desired_generation"] or 0,
        "events": dict(row["counters"]),
    }
