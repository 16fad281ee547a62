"""Keeps one strategy up to date on one instance: poll, verify, load, keep a copy, publish to the workers, keep the last good.

What runs is, in this order: the bundle that the desired state pins; the one that the pointer proposes, unless it is blocked;
the one that the last rollback went to; what is in service. A source or a database that is away, or a bad bundle, changes
nothing of what is in service. Only a block takes it out, even if there is nothing else.

Concurrency: everything belongs to one event loop. `_polling` lets one poll or reload run at a time, network included.
`_changing` covers each change of state, the database included; a rollback takes only this one, and so never waits for a
download. What a poll brings is compared with the desired state once more inside it. Blocking work runs in threads and
touches no state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from pointsman.errors import BundleError, PointsmanError, SourceError
from pointsman.settings import StrategySettings
from pointsman.strategies.bundle import Bundle
from pointsman.strategies.fetch import Fetcher, RejectedError
from pointsman.strategies.pointer import Pointer
from pointsman.strategies.problems import Problems
from pointsman.strategies.rollout import Rollout, accepted, blocked
from pointsman.strategies.snapshot import Reload, Snapshot, StrategyStatus
from pointsman.strategies.sources import Source, is_bundle, open_source
from pointsman.strategies.stage import Publish, Stage
from pointsman.strategies.threads import in_thread
from pointsman.strategies.vault import Kept, Vault

__all__ = ["Publish", "Reload", "Reloader", "Snapshot", "StrategyStatus"]

logger = logging.getLogger("pointsman.strategies")

START_WAIT = 5.0
"""Seconds that a start waits for the source; after that the first poll goes on in the background."""

T = TypeVar("T")


class Reloader:
    """See the module.

    Args:
        name: of the strategy.
        settings: where bundles come from and how they are checked.
        cache_dir: this strategy's directory for verified copies; nobody else may write to it.
        rollout: keeper of the desired state.
        publish: gives a snapshot to every worker; called once per generation, in order.
        source: instead of the one that `settings.source` names.
        encoders_dir: see `load_bundle`.
        observe: is told of each change and each refusal; neither blocks nor raises.
    """

    def __init__(
        self,
        name: str,
        settings: StrategySettings,
        cache_dir: Path,
        rollout: Rollout,
        publish: Publish,
        source: Source | None = None,
        encoders_dir: Path | None = None,
        observe: Callable[[Reload], None] = lambda _: None,
    ) -> None:
        self.name = name
        self._observe = observe
        self._told = (0, 0, "")  # swaps, refusals and version that were observed
        self._settings = settings
        self._rollout = rollout
        assert settings.source is not None  # noqa: S101 - narrows the type; what has no source has no reloader
        self._location: str = settings.source
        self._source = source or open_source(self._location, settings.s3)
        self._bare = is_bundle(self._location)
        vault = Vault(cache_dir)
        self._problems = Problems(name)
        self._fetcher = Fetcher(name, settings, self._source, vault, encoders_dir)
        self._stage = Stage(name, vault, self._fetcher, publish, self._problems)
        self._polling, self._changing = asyncio.Lock(), asyncio.Lock()
        self._proposal: Pointer | None = None
        self._tag: str | None = None
        self._modified: float | None = None
        self._refused: tuple[str, str | None] | None = None  # digest of the bundle last refused, tag of its object
        self._last_check: float | None = None
        self._counters = dict.fromkeys(("polls", "failures", "rollbacks"), 0)
        self._first: asyncio.Task[None] | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        """What workers are to serve; None: nothing was published since the start."""
        return self._stage.snapshot

    def status(self) -> StrategyStatus:
        """The present state."""
        stage, desired, problem = self._stage, self._stage.desired, self._problems.worst
        snapshot = stage.snapshot if stage.serving else None
        return StrategyStatus(
            name=self.name,
            source=self._location,
            kind=snapshot.kind if snapshot else None,
            version=snapshot.version if snapshot else None,
            sha256=snapshot.sha256 if snapshot else None,
            etag=self._tag if self._location.startswith("s3://") else None,
            mtime=self._modified,
            generation=stage.local.generation,
            rollout_generation=desired.generation if desired else 0,
            loaded_at=stage.loaded_at if snapshot else None,
            last_check=self._last_check,
            last_error=str(problem) if problem else None,
            last_error_code=problem.code if problem else None,
            sequence=stage.local.sequence,
            blocked=tuple(sorted(desired.blocked_sha256)) if desired else (),
            pinned=desired.pinned_sha256 if desired else None,
            degraded=snapshot is None,
            counters={**self._counters, "swaps": stage.swaps, "rejected": self._problems.rejected},
        )

    async def start(self) -> None:
        """Serve the last good copy on disk, then ask the source, waiting for it at most `START_WAIT` seconds.

        Never raises because something is away or bad; `status` tells.
        """
        try:
            async with self._observed(), self._changing:
                await self._stage.open()
                await self._read_rollout()
                await self._stage.restore()
        except PointsmanError as error:
            self._problems.note("disk", error)
        self._first = asyncio.create_task(self._poll(source=True), name=f"first-poll-{self.name}")
        await asyncio.wait({self._first}, timeout=START_WAIT)

    async def run(self) -> None:
        """Poll for ever; cancel it to stop. Without `hot_reload`, or for a bare bundle, until something is in service only."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                begun = loop.time()
                if self._first is not None:
                    await self._first
                await asyncio.sleep(max(0.0, begun + self._settings.reload_interval - loop.time()))
                self._first = None
                follow = self._settings.hot_reload and not self._bare
                begun = loop.time()
                await self._poll(source=follow or self._stage.serving is None)
        finally:
            if self._first is not None:
                self._first.cancel()
            self._source.close()

    async def reload(self) -> StrategyStatus:
        """Ask the source now, for refused objects too. What is wrong stands in the status; nothing is raised for it."""
        await self._poll(source=True, force=True)
        return self.status()

    async def rollback(self, actor: str, reason: str) -> StrategyStatus:
        """Block the bundle in service for the whole fleet and return to the previous good one.

        Args:
            actor: who.
            reason: why; both go to the history.

        Raises:
            BundleError: E4313, nothing is in service or there is nothing good to return to.
            DatabaseError: E4500, the fleet cannot be told.
            ProcessError: E4602, the disk refuses. After any of them what was in service still is.
        """
        async with self._observed(), self._changing:
            stage = self._stage
            await stage.open()
            await stage.set_desired(await self._rollout.read(self.name))
            current = stage.serving
            if current is None:
                raise self._no_way_back("nothing is in service")
            if not stage.is_blocked(current):  # else another instance was quicker, and its choice holds
                target = await stage.first_good(exclude=current)
                if target is None:
                    raise self._no_way_back("no earlier good bundle is on this instance's disk")
                rule = blocked(current, target[0].sha256, actor, reason)
                await stage.set_desired(await self._rollout.change(self.name, rule))
                logger.warning("%s: %s rolled back %s: %s", self.name, actor, current[:12], reason)
                self._counters["rollbacks"] += 1
            await stage.leave_blocked()
        return self.status()

    def _no_way_back(self, why: str) -> BundleError:
        return BundleError(why, code="E4313", where=self.name, mend="publish a good bundle")

    @asynccontextmanager
    async def _observed(self) -> AsyncIterator[None]:
        """Tell what the block changed. Of two at a time (a poll, a rollback) the first to end tells of it."""
        started = time.time_ns()
        try:
            yield
        finally:
            stage, snapshot = self._stage, self._stage.snapshot if self._stage.serving else None
            version = snapshot.version if snapshot else ""
            (swaps, rejected, previous), self._told = self._told, (stage.swaps, self._problems.rejected, version)
            changed = stage.swaps > swaps or version != previous
            if changed or self._problems.rejected > rejected:
                worst = self._problems.worst
                self._observe(
                    Reload(
                        strategy=self.name,
                        version=version or None,
                        generation=stage.local.generation if changed else None,
                        previous_version=(previous or None) if changed else None,
                        error=(worst.code if worst else "E4306") if self._problems.rejected > rejected else None,
                        started=started,
                        ended=time.time_ns(),
                    )
                )

    # One poll -------------------------------------------------------------------------------------------------------------

    async def _poll(self, *, source: bool, force: bool = False) -> None:
        async with self._polling, self._observed():
            self._counters["polls"] += 1
            try:
                async with self._changing:
                    await self._stage.open()
                    await self._stage.flush()
                    await self._read_rollout()
                    await self._stage.leave_blocked()
                    await self._stage.publish()
                if self._stage.desired is None:
                    return  # what is blocked is not known, so that nothing new may be taken up
                if source:
                    self._last_check = time.time()
                    await (self._look_bare(force) if self._bare else self._look(force))
                await self._settle(force)
            except PointsmanError as error:
                self._problems.note("disk", error)
            except Exception as error:  # a bug here must not end the polling; it is logged with its traceback
                logger.exception("%s: the poll failed", self.name)
                self._problems.note("poll", PointsmanError(f"the poll failed: {error!r}", mend="see the log; please report it"))
            else:
                self._problems.clear("disk")
                self._problems.clear("poll")

    async def _read_rollout(self) -> None:
        """Read the desired state; if that fails the last one known holds."""
        local = self._stage.local
        try:
            desired = await self._rollout.read(self.name)
            if desired.max_sequence < local.sequence and local.pointer_sha256:  # also one from while the database was away
                rule = accepted(local.sequence, local.pointer_sha256, actor="reloader")
                desired = await self._rollout.change(self.name, rule)
        except PointsmanError as error:
            self._counters["failures"] += 1
            self._problems.note("rollout", error)
            return
        self._problems.clear("rollout")
        await self._stage.set_desired(desired)

    async def _look(self, force: bool) -> None:
        """Take note of a new pointer. One that is refused leaves the proposal as it was."""
        local, desired = self._stage.local, self._stage.desired
        newest, digest = local.sequence, local.pointer_sha256
        if desired is not None and desired.max_sequence > newest:
            newest, digest = desired.max_sequence, desired.pointer_sha256
        work = partial(self._fetcher.pointer, None if force else self._tag, newest, digest)
        found = await self._attempt(work, "pointer", self._seen)
        if found is None:
            return
        if found.pointer.sequence > local.sequence:
            async with self._changing:
                await self._stage.accept(found.pointer)
                await self._read_rollout()
        self._proposal, self._tag, self._modified = found.pointer, found.tag, found.modified
        self._problems.clear("pointer")

    def _seen(self, rejected: RejectedError) -> None:
        """Not to be fetched again until it changes."""
        self._tag = rejected.tag or self._tag

    async def _look_bare(self, force: bool) -> None:
        """Fetch the bundle that the source is. It is immutable: what is in service is fetched again only when asked to."""
        if self._stage.serving is not None and self._tag is not None and not force:
            return
        found = await self._attempt(partial(self._fetcher.bare, None if force else self._tag), "pointer", self._seen)
        if found is None:
            return
        bundle, self._tag, self._modified = found
        self._problems.clear("pointer")
        if self._note_blocked(bundle.sha256):
            return
        async with self._changing:
            await self._stage.take(Kept(sha256=bundle.sha256, version=bundle.version, kind=bundle.kind), bundle)

    async def _settle(self, force: bool) -> None:
        """Bring into service what is wanted; where that fails, what is in service stays."""
        desired, proposal = self._stage.desired, self._proposal
        proposed = proposal is not None and not self._note_blocked(proposal.sha256)
        if desired is not None and desired.pinned_sha256:
            if await self._obtain(desired.pinned_sha256, None, force) or self._stage.serving is not None:
                return
        elif proposal is not None and proposed and await self._obtain(proposal.sha256, proposal, force):
            return
        target = desired.target_sha256 if desired else None
        displaced = proposal is not None and not proposed
        if target is not None and (displaced or self._stage.serving is None) and not self._stage.is_blocked(target):
            await self._obtain(target, None, force)

    def _note_blocked(self, sha256: str) -> bool:
        if not self._stage.is_blocked(sha256):
            self._problems.clear("blocked")
            return False
        self._problems.note(
            "blocked",
            BundleError(
                f"the source proposes {sha256[:12]}, which was rolled back",
                code="E4311",
                where=self._settings.source,
                mend="publish another bundle",
            ),
        )
        return True

    async def _obtain(self, sha256: str, proposal: Pointer | None, force: bool) -> bool:
        """Bring a bundle into service: a copy on disk, else from the source. Whether it is in service afterwards."""
        if self._stage.serving == sha256:
            self._problems.clear("bundle")
            return True
        kept = self._stage.local.find(sha256)
        if kept is not None and proposal is not None:
            kept = kept.model_copy(update={"pointer": proposal})
        found = await self._copy(kept) if kept is not None else None
        if found is None:
            found = await self._fetch(sha256, proposal or (kept.pointer if kept else None), force)
        if found is None:
            return False
        self._refused = None
        self._problems.clear("bundle")
        async with self._changing:
            return await self._stage.take(*found)

    async def _copy(self, kept: Kept) -> tuple[Kept, Bundle] | None:
        try:
            return kept, await in_thread(partial(self._fetcher.kept, kept))
        except (RejectedError, SourceError) as error:
            logger.warning("%s: the copy on disk does not do and is fetched again: %s", self.name, error)
            return None

    async def _fetch(self, sha256: str, pointer: Pointer | None, force: bool) -> tuple[Kept, Bundle] | None:
        if self._bare:  # nothing but itself can be had from it
            return None
        if pointer is None:
            pointer = await self._attempt(partial(self._fetcher.pointer_of, sha256), "bundle", lambda _: None)
            if pointer is None:
                return None
        refused, tag = self._refused or (None, None)
        known = tag if refused == sha256 and not force else None

        def on_rejected(rejected: RejectedError) -> None:
            self._refused = (sha256, rejected.tag)

        bundle = await self._attempt(partial(self._fetcher.bundle, pointer, known), "bundle", on_rejected)
        if bundle is None:
            return None
        return Kept(sha256=sha256, version=bundle.version, kind=bundle.kind, pointer=pointer), bundle

    async def _attempt(self, work: Callable[[], T | None], area: str, on_rejected: Callable[[RejectedError], None]) -> T | None:
        """Run blocking work of the fetcher; None for unchanged, refused or away, which is noted."""
        try:
            result = await in_thread(work)
        except RejectedError as rejected:
            self._problems.clear("source")
            self._problems.reject(area, rejected.error, rejected.key)
            on_rejected(rejected)
            return None
        except SourceError as error:
            self._counters["failures"] += 1
            self._problems.note("copy" if error.code == "E4410" else "source", error)
            return None
        self._problems.clear("source")
        if result is not None:
            self._problems.clear("copy")
        return result
