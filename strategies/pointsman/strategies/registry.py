"""What one worker serves: strategy name to loaded bundle. Reading is one look-up in a dict that is never changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from pointsman.strategies.base import AsyncScorer, Query, UnavailableError, WithFiles
from pointsman.strategies.bundle import Bundle, load_bundle
from pointsman.strategies.embedding import Embed, RemoteScorer
from pointsman.strategies.encoders.remote import RemoteEncoder
from pointsman.strategies.snapshot import Snapshot
from pointsman.strategies.threads import in_thread

__all__ = ["StrategyRegistry"]

NO_LIMIT = 1 << 62
"""The supervisor checked the size; the digest makes sure that this is the same file."""


async def _nobody(model: str, text: str, query: Query) -> object:
    raise UnavailableError("remote_only", f"nothing here can ask {model}")


class StrategyRegistry:
    """`apply` belongs to one event loop; `get` may be called from any thread, at any time, without a lock.

    Args:
        encoders_dir: see `load_bundle`.
        embed: asks an embedding model of the gateway, for bundles whose encoder is `remote`.
    """

    def __init__(self, encoders_dir: Path | None = None, embed: Embed | None = None) -> None:
        self._encoders_dir, self._embed = encoders_dir, embed
        self._remote: Mapping[str, RemoteScorer] = MappingProxyType({})
        self._bundles: Mapping[str, Bundle] = MappingProxyType({})
        self._generations: Mapping[str, int] = MappingProxyType({})
        self._installed: Mapping[str, AsyncScorer] = MappingProxyType({})

    def get(self, name: str) -> Bundle | AsyncScorer | None:
        """What serves under a name, or None. A request keeps the one that it got, whatever is swapped meanwhile."""
        return self._remote.get(name) or self._bundles.get(name) or self._installed.get(name)

    def install(self, name: str, scorer: AsyncScorer | None) -> None:
        """Serve a strategy that is no bundle (a worker process, a plugin); None takes it out."""
        others = {known: value for known, value in self._installed.items() if known != name}
        self._installed = MappingProxyType(others if scorer is None else {**others, name: scorer})

    @property
    def generations(self) -> Mapping[str, int]:
        """Strategy -> generation in service."""
        return self._generations

    def _load(self, path: Path, sha256: str) -> Bundle:
        bundle = load_bundle(path, max_bytes=NO_LIMIT, expect_sha256=sha256, encoders_dir=self._encoders_dir)
        if isinstance(bundle.encoder, WithFiles):
            bundle.encoder.put_files_away()  # the model is in the session; its file would be held a second time
        return bundle

    async def apply(self, snapshot: Snapshot) -> None:
        """Load a snapshot's bundle in a thread and swap it in; it is live when this returns. An older generation is ignored.

        Raises:
            BundleError, SourceError: it cannot be loaded; what is in service stays.
        """
        present = self._bundles.get(snapshot.strategy)
        bundle: Bundle | None = None
        if snapshot.path:
            if present is not None and present.sha256 == snapshot.sha256:
                bundle = present
            else:
                bundle = await in_thread(partial(self._load, Path(snapshot.path), snapshot.sha256))
        if snapshot.generation <= self._generations.get(snapshot.strategy, -1):  # a later one was quicker
            return
        bundles = dict(self._bundles)
        if bundle is None:
            bundles.pop(snapshot.strategy, None)
        else:
            bundles[snapshot.strategy] = bundle
        remote = {name: scorer for name, scorer in self._remote.items() if name != snapshot.strategy}
        if bundle is not None and isinstance(bundle.encoder, RemoteEncoder):
            before = self._remote.get(snapshot.strategy)
            same = before is not None and before.bundle is bundle
            remote[snapshot.strategy] = before if before is not None and same else RemoteScorer(bundle, self._embed or _nobody)
        # One assignment each; readers see the old mapping or the new one, never a half.
        self._remote = MappingProxyType(remote)
        self._bundles = MappingProxyType(bundles)
        self._generations = MappingProxyType({**self._generations, snapshot.strategy: snapshot.generation})
