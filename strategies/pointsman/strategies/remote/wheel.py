"""A wheel of the operator's own code: looked at before anything of it is used, and unpacked where nothing else lies.

Only what is plain Python, for every platform, and listed with its digest is taken (PyPA's binary distribution format 1.0):
no scripts, no `.pth`, no `.data`, no compiled code, no pickles, no links, no path that leaves the directory. Nothing is
imported here.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import stat
import zipfile
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

from pointsman.errors import BundleError
from pointsman.strategies.files import sha256_hex

__all__ = ["MAX_WHEEL", "Wheel", "open_wheel", "unpack_wheel"]

MAX_WHEEL = 32 * 2**20
"""Largest wheel in bytes, packed and unpacked; `max_bytes` of the strategy may be lower."""

MAX_FILES, MAX_PATH = 2_000, 240
TAG = "py3-none-any"
_NATIVE = {".so", ".pyd", ".dll", ".dylib", ".exe", ".pyc", ".pyo"}
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin"}  # `.pth` also is a file of paths and code, run at start
REFUSED = frozenset({*_NATIVE, *_PICKLES, ".sh", ".bat", ".zip", ".whl", ".egg"})
"""Suffixes of what is no plain Python and no plain data."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that is as it should be: its digest, name and version, and the content of its files by path."""

    sha256: str
    name: str
    version: str
    files: dict[str, bytes]


def _wrong(what: str, where: str) -> BundleError:
    return BundleError(what, code="E4330", where=where, mend="build a pure wheel (py3-none-any) of plain Python and data")


def open_wheel(path: Path, *, max_bytes: int, expect_sha256: str, where: str | None = None) -> Wheel:
    """Read and check a wheel.

    Args:
        path: the file.
        max_bytes: refused above, packed or unpacked; never above `MAX_WHEEL`.
        expect_sha256: of the file.
        where: for messages.

    Raises:
        BundleError: E4301 (too large), E4302 (digest), E4310 (a path that leaves the directory), E4330 (anything else).
    """
    where, limit = where or str(path), min(max_bytes, MAX_WHEEL)
    try:
        if path.stat().st_size > limit:
            raise _too_large(where, limit)
        data = path.read_bytes()
        if sha256_hex(data) != expect_sha256:
            raise BundleError("the wheel's sha256 is not the pointer's", code="E4302", where=where, mend="publish it again")
        with zipfile.ZipFile(path) as archive:
            files = _read(archive, limit, where)
    except BundleError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen things over a damaged archive
        raise _wrong(f"the wheel cannot be read: {type(error).__name__}: {error}", where) from error
    return _described(files, expect_sha256, where)


def _too_large(where: str, limit: int) -> BundleError:
    return BundleError(f"the wheel has more than {limit} bytes", code="E4301", where=where, mend="raise `max_bytes`")


def _read(archive: zipfile.ZipFile, limit: int, where: str) -> dict[str, bytes]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MAX_FILES:
        raise _wrong(f"the wheel has more than {MAX_FILES} files", where)
    if sum(info.file_size for info in infos) > limit:
        raise _too_large(where, limit)
    files: dict[str, bytes] = {}
    folded: set[str] = set()
    for info in infos:
        name = info.filename
        _check_name(name, where)
        if name.casefold() in folded:
            raise _wrong(f"{name} is there twice", where)
        folded.add(name.casefold())
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _wrong(f"{name} is no plain file", where)
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _wrong(f"{name} is encrypted or packed in an odd way", where)
        with archive.open(info) as stream:
            files[name] = stream.read(info.file_size + 1)
        if len(files[name]) != info.file_size:
            raise _wrong(f"{name} is not as long as is said", where)
    return files


def _check_name(name: str, where: str) -> None:
    parts = name.split("/")
    odd = len(name) > MAX_PATH or "\\" in name or ":" in name or any(ord(char) < 32 for char in name)
    if odd or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"the wheel names {name[:100]!r}", code="E4310", where=where, mend="build it anew")
    if PurePosixPath(name).suffix.lower() in REFUSED or parts[0].endswith(".data"):
        raise _wrong(f"{name} is not taken: scripts, native code, `.pth` and pickles never are", where)
    if parts[0] in ("sitecustomize.py", "usercustomize.py"):
        raise _wrong(f"{name} would run by itself", where)


def _described(files: dict[str, bytes], sha256: str, where: str) -> Wheel:
    infos = {name.split("/")[0] for name in files if name.split("/")[0].endswith(".dist-info")}
    if len(infos) != 1:
        raise _wrong("a wheel has one .dist-info", where)
    info = infos.pop()
    if lacking := [name for name in ("WHEEL", "METADATA", "RECORD") if f"{info}/{name}" not in files]:
        raise _wrong(f"the wheel lacks {info}/{lacking[0]}", where)
    about = BytesParser().parsebytes(files[f"{info}/WHEEL"])
    if str(about.get("Root-Is-Purelib", "")).lower() != "true" or about.get_all("Tag") != [TAG]:
        raise _wrong(f"the wheel is not tagged {TAG} alone", where)
    try:
        rows = [row for row in csv.reader(files[f"{info}/RECORD"].decode().splitlines()) if row]
        listed = {row[0]: row[1] for row in rows}
    except (UnicodeDecodeError, csv.Error, IndexError) as error:
        raise _wrong("its RECORD cannot be read", where) from error
    if len(listed) != len(rows) or listed.keys() != files.keys():
        raise _wrong("its RECORD does not list its files", where)
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if name != f"{info}/RECORD" and listed[name] != f"sha256={digest}":
            raise _wrong(f"{name} is not what its RECORD says", where)
    metadata = BytesParser().parsebytes(files[f"{info}/METADATA"])
    return Wheel(sha256, str(metadata.get("Name", ""))[:100], str(metadata.get("Version", ""))[:64], files)


def unpack_wheel(wheel: Wheel, directory: Path) -> Path:
    """Write its files into `directory/<sha256>`, unless they are there; returns that path.

    Raises:
        OSError: it cannot be written.
    """
    target = directory / wheel.sha256
    for name, content in wheel.files.items():
        path = target / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content)
    return target
