"""The archive of a bundle: an uncompressed zip of `manifest.json`, `*.safetensors` and an encoder's files, and nothing else.

Nothing is ever extracted to disk. Uncompressed means that what is unpacked can never be more than what was downloaded.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from pointsman.errors import BundleError
from pointsman.strategies.manifest import MANIFEST, NATIVE_FILE

__all__ = ["PICKLE_SUFFIXES", "looks_like_pickle", "pack", "pack_arrays", "pickle_error", "unpack", "unpack_arrays"]

PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin")
MAX_ENTRIES = 16
MAX_MANIFEST = 4 * 2**20
_MEMBER = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,63}}\.safetensors|{NATIVE_FILE}")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LAYOUT = "a bundle is an uncompressed zip of manifest.json and *.safetensors; make one with `pointsman mlops train`"


def pickle_error(where: str) -> BundleError:
    """E4205, with the way out."""
    return BundleError(
        "this is a pickle, which would run code when it is loaded; Pointsman never loads one",
        code="E4205",
        where=where,
        mend="turn it into a bundle with `pointsman strategies import` in the training environment, or train a new one",
    )


def looks_like_pickle(data: bytes, name: str = "") -> bool:
    """Whether a file is a pickle, or one in a wrapper (PyTorch, joblib), by its name or its first bytes."""
    if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES:
        return True
    binary = len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5  # opcode PROTO and its number
    text = data[:1] in (b"(", b"c", b"]", b"}") and data.rstrip()[-1:] == b"."  # protocols 0 and 1 end with STOP
    wrapped = data[:2] in (b"x\x9c", b"x\x01", b"x\xda", b"\x1f\x8b")  # joblib compresses with zlib or gzip
    return binary or text or wrapped


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive; the same members give the same bytes (no times, fixed order and attributes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(members.items(), key=lambda item: (item[0] != MANIFEST, item[0])):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o600 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def unpack(data: bytes, where: str) -> dict[str, bytes]:
    """The members of an archive.

    Raises:
        BundleError: E4300 (no archive of this layout), E4310 (a name that points elsewhere or stands twice), E4205 (a pickle).
    """
    if looks_like_pickle(data):
        raise pickle_error(where)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(data), where)
            return {entry.filename: archive.read(entry) for entry in entries}
    except BundleError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, ValueError, EOFError, OSError) as error:
        raise BundleError(f"the archive cannot be read: {error}", where=where, mend=_LAYOUT) from error
    except (
        NotImplementedError,
        RuntimeError,
        OverflowError,
        IndexError,
    ) as error:  # encryption, unknown methods, absurd offsets
        raise BundleError(f"the archive uses what a bundle may not: {error}", where=where, mend=_LAYOUT) from error


def _check_entries(entries: list[zipfile.ZipInfo], length: int, where: str) -> None:
    names = [entry.filename for entry in entries]
    # A member ending in .pkl is PyTorch's layout; .bin and the rest are not looked for inside an archive.
    if any(name.endswith(".pkl") for name in names):
        raise pickle_error(where)
    if len(entries) > MAX_ENTRIES:
        raise BundleError(f"the archive has {len(entries)} members; at most {MAX_ENTRIES}", where=where, mend=_LAYOUT)
    for entry in entries:
        # orig_filename is what stands in the archive; zipfile itself cuts names at NUL and turns separators round.
        name = entry.orig_filename
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if (
            name != entry.filename
            or ".." in parts
            or name.startswith(("/", "\\"))
            or re.match(r"[A-Za-z]:", name)
            or "\0" in name
        ):
            raise BundleError(f"the archive names {name!r}, outside itself", code="E4310", where=f"{where} {name!r}")
        if names.count(entry.filename) > 1:
            raise BundleError(f"the archive has {name!r} twice", code="E4310", where=f"{where} {name!r}")
        if name != MANIFEST and not _MEMBER.fullmatch(name):
            raise BundleError(f"the archive has {name!r}, which no bundle has", where=f"{where} {name!r}", mend=_LAYOUT)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 0x1:
            raise BundleError(f"{name!r} is compressed or encrypted", where=f"{where} {name!r}", mend=_LAYOUT)
        if name == MANIFEST and entry.file_size > MAX_MANIFEST:
            raise BundleError(f"the manifest is over {MAX_MANIFEST} bytes", code="E4306", where=f"{where} {name!r}")
    if sum(entry.file_size for entry in entries) > length:
        raise BundleError("the members overlap: together they are larger than the archive", where=where, mend=_LAYOUT)
    if MANIFEST not in names:
        raise BundleError(f"the archive has no {MANIFEST}", where=where, mend=_LAYOUT)


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as safetensors; the same arrays give the same bytes."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    data: bytes = save_safetensors(contiguous)
    return data


def unpack_arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """Arrays from safetensors.

    Raises:
        BundleError: E4300.
    """
    try:
        arrays: dict[str, NDArray[Any]] = load_safetensors(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:  # KeyError: a type that NumPy lacks
        raise BundleError(f"not readable as safetensors: {error}", where=where) from error
    return arrays
