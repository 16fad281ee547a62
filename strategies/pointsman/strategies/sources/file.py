"""Bundles from a directory. Tag: mtime in nanoseconds, size and inode, so that a file replaced within one clock tick counts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pointsman.errors import SourceError
from pointsman.strategies.sources import CHUNK, Opened

__all__ = ["FileSource"]


class FileSource:
    """See `Source`. Files are replaced by rename (as `publish` does), or a reader may meet half of one and refuse it."""

    def __init__(self, location: str, path: Path) -> None:
        self.location = location
        self._path = path

    def open(self, key: str | None = None, known: str | None = None) -> Opened | None:
        """See `Source.open`."""
        path = self._path if key is None else self._path.parent / key
        try:
            # Not blocking: opening a pipe that somebody put here would otherwise wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            stream = os.fdopen(descriptor, "rb")
            found = os.fstat(descriptor)
        except FileNotFoundError as error:
            raise SourceError(
                "the file does not exist", code="E4404", where=str(path), mend="publish a bundle there, or correct `source`"
            ) from error
        except PermissionError as error:
            raise SourceError(
                "the file may not be read", code="E4401", where=str(path), mend="give the gateway's user the right to read it"
            ) from error
        except OSError as error:  # fdopen refuses a directory and closes the descriptor
            raise SourceError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
        tag = f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"
        if not stat.S_ISREG(found.st_mode):
            stream.close()
            raise SourceError("this is no regular file", where=str(path), mend="correct `source`")
        if tag == known:
            stream.close()
            return None
        return Opened(str(path), tag, found.st_size, _chunks(stream, path), found.st_mtime, stream.close)

    def close(self) -> None:
        """Nothing is held open."""


def _chunks(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    while True:
        try:
            chunk = stream.read(CHUNK)
        except OSError as error:
            raise SourceError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
        if not chunk:
            return
        yield chunk
