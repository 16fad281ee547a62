"""Take what a source sends: a pointer into memory, a bundle into a file, checking size and digest while it comes."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from pointsman.errors import BundleError, SourceError
from pointsman.strategies.bundle import too_large
from pointsman.strategies.files import atomic_file
from pointsman.strategies.pointer import MAX_POINTER
from pointsman.strategies.sources import Opened

__all__ = ["DEADLINE", "receive", "receive_pointer"]

DEADLINE = 600.0
"""Seconds for one object as a whole: a source that sends a byte now and then would otherwise hold the poll for ever."""


def receive_pointer(opened: Opened) -> bytes:
    """The whole object.

    Raises:
        BundleError: E4312, over `MAX_POINTER` bytes.
        SourceError: E4400.
    """
    data = b""
    end = time.monotonic() + DEADLINE
    if opened.length <= MAX_POINTER:
        for chunk in opened.chunks:
            data += chunk
            if len(data) > MAX_POINTER:
                break
            if time.monotonic() > end:
                raise SourceError(f"the pointer did not arrive within {DEADLINE:g} s", where=opened.where)
    if max(opened.length, len(data)) > MAX_POINTER:
        raise BundleError(
            f"a pointer has at most {MAX_POINTER} bytes",
            code="E4312",
            where=opened.where,
            mend="a bundle's name ends in .zip, a pointer's in .json",
        )
    return data


def receive(opened: Opened, into: Path, *, max_bytes: int, sha256: str | None = None, size: int | None = None) -> None:
    """Write an object to the new file `into`, which exists afterwards only if everything fits.

    Args:
        opened: the object.
        into: where to.
        max_bytes: refused before the first byte if more is announced, else as soon as more came.
        sha256, size: what it must have, if known.

    Raises:
        BundleError: E4301 (too large), E4302 (size or digest).
        SourceError: E4400 (connection cut, takes too long), E4410 (`into` cannot be written).
    """
    if opened.length > max_bytes:
        raise too_large(opened.where, max_bytes)
    digest, length, end = hashlib.sha256(), 0, time.monotonic() + DEADLINE
    try:
        with atomic_file(into) as stream:
            for chunk in opened.chunks:
                length += len(chunk)
                if length > max_bytes:
                    raise too_large(opened.where, max_bytes)
                if size is not None and length > size:
                    raise _wrong_size(opened.where, size, f"more than {size}")
                if time.monotonic() > end:
                    raise SourceError(f"the bundle did not arrive within {DEADLINE:g} s", where=opened.where)
                digest.update(chunk)
                stream.write(chunk)
            if size is not None and length != size:
                raise _wrong_size(opened.where, size, str(length))
            if sha256 is not None and digest.hexdigest() != sha256:
                raise BundleError(
                    f"the bundle's sha256 is {digest.hexdigest()}, the pointer promises {sha256}",
                    code="E4302",
                    where=opened.where,
                    mend="publish it again; it was damaged or replaced",
                )
    except OSError as error:
        raise SourceError(
            f"the bundle's copy cannot be written: {error.strerror or error}",
            code="E4410",
            where=str(into.parent),
            mend="check the permissions of the data directory and the space left on it",
        ) from error


def _wrong_size(where: str, size: int, found: str) -> BundleError:
    return BundleError(
        f"the bundle has {found} bytes, the pointer promises {size}",
        code="E4302",
        where=where,
        mend="publish it again; it was cut or replaced",
    )
