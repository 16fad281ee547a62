"""Verifies bundles that hold files for native parsers (ONNX, tokenisers) in a process of its own first, then here.

The child has a limit of memory and of processor time, no secrets in its environment, and a deadline. If it crashes, hangs or
asks for too much, the bundle is refused (E4314) and what is in service stays. Other bundles hold arrays only and are verified
here at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pointsman.errors import CATALOGUE, BundleError, PointsmanError, SourceError
from pointsman.strategies.bundle import DEFAULT_MAX_BYTES, Bundle, load_bundle
from pointsman.strategies.files import strict_json
from pointsman.strategies.manifest import MANIFEST

__all__ = ["LIMITS", "Limits", "child_command", "load_isolated", "needs_isolation", "verify_isolated"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the child may take.

    Attributes:
        memory: bytes of address space above what the bare child needs, for a bundle without weights.
        memory_factor: bytes for each byte of the bundle and of its encoder's files beside it.
        cpu: seconds of processor time.
        wall: seconds by the clock, for what hangs without work: a machine that is busy makes minutes of what takes seconds.
    """

    memory: int = 1536 * 2**20
    memory_factor: int = 8
    cpu: int = 60
    wall: float = 240.0


LIMITS = Limits()


def needs_isolation(path: Path) -> bool:
    """Whether a bundle holds, or names, files for native parsers. What cannot be read is for `load_bundle` to refuse."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(not name.endswith((".safetensors", ".json")) or "tokenizer" in name for name in archive.namelist()):
                return True
            entry = archive.getinfo(MANIFEST)
            if entry.file_size > 4 * 2**20:
                return False
            manifest = strict_json(archive.read(entry))
            return bool(manifest["encoder"].get("external"))
    except Exception:  # noqa: BLE001 - any damage: the checks in this process are safe on it and say what it is
        return False


def load_isolated(
    path: Path,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    expect_sha256: str | None = None,
    expect_name: str | None = None,
    where: str | None = None,
    encoders_dir: Path | None = None,
    limits: Limits = LIMITS,
) -> Bundle:
    """`load_bundle`, after a child has done the same where native code is involved. Blocking; see there for the arguments.

    Raises:
        BundleError: E4314, the child crashed, hung or took too much; else as `load_bundle`. SourceError: as `load_bundle`.
    """
    try:
        small = path.stat().st_size <= max_bytes
    except OSError:
        small = False
    if small and needs_isolation(path):
        arguments = {
            "path": str(path),
            "max_bytes": max_bytes,
            "expect_sha256": expect_sha256,
            "expect_name": expect_name,
            "where": where,
            "encoders_dir": str(encoders_dir) if encoders_dir is not None else None,
        }
        verify_isolated(arguments, path, where or str(path), limits)
    return load_bundle(
        path,
        max_bytes=max_bytes,
        expect_sha256=expect_sha256,
        expect_name=expect_name,
        where=where,
        encoders_dir=encoders_dir,
    )


def child_command() -> list[str]:
    """The child: this interpreter, this package."""
    return [sys.executable, "-P", "-s", "-m", "pointsman.strategies.isolated"]


def verify_isolated(
    arguments: dict[str, object],
    path: Path,
    where: str,
    limits: Limits = LIMITS,
    command: Sequence[str] | None = None,
) -> None:
    """Run the child on a bundle.

    Args:
        arguments: of `load_bundle`, JSON-able.
        path: the bundle, for its size.
        where: for messages.
        limits: see `Limits`.
        command: instead of `child_command`, for tests of what children do.

    Raises:
        BundleError, SourceError: what the child found; E4314, it found nothing because it ended otherwise.
    """
    request = {
        "arguments": arguments,
        "memory": limits.memory + limits.memory_factor * path.stat().st_size,
        "memory_factor": limits.memory_factor,
        "cpu": limits.cpu,
    }
    # No variable of ours goes along: what is verified may be hostile, and a crash may be looked into by somebody else.
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command or child_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        close_fds=True,
    )
    try:
        out, _ = child.communicate(json.dumps(request).encode(), timeout=limits.wall)
    except subprocess.TimeoutExpired:
        _refuse(f"it was not through after {limits.wall:g} s", where)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
    if child.returncode < 0:
        name = signal.Signals(child.returncode * -1).name if child.returncode * -1 in set(signal.Signals) else "a signal"
        _refuse("it took too much processor time" if name in ("SIGXCPU", "SIGKILL") else f"it died of {name}", where)
    try:
        answer = strict_json(out)
        found = answer["error"]
        if found is None and child.returncode == 0:
            return
        code = str(found["code"])
        message, at, mend = str(found["message"]), found.get("where"), found.get("mend")
    except (ValueError, KeyError, TypeError, AttributeError):
        _refuse(f"it ended with status {child.returncode} and said nothing", where)
    if code == "memory":
        _refuse("it asked for more memory than it may have", where)
    kind: type[PointsmanError] = SourceError if code.startswith("E44") else BundleError
    raise kind(message[:2000], code=code if code in CATALOGUE else "E4300", where=at, mend=mend)


def _refuse(why: str, where: str) -> NoReturn:
    raise BundleError(
        f"verifying its native files in a process of its own failed: {why}",
        code="E4314",
        where=where,
        mend="do not publish what you did not make; export the encoder again",
    )
