"""Encoders' files that lie on this machine instead of in the bundle: a directory in which each file's name is its SHA-256.

A bundle names them (`manifest.json`, `encoder.external`); nothing is downloaded when one is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pointsman.errors import BundleError, SourceError
from pointsman.strategies.files import sha256_hex, write_atomic
from pointsman.strategies.manifest import FileEntry

__all__ = ["add_file", "external_files"]


def external_files(entries: Mapping[str, FileEntry], directory: Path | None) -> dict[str, bytes]:
    """The files that a manifest names, by their names there. Blocking.

    Raises:
        BundleError: E4316, one is not there; E4302, it is not what it is called.
    """
    files: dict[str, bytes] = {}
    for name, entry in entries.items():
        mend = f"put it there: `pointsman strategies encoder add FILE`, or `fetch` it with --sha256 {entry.sha256}"
        if directory is None:
            raise BundleError(
                f"the encoder's file {name!r} is not in the bundle, and `pointsman.encoders_dir` is not set",
                code="E4316",
                where=f"manifest.json encoder.external {name}",
                mend=f"set it; then {mend}",
            )
        path = directory / entry.sha256
        try:
            with path.open("rb") as stream:
                data = stream.read(entry.size + 1)  # never more than was promised, whatever lies there
        except OSError as error:
            raise BundleError(
                f"the encoder's file {name!r} is not on this machine: {error.strerror or error}",
                code="E4316",
                where=str(path),
                mend=mend,
            ) from error
        if len(data) != entry.size or sha256_hex(data) != entry.sha256:
            raise BundleError(
                f"{name!r} does not have the size and sha256 of the manifest", code="E4302", where=str(path), mend=mend
            )
        files[name] = data
    return files


def add_file(directory: Path, data: bytes) -> Path:
    """Put a file into the directory under its digest; where it lies. What is there already stays.

    Raises:
        SourceError: E4410.
    """
    path = directory / sha256_hex(data)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or sha256_hex(path.read_bytes()) != path.name:
            write_atomic(path, data, mode=0o644)
    except OSError as error:
        raise SourceError(
            f"the encoder's file cannot be written: {error.strerror or error}",
            code="E4410",
            where=str(path),
            mend="check the directory's permissions and the space left on it",
        ) from error
    return path
