"""What one instance has in service for a strategy, what it keeps on disk, and each step from one to the next.

Every coroutine here is called inside the reloader's lock for changes. A new bundle is made durable first and shown to workers
then, so that a restart in between comes up with it. To leave a blocked bundle no disk is needed: what cannot be saved is held
in memory and saved later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial

from pointsman.errors import PointsmanError, ProcessError, SourceError
from pointsman.strategies.bundle import Bundle
from pointsman.strategies.fetch import Fetcher, RejectedError
from pointsman.strategies.pointer import Pointer
from pointsman.strategies.problems import Problems
from pointsman.strategies.rollout import DesiredState
from pointsman.strategies.snapshot import Snapshot
from pointsman.strategies.threads import in_thread
from pointsman.strategies.vault import Kept, LocalState, Vault

__all__ = ["KEEP", "Publish", "Stage"]

logger = logging.getLogger("pointsman.strategies")

KEEP = 5
"""Bundles kept on disk, the one in service included: what a rollback can return to without the source."""

Publish = Callable[[Snapshot], Awaitable[None]]


class Stage:
    """See the module.

    Attributes:
        local: what outlives a restart.
        snapshot: what workers are to serve; None: nothing was published since the start.
        loaded_at: Unix time of the last swap.
        swaps: how many there were.
    """

    def __init__(self, name: str, vault: Vault, fetcher: Fetcher, publish: Publish, problems: Problems) -> None:
        self._name, self._vault, self._fetcher, self._publish, self._problems = name, vault, fetcher, publish, problems
        self._opened = False
        self._unsaved = False
        self._published = 0
        self.local = LocalState()
        self.snapshot: Snapshot | None = None
        self.loaded_at: float | None = None
        self.swaps = 0

    @property
    def serving(self) -> str | None:
        """Digest of the bundle in service."""
        return self.snapshot.sha256 if self.snapshot is not None and self.snapshot.path else None

    @property
    def desired(self) -> DesiredState | None:
        """The last desired state that was read, also before the restart; None: never any."""
        return self.local.desired

    def is_blocked(self, sha256: str) -> bool:
        """Whether it was rolled back."""
        return self.desired is not None and sha256 in self.desired.blocked_sha256

    async def open(self) -> None:
        """Read what the last run left."""
        if not self._opened:
            self.local = await in_thread(self._vault.open)
            self._opened = True

    async def set_desired(self, desired: DesiredState) -> None:
        """Remember the desired state, on disk too: it holds while the database is away."""
        if desired != self.local.desired:
            await self._keep(self.local.model_copy(update={"desired": desired}))

    async def accept(self, pointer: Pointer) -> None:
        """Remember the newest pointer that was verified, whatever becomes of its bundle: what comes before it is a replay."""
        if pointer.sequence > self.local.sequence:
            await self._save(self.local.model_copy(update={"sequence": pointer.sequence, "pointer_sha256": pointer.digest}))

    async def restore(self) -> bool:
        """Bring the best copy on disk into service; whether there was one. A disk that is full is no hindrance."""
        desired = self.desired
        first = [desired.pinned_sha256, self.local.current, desired.target_sha256] if desired else [self.local.current]
        found = await self.first_good(first)
        if found is None:
            return False
        await self.take(*found, durable=False)
        return True

    async def leave_blocked(self) -> None:
        """If what is in service was blocked, serve another copy, or none."""
        serving = self.serving
        if serving is None or not self.is_blocked(serving):
            return
        logger.warning("%s: %s was rolled back for the fleet", self._name, serving[:12])
        if not await self.restore():
            await self._withdraw()

    async def first_good(self, first: Iterable[str | None] = (), exclude: str | None = None) -> tuple[Kept, Bundle] | None:
        """The first copy on disk that is not blocked and passes every check: those of `first`, then the latest in service."""
        for kept in self._candidates(first):
            if kept.sha256 == exclude or self.is_blocked(kept.sha256):
                continue
            try:
                return kept, await in_thread(partial(self._fetcher.kept, kept))
            except RejectedError as rejected:
                logger.error("%s: the copy on disk is refused: %s", self._name, rejected.error)
            except SourceError as error:
                logger.error("%s: the copy on disk cannot be read: %s", self._name, error)
        return None

    def _candidates(self, first: Iterable[str | None]) -> Iterator[Kept]:
        latest = [kept.sha256 for kept in reversed(self.local.kept)]
        for sha256 in dict.fromkeys([*first, *latest]):
            if (kept := self.local.find(sha256)) is not None:
                yield kept

    async def take(self, kept: Kept, bundle: Bundle, *, durable: bool = True) -> bool:
        """Bring a verified bundle into service, unless it was blocked meanwhile; whether it is in service.

        Args:
            kept: how it is remembered; its copy is on disk.
            bundle: the same, loaded.
            durable: not before the state is saved.

        Raises:
            ProcessError: E4602, the state cannot be saved; nothing has changed then.
        """
        if self.is_blocked(kept.sha256):
            return False
        if self.serving == kept.sha256:
            return True
        others = tuple(item for item in self.local.kept if item.sha256 != kept.sha256 and not self.is_blocked(item.sha256))
        wanted = {self.desired.target_sha256, self.desired.pinned_sha256} if self.desired else set()
        remembered = tuple(item for item in others[: -(KEEP - 1)] if item.sha256 in wanted) + others[-(KEEP - 1) :]
        values: dict[str, object] = {
            "generation": self.local.generation + 1,
            "current": kept.sha256,
            "kept": (*remembered, kept),
        }
        await (self._save if durable else self._keep)(self.local.model_copy(update=values))
        self.snapshot = Snapshot(
            strategy=self._name,
            generation=self.local.generation,
            path=str(self._vault.path(kept.sha256)),
            sha256=kept.sha256,
            version=bundle.version,
            kind=bundle.kind,
            models=bundle.models,
            scale=bundle.scale,
            calibrated=bundle.manifest.evaluation is not None and bundle.manifest.evaluation.calibration is not None,
        )
        self.loaded_at = time.time()
        self.swaps += 1
        logger.info(
            "%s: version %s (%s) is in service, generation %d",
            self._name,
            kept.version,
            kept.sha256[:12],
            self.local.generation,
        )
        await self.publish()
        await in_thread(partial(self._vault.prune, {item.sha256 for item in self.local.kept}))
        return True

    async def publish(self) -> None:
        """Show the snapshot to the workers, if that has not been done."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.generation == self._published:
            return
        try:
            await self._publish(snapshot)
        except Exception as error:  # the receiver's bug must not lose the state; the next poll tries again
            logger.exception("%s: generation %d could not be published", self._name, snapshot.generation)
            mend = "it is tried again at the next poll"
            self._problems.note(
                "publish",
                error if isinstance(error, PointsmanError) else ProcessError(f"publishing failed: {error!r}", mend=mend),
            )
        else:
            self._published = snapshot.generation
            self._problems.clear("publish")

    async def _withdraw(self) -> None:
        await self._keep(self.local.model_copy(update={"generation": self.local.generation + 1, "current": None}))
        self.snapshot = Snapshot(strategy=self._name, generation=self.local.generation, path="", sha256="", version="", kind="")
        logger.error("%s: nothing is in service; LiteLLM's own choice holds", self._name)
        await self.publish()

    async def flush(self) -> None:
        """Save what could not be saved before."""
        if self._unsaved:
            await self._keep(self.local)

    async def _save(self, local: LocalState) -> None:
        await in_thread(partial(self._vault.save, local))
        self.local, self._unsaved = local, False
        self._problems.clear("state")

    async def _keep(self, local: LocalState) -> None:
        """Take up a state even if it cannot be saved now."""
        try:
            await self._save(local)
        except ProcessError as error:
            self.local, self._unsaved = local, True
            self._problems.note("state", error)
