"""Where bundles come from. A source opens what changed and nothing else; `open_source` makes the one that a URL names.

Methods block (disk, network) and are called from a thread; every wait in them is bounded. A *tag* is opaque: it changes when
the object does (S3's ETag; a file's mtime, size and inode).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import unquote, urlsplit

from pointsman.errors import ConfigError

if TYPE_CHECKING:
    from pointsman.settings import S3Settings

__all__ = ["CHUNK", "Opened", "Source", "is_bundle", "open_source"]

CHUNK = 256 * 1024
"""Bytes read at once."""


@dataclass(slots=True)
class Opened:
    """An object that is being read; a context manager.

    Attributes:
        where: its full address, for messages.
        tag: see the module.
        length: bytes that the source announces.
        chunks: its bytes. Raises `SourceError`, never an OSError.
        modified: Unix time in seconds of the last change, where the source tells.
    """

    where: str
    tag: str
    length: int
    chunks: Iterator[bytes]
    modified: float | None = None
    close: Callable[[], object] = field(default=lambda: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Source(Protocol):
    """One pointer, or one bare bundle, and what lies beside it."""

    location: str
    """What the operator configured, for messages."""

    def open(self, key: str | None = None, known: str | None = None) -> Opened | None:
        """Begin to read an object, or None when its tag is still `known`.

        Args:
            key: relative to the directory of `location`; None: `location` itself.
            known: a tag for which nothing is wanted.

        Raises:
            SourceError: E4400 (away), E4401 (credentials, permissions), E4404 (no such object).
        """

    def close(self) -> None:
        """Give connections back."""


def is_bundle(location: str) -> bool:
    """Whether a source is a bare bundle (`.zip`), which is immutable, and not a pointer."""
    return location.lower().endswith(".zip")


def open_source(location: str, s3: S3Settings) -> Source:
    """The source of a URL: `s3://bucket/key`, `file:///path` or a path. Nothing is contacted yet.

    Raises:
        ConfigError: E4203.
    """
    scheme, separator, _ = location.partition("://")
    if separator and scheme == "s3":
        from pointsman.strategies.sources.s3 import S3Source

        return S3Source(location, s3)
    from pointsman.strategies.sources.file import FileSource

    if separator and scheme == "file":
        parts = urlsplit(location)
        if parts.netloc in ("", "localhost"):
            return FileSource(location, Path(unquote(parts.path)))
    if separator:
        raise ConfigError(f"{location!r} is no source", code="E4203", mend="use a path, file:///path or s3://bucket/key")
    return FileSource(location, Path(location))
