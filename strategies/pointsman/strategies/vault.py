"""The disk of a reloader: verified copies of bundles by digest, and what must outlive a restart. One owner, one directory."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pointsman.errors import ProcessError
from pointsman.strategies.files import canonical_json, is_sha256, strict_json, sync_directory, write_atomic
from pointsman.strategies.pointer import Pointer
from pointsman.strategies.rollout import DesiredState

__all__ = ["Kept", "LocalState", "Vault"]

logger = logging.getLogger("pointsman.strategies")


class Kept(BaseModel):
    """A bundle that was in service: its copy is on disk. `pointer` is what proposed it, None for a bare bundle."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    version: str
    kind: str
    pointer: Pointer | None = None


class LocalState(BaseModel):
    """What outlives a restart.

    Attributes:
        generation: last one given out.
        current: digest of the bundle in service.
        kept: bundles on disk, in the order in which they last went into service.
        sequence, pointer_sha256: newest pointer that was verified here.
        desired: the last desired state that was read.
    """

    model_config = ConfigDict(frozen=True)

    generation: int = 0
    current: str | None = None
    kept: tuple[Kept, ...] = ()
    sequence: int = 0
    pointer_sha256: str | None = None
    desired: DesiredState | None = None

    def find(self, sha256: str | None) -> Kept | None:
        """The kept bundle of that digest."""
        return next((item for item in self.kept if item.sha256 == sha256), None)


class Vault:
    """Methods block and raise ProcessError E4602 where the disk refuses."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._state_file = directory / "state.json"

    def open(self) -> LocalState:
        """Make the directory (0700), remove what an interrupted run left, read the state.

        A damaged state counts as none: it is written atomically, so that somebody else must have damaged it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.directory.chmod(0o700)  # it may have been there already, made by somebody less careful
            for leftover in self.directory.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            encoded = self._state_file.read_bytes()
        except FileNotFoundError:
            return LocalState()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            return LocalState.model_validate(strict_json(encoded))
        except (ValueError, ValidationError) as error:
            logger.error("%s is damaged and set aside; starting without a last good bundle: %s", self._state_file, error)
            with contextlib.suppress(OSError):
                self._state_file.replace(self._state_file.with_suffix(".damaged"))
            return LocalState()

    def save(self, state: LocalState) -> None:
        """Write the state, atomically and durably."""
        value = state.model_dump(mode="json")
        if state.desired is not None:
            value["desired"]["blocked_sha256"] = sorted(state.desired.blocked_sha256)
        try:
            write_atomic(self._state_file, canonical_json(value))
        except OSError as error:
            raise self._unusable(error) from error

    def path(self, sha256: str) -> Path:
        """Where the copy of a bundle lies."""
        return self.directory / f"{sha256}.zip"

    def incoming(self) -> Path:
        """A name for a download that is not verified yet; `open` removes what is left of one."""
        return self.directory / f".incoming-{secrets.token_hex(6)}.tmp"

    def adopt(self, incoming: Path, sha256: str) -> None:
        """Give a verified download its place."""
        try:
            incoming.replace(self.path(sha256))
            sync_directory(self.directory)
        except OSError as error:
            raise self._unusable(error) from error

    def prune(self, keep: Collection[str]) -> None:
        """Remove copies other than these. A copy that cannot be removed costs space only."""
        with contextlib.suppress(OSError):
            for path in self.directory.glob("*.zip"):
                if is_sha256(path.stem) and path.stem not in keep:
                    path.unlink(missing_ok=True)

    def _unusable(self, error: OSError) -> ProcessError:
        return ProcessError(
            f"the directory for bundles cannot be used: {error.strerror or error}",
            code="E4602",
            where=str(self.directory),
            mend="check its owner, its permissions and the space left on it",
        )
