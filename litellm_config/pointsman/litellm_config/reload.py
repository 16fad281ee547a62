"""A changed YAML file -> what changed in `model_list`: a watcher that keeps the last good one, and a pure difference."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsman.litellm_config.config import GatewayConfig, load
from pointsman.litellm_config.detect import Detected
from pointsman.litellm_config.problems import InvalidConfigError

__all__ = ["ConfigStatus", "ConfigWatcher", "ModelDiff", "model_diff", "restart_reasons"]

logger = logging.getLogger("pointsman.config")

_Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """What became of the deployments between two effective configurations, by `model_info.id`.

    Attributes:
        added: entries that are new, in the order of the new list.
        changed: entries whose id stands in both lists with other content, as they are now.
        removed: ids that are gone.
    """

    added: tuple[dict[str, Any], ...] = ()
    changed: tuple[dict[str, Any], ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def model_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> ModelDiff:
    """Compare two effective configurations; an entry whose id is not given changes its id with its content.

    Args:
        old, new: `GatewayConfig.effective`, where every entry has an id.
    """
    before = {entry["model_info"]["id"]: entry for entry in old.get("model_list") or ()}
    after = {entry["model_info"]["id"]: entry for entry in new.get("model_list") or ()}
    return ModelDiff(
        added=tuple(entry for key, entry in after.items() if key not in before),
        changed=tuple(entry for key, entry in after.items() if key in before and before[key] != entry),
        removed=tuple(key for key in before if key not in after),
    )


def restart_reasons(old: GatewayConfig, new: GatewayConfig) -> tuple[str, ...]:
    """Sections that changed and that only a restart takes up: everything but `model_list`."""
    names = [name for name in {**old.effective, **new.effective} if name != "model_list"]
    changed = [name for name in names if old.effective.get(name) != new.effective.get(name)]
    if old.settings != new.settings:
        changed.append("pointsman")
    return tuple(sorted(changed))


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """How the watched file stands; times are Unix seconds.

    Attributes:
        path: the file.
        last_check: when the files were last looked at, or None.
        last_update: when a changed configuration was last taken up, or None.
        last_error: why the newest content was not taken up, or None when what is in service is the newest.
        updates, rejected: counters.
    """

    path: str
    last_check: float | None = None
    last_update: float | None = None
    last_error: str | None = None
    updates: int = 0
    rejected: int = 0


class ConfigWatcher:
    """Looks at a file and its includes and offers every changed, valid configuration; the last good one stays otherwise.

    Args:
        path: the user's file.
        env: the environment, as for `load`.
        interval: seconds between two looks.
        on_change: awaited with the old and the new configuration. When it raises, the new one counts as rejected and is not
            tried again before the files change once more.
        current: the configuration in service.
        extra: as for `load`.
    """

    def __init__(
        self,
        path: Path,
        env: Mapping[str, str],
        interval: float,
        on_change: Callable[[GatewayConfig, GatewayConfig], Awaitable[None]],
        current: GatewayConfig,
        *,
        extra: tuple[Detected, ...] = (),
    ) -> None:
        self._path = path
        self._env = dict(env)
        self._interval = interval
        self._on_change = on_change
        self._current = current
        self._extra = extra
        self._files = current.files
        # What was read before this line may have changed since, so the first look always compares contents.
        self._stamp: _Stamp | None = None
        self._status = ConfigStatus(str(path))

    @property
    def current(self) -> GatewayConfig:
        """The last good configuration."""
        return self._current

    def status(self) -> ConfigStatus:
        """For `/hot-reload/status`."""
        return self._status

    async def run(self) -> None:
        """Look every `interval` seconds, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def look(self) -> bool:
        """Look once; True when a changed configuration was taken up. Never raises for what the files hold."""
        stamp = await asyncio.to_thread(_stamp, self._files)
        if stamp == self._stamp:
            self._note()
            return False
        try:
            new = await asyncio.to_thread(load, self._path, self._env, extra=self._extra)
        except InvalidConfigError as error:
            self._stamp = stamp  # its content is known to be bad; only another change is worth another look
            self._files = tuple(dict.fromkeys((*self._files, *(problem.path for problem in error.problems))))
            self._reject(str(error))
            return False
        # The stamp is from before the reading, so a change during it is seen next time; the includes may be others now.
        self._stamp = stamp if new.files == self._files else None
        self._files = new.files
        if new.effective == self._current.effective and new.settings == self._current.settings:
            self._note(error=None)
            return False
        try:
            await self._on_change(self._current, new)
        except Exception as error:  # noqa: BLE001 - whatever failed to take it up, the old one is still in service
            self._reject(f"could not be applied: {error}")
            return False
        self._current = new
        status = self._status
        now = time.time()
        self._status = ConfigStatus(status.path, now, now, None, status.updates + 1, status.rejected)
        logger.info("took up the changed %s", self._path)
        return True

    def _note(self, **changes: str | None) -> None:
        status = self._status
        error = changes.get("error", status.last_error)
        self._status = ConfigStatus(status.path, time.time(), status.last_update, error, status.updates, status.rejected)

    def _reject(self, reason: str) -> None:
        status = self._status
        self._status = ConfigStatus(status.path, time.time(), status.last_update, reason, status.updates, status.rejected + 1)
        logger.error("the changed %s is not taken up, the last good one stays: %s", self._path, reason)


def _stamp(files: tuple[Path, ...]) -> _Stamp:
    """What changes when a file does: size, time, inode (an atomic replacement has a new one)."""
    stamps = []
    for file in files:
        try:
            info = file.stat()
            stamps.append((str(file), info.st_mtime_ns, info.st_size, info.st_ino))
        except OSError:
            stamps.append((str(file), 0, 0, 0))
    return tuple(stamps)
