"""Small things about files and JSON that must be right in one place: atomic writes, canonical and strict JSON, digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["atomic_file", "canonical_json", "is_sha256", "sha256_hex", "strict_json", "sync_directory", "write_atomic"]


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def is_sha256(text: object) -> bool:
    """Whether it is a SHA-256 in the one spelling that we write: 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: keys sorted, no spaces, UTF-8.

    Numbers are spelled as Python does; what is signed holds integers only.

    Raises:
        ValueError: NaN or infinity, which JSON lacks.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def strict_json(data: bytes) -> Any:
    """Parse JSON; refuse what two parsers may read in two ways.

    Raises:
        ValueError: not JSON in UTF-8, a key twice in one object, NaN or infinity, too deep.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def sync_directory(path: Path) -> None:
    """Make renames within a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """A file that appears under `path` complete and durable when the block ends well, and not at all otherwise.

    Raises:
        OSError: e.g. disk full; what was there before is untouched and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:  # also a cancelled task or Ctrl-C must leave nothing behind
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a whole file by `atomic_file`."""
    with atomic_file(path, mode) as stream:
        stream.write(data)
