"""A bundle by the name that a person gives: a file, a pointer, `s3://`; with every check of a gateway, and nothing kept.

Gateways fetch by `fetch`, which also remembers what it saw; here a question is answered once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pointsman.errors import BundleError, SourceError
from pointsman.settings import S3Settings
from pointsman.strategies.archive import PICKLE_SUFFIXES, pickle_error
from pointsman.strategies.bundle import DEFAULT_MAX_BYTES, Bundle, too_large
from pointsman.strategies.isolation import load_isolated
from pointsman.strategies.pointer import Pointer, parse_pointer, verify
from pointsman.strategies.sources import Opened, Source, is_bundle, open_source
from pointsman.strategies.sources.receive import receive, receive_pointer

__all__ = ["Copy", "load", "obtain"]


@dataclass(frozen=True, slots=True)
class Copy:
    """A bundle's bytes, as promised by its pointer if there is one, and not looked into yet.

    Attributes:
        path: a copy; gone with the `obtain` that made it.
        where: what messages call it.
        pointer: what it was found by; None for a bare bundle.
        signed_by: the trusted key that the pointer's signature was verified with; None: not verified.
    """

    path: Path
    where: str
    pointer: Pointer | None = None
    signed_by: str | None = None


@contextmanager
def obtain(
    location: str,
    *,
    trusted: Mapping[str, str] | None = None,
    name: str | None = None,
    s3: S3Settings | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Iterator[Copy]:
    """Fetch what a location names, into a directory that is gone when the block ends.

    Args:
        location: a path, `file://` URL or `s3://bucket/key` of a bundle (.zip) or a pointer.
        trusted: key id -> base64 of the public key. With any, only a pointer that one of them signed will do.
        name: strategy that the pointer must be for.
        s3: how to reach the S3 API.
        max_bytes: size limit of the bundle.

    Raises:
        BundleError: E4205, E4301 to E4303, E4305, E4312.
        SourceError: it cannot be reached, read or copied. ConfigError: E4203, no location.
    """
    if location.lower().endswith(PICKLE_SUFFIXES):
        raise pickle_error(location)
    source = open_source(location, s3 or S3Settings())
    try:
        with tempfile.TemporaryDirectory(prefix="pointsman-") as directory:
            path = Path(directory) / "bundle.zip"
            if is_bundle(location):
                if trusted:
                    raise BundleError(
                        "a bare bundle carries no signature",
                        code="E4303",
                        where=location,
                        mend="name the pointer that `pointsman strategies publish --key` wrote",
                    )
                with _open(source, None) as opened:
                    receive(opened, path, max_bytes=max_bytes)
                    where = opened.where
                yield Copy(path, where)
            else:
                yield _by_pointer(source, path, trusted or {}, name, max_bytes)
    finally:
        source.close()


def _by_pointer(source: Source, path: Path, trusted: Mapping[str, str], name: str | None, max_bytes: int) -> Copy:
    with _open(source, None) as opened:
        pointer = parse_pointer(receive_pointer(opened), opened.where)
        verify(pointer, trusted, required=bool(trusted), where=opened.where)
        if name is not None and pointer.strategy != name:
            raise BundleError(
                f"the pointer is for the strategy {pointer.strategy!r}, not {name!r}", code="E4305", where=opened.where
            )
    if pointer.size > max_bytes:
        raise too_large(pointer.bundle, max_bytes)
    with _open(source, pointer.bundle) as opened:
        receive(opened, path, max_bytes=max_bytes, sha256=pointer.sha256, size=pointer.size)
        return Copy(path, opened.where, pointer, pointer.key_id if trusted else None)


def _open(source: Source, key: str | None) -> Opened:
    opened = source.open(key)
    if opened is None:  # only a source that was told a tag may say this
        raise SourceError("the source answers that nothing changed", where=source.location)
    return opened


def load(copy: Copy, *, name: str | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> Bundle:
    """Verify a copy, as a gateway does before it serves.

    Args:
        copy: from `obtain`.
        name: strategy that it must be for; by default the pointer's.
        max_bytes: size limit.

    Raises:
        BundleError: see `load_isolated`; E4302, the pointer promises another manifest.
    """
    pointer = copy.pointer
    wanted = name if name is not None or pointer is None else pointer.strategy
    bundle = load_isolated(copy.path, max_bytes=max_bytes, expect_name=wanted, where=copy.where)
    if pointer is not None and bundle.manifest_sha256 != pointer.manifest_sha256:
        raise BundleError("the manifest's sha256 is not the pointer's", code="E4302", where=copy.where)
    return bundle
