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
from pointsman.strategies.files import strict_json
from pointsman.strategies.manifest import MANIFEST, NATIVE_FILE

__all__ = ["PICKLE_SUFFIXES", "looks_like_pickle", "pack", "pack_arrays", "pickle_error", "unpack", "unpack_arrays"]

PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin")
PICKLE_MEMBERS = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
"""Within an archive; .bin is no sign of one there."""

CODE_SUFFIXES = (
    *(".py", ".pyc", ".pyd", ".pyo", ".pth", ".whl", ".egg", ".zip", ".jar", ".js", ".mjs", ".cjs", ".wasm", ".lua", ".sh"),
    *(".bash", ".bat", ".cmd", ".ps1", ".exe", ".dll", ".dylib", ".so", ".o", ".a", ".ko", ".node"),
)
MAX_ENTRIES = 16
MAX_MANIFEST = 4 * 2**20
MAX_HEADER = 256 * 1024
"""Bytes of a file's description of its arrays; the parser would take 100 MB."""
MAX_ARRAYS = 1024
MAX_AXES = 4
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


def code_error(name: str, where: str) -> BundleError:
    """E4317."""
    return BundleError(
        f"the archive holds {name!r}, which is code; a bundle has numbers only, and nothing of it is ever executed",
        code="E4317",
        where=f"{where} {name!r}",
        mend="leave it out; a strategy that is code is installed as an entry point (`llmrouter-custom`)",
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
    if any(name.lower().endswith(PICKLE_MEMBERS) for name in names):  # .pkl: PyTorch's layout
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
        if name.lower().endswith(CODE_SUFFIXES) or re.search(r"\.so(\.\d+)*$", name):
            raise code_error(name, where)
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
    _check_header(data, where)
    try:
        arrays: dict[str, NDArray[Any]] = load_safetensors(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:  # KeyError: a type that NumPy lacks
        raise BundleError(f"not readable as safetensors: {error}", where=where) from error
    return arrays


def _check_header(data: bytes, where: str) -> None:
    """What a file claims, before anything is allocated for it (https://github.com/huggingface/safetensors#format).

    A claim is refused that is too long, names too many arrays or axes, or has an array without an element: a shape such as
    (2**60, 0) takes no byte in the file, and a copy with one element more would take all memory.
    """

    def wrong(message: str) -> BundleError:
        return BundleError(f"not readable as safetensors: {message}", where=where)

    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER):
        raise wrong(f"it claims a header of {length} bytes; at most {MAX_HEADER}, and no more than there are")
    try:
        header = strict_json(data[8 : 8 + length])
    except ValueError as error:
        raise wrong(str(error)) from error
    if not isinstance(header, dict) or len(header) > MAX_ARRAYS:
        raise wrong(f"its header is no object of at most {MAX_ARRAYS} arrays")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or len(shape) > MAX_AXES:
            raise wrong(f"{name[:64]!r} has no shape of at most {MAX_AXES} axes")
        if not all(type(size) is int and 0 < size <= len(data) for size in shape):
            raise wrong(f"{name[:64]!r} has a shape that its bytes do not fill")
