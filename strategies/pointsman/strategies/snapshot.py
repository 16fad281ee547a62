"""What goes from the reloader to the workers, and what it tells of itself. Plain data, JSON-able."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Reload", "Snapshot", "StrategyStatus"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What every worker is to serve for a strategy.

    Attributes:
        strategy: its name.
        generation: rises with each change on this instance, over restarts too.
        path: verified bundle on disk; empty: serve none (the one in service was blocked and there is no other).
        sha256, version, kind: of the bundle; empty with `path`.
        models, scale, calibrated: its candidates, what its scores mean, and whether its evaluation has a calibration table.
    """

    strategy: str
    generation: int
    path: str
    sha256: str
    version: str
    kind: str
    models: tuple[str, ...] = ()
    scale: str = ""
    calibrated: bool = False


@dataclass(frozen=True, slots=True)
class Reload:
    """What was in service has changed, or something that was proposed was refused.

    Attributes:
        strategy: its name.
        version, generation: in service now; None: nothing is, or it was not changed.
        previous_version: in service before.
        error: code of why it was refused, or None.
        started, ended: Unix time in nanoseconds, fetch and verification included.
    """

    strategy: str
    version: str | None
    generation: int | None
    previous_version: str | None
    error: str | None
    started: int
    ended: int


@dataclass(frozen=True, slots=True)
class StrategyStatus:
    """What a reloader tells. Times are Unix time in seconds.

    Attributes:
        name: of the strategy.
        source: where bundles come from.
        kind, version, sha256: of the bundle in service, or None.
        etag: of the source's pointer (S3), or None.
        mtime: of the source's pointer.
        generation: see `Snapshot`; 0: never anything.
        rollout_generation: of the desired state that is followed.
        loaded_at: when the bundle in service was swapped in.
        last_check: when the source was last asked.
        last_error, last_error_code: of what is wrong now, or None.
        sequence: of the newest pointer that was verified.
        blocked: digests that were rolled back.
        pinned: digest that an operator pinned, or None.
        degraded: no bundle is in service; LiteLLM's own choice holds.
        counters: polls, swaps, rejected (distinct objects), failures (source or database away), rollbacks; since the start.
        process: of a strategy that runs in one of its own: see `pointsman.strategies.remote.owner.Owner.status`.
    """

    name: str
    source: str
    kind: str | None = None
    version: str | None = None
    sha256: str | None = None
    etag: str | None = None
    mtime: float | None = None
    generation: int = 0
    rollout_generation: int = 0
    loaded_at: float | None = None
    last_check: float | None = None
    last_error: str | None = None
    last_error_code: str | None = None
    sequence: int = 0
    blocked: tuple[str, ...] = ()
    pinned: str | None = None
    degraded: bool = True
    counters: dict[str, int] = field(default_factory=dict)
    process: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """For endpoints."""
        from dataclasses import asdict

        return asdict(self)
