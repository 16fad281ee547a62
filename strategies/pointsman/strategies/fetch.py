"""From a source to a verified copy on disk. Everything here blocks and runs in a thread; it decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pointsman.errors import BundleError
from pointsman.settings import StrategySettings
from pointsman.strategies.archive import PICKLE_SUFFIXES, pickle_error
from pointsman.strategies.bundle import Bundle, too_large
from pointsman.strategies.isolation import load_isolated
from pointsman.strategies.pointer import Pointer, check_sequence, parse_pointer, verify
from pointsman.strategies.sources import Source
from pointsman.strategies.sources.receive import receive, receive_pointer
from pointsman.strategies.vault import Kept, Vault

__all__ = ["Fetcher", "Proposal", "RejectedError"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pointer that is what it should be, with the tag and the time of its object."""

    pointer: Pointer
    tag: str
    modified: float | None


class RejectedError(Exception):
    """An object was fetched and refused. `key` names the object: the same object is refused under the same key."""

    def __init__(self, error: BundleError, key: str, tag: str | None) -> None:
        super().__init__(str(error))
        self.error, self.key, self.tag = error, key, tag


class Fetcher:
    """Fetches and verifies for one strategy; see `BundleError` for the codes.

    Raises (from all methods):
        RejectedError: the object is there and bad.
        SourceError, ProcessError: the source or the disk is not as it should be; to be tried again.
    """

    def __init__(
        self, name: str, settings: StrategySettings, source: Source, vault: Vault, encoders_dir: Path | None = None
    ) -> None:
        self._name, self._settings, self._source, self._vault = name, settings, source, vault
        self._load = partial(load_isolated, max_bytes=settings.max_bytes, encoders_dir=encoders_dir)

    def pointer(self, known: str | None, sequence: int, digest: str | None) -> Proposal | None:
        """The pointer, unless its tag is still `known`. `sequence`, `digest`: see `check_sequence`."""
        self._refuse_pickle()
        opened = self._source.open(None, known)
        if opened is None:
            return None
        with opened:
            try:
                pointer = self._checked(receive_pointer(opened), opened.where)
                check_sequence(pointer, sequence, digest, opened.where)
            except BundleError as error:
                raise RejectedError(error, f"pointer {opened.tag} {error.code}", opened.tag) from error
            return Proposal(pointer, opened.tag, opened.modified)

    def pointer_of(self, sha256: str) -> Pointer:
        """The signed pointer that lies beside a bundle, `bundles/<sha256>.json`.

        Its sequence number may be old: it is asked for by the desired state, not proposed by the source.
        """
        opened = self._source.open(f"bundles/{sha256}.json")
        assert opened is not None  # noqa: S101 - narrows the type; without a known tag something always comes
        with opened:
            try:
                pointer = self._checked(receive_pointer(opened), opened.where)
                if pointer.sha256 != sha256:
                    raise BundleError("the pointer is of another bundle", code="E4302", where=opened.where)
            except BundleError as error:
                raise RejectedError(error, f"pointer {opened.tag} {error.code}", opened.tag) from error
            return pointer

    def bundle(self, pointer: Pointer, known: str | None = None) -> Bundle | None:
        """Fetch what a pointer points to, verify it and keep it, unless its tag is still `known`."""
        if pointer.size > self._settings.max_bytes:
            error = too_large(pointer.bundle, self._settings.max_bytes)
            raise RejectedError(error, f"bundle {pointer.sha256} {error.code}", None)
        opened = self._source.open(pointer.bundle, known)
        if opened is None:
            return None
        incoming = self._vault.incoming()
        with opened:
            try:
                receive(opened, incoming, max_bytes=self._settings.max_bytes, sha256=pointer.sha256, size=pointer.size)
                bundle = self._load(incoming, expect_sha256=pointer.sha256, expect_name=self._name, where=opened.where)
                self._check(bundle, pointer, opened.where)
                self._vault.adopt(incoming, bundle.sha256)
            except BundleError as error:
                raise RejectedError(error, f"bundle {pointer.sha256} {opened.tag} {error.code}", opened.tag) from error
            finally:
                incoming.unlink(missing_ok=True)
        return bundle

    def bare(self, known: str | None) -> tuple[Bundle, str, float | None] | None:
        """Fetch the bundle that the source itself is; with its tag and time."""
        self._refuse_pickle()
        if self._settings.require_signature:
            error = BundleError(
                "a bare bundle carries no signature, and a signature is required",
                code="E4303",
                where=self._source.location,
                mend="publish it with `pointsman mlops publish --key` and use the pointer, or set `require_signature: false`",
            )
            raise RejectedError(error, f"source {error.code}", None)
        opened = self._source.open(None, known)
        if opened is None:
            return None
        incoming = self._vault.incoming()
        with opened:
            try:
                receive(opened, incoming, max_bytes=self._settings.max_bytes)
                bundle = self._load(incoming, where=opened.where)
                self._check(bundle, None, opened.where)
                self._vault.adopt(incoming, bundle.sha256)
            except BundleError as error:
                raise RejectedError(error, f"bundle {opened.tag} {error.code}", opened.tag) from error
            finally:
                incoming.unlink(missing_ok=True)
        return bundle, opened.tag, opened.modified

    def kept(self, kept: Kept) -> Bundle:
        """A copy on disk, verified as if it came from the source, its signature by the keys that are trusted today."""
        where = str(self._vault.path(kept.sha256))
        try:
            if kept.pointer is not None:
                self._checked_pointer(kept.pointer, where)
            elif self._settings.require_signature:
                raise BundleError("the copy was taken without a signature, and one is required now", code="E4303", where=where)
            bundle = self._load(
                self._vault.path(kept.sha256),
                expect_sha256=kept.sha256,
                expect_name=self._name if kept.pointer is not None else None,
            )
            self._check(bundle, kept.pointer, where)
        except BundleError as error:
            raise RejectedError(error, f"kept {kept.sha256} {error.code}", None) from error
        return bundle

    def _refuse_pickle(self) -> None:
        if self._source.location.lower().endswith(PICKLE_SUFFIXES):
            error = pickle_error(self._source.location)
            raise RejectedError(error, f"source {error.code}", None)

    def _checked(self, data: bytes, where: str) -> Pointer:
        pointer = parse_pointer(data, where)
        self._checked_pointer(pointer, where)
        return pointer

    def _checked_pointer(self, pointer: Pointer, where: str) -> None:
        verify(pointer, self._settings.trusted_keys, required=self._settings.require_signature, where=where)
        if pointer.strategy != self._name:
            raise BundleError(
                f"the pointer is for the strategy {pointer.strategy!r}, not {self._name!r}",
                code="E4305",
                where=where,
                mend=f"publish a bundle of the strategy {self._name!r} there, or correct `source`",
            )

    def _check(self, bundle: Bundle, pointer: Pointer | None, where: str) -> None:
        if pointer is not None and bundle.manifest_sha256 != pointer.manifest_sha256:
            raise BundleError("the manifest's sha256 is not the pointer's", code="E4302", where=where)
        if self._settings.kind is not None and bundle.kind != self._settings.kind:
            raise BundleError(
                f"the bundle is of kind {bundle.kind!r}, the configuration wants {self._settings.kind!r}",
                code="E4305",
                where=where,
                mend="publish one of that kind, or correct `kind`",
            )
