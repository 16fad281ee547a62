"""Wheels made from a project of one module each, without a build backend."""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["EXAMPLE", "example_wheel", "wheel"]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/custom_strategy"


def wheel(
    path: Path,
    files: Mapping[str, bytes | str],
    *,
    name: str = "mine",
    version: str = "1.0",
    entry_points: str = "",
    tag: str = "py3-none-any",
) -> Path:
    """Write a wheel (PyPI's binary distribution format, version 1.0): `files`, and what describes them."""
    info = f"{name}-{version}.dist-info"
    contents = {key: value.encode() if isinstance(value, str) else value for key, value in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    pure = str(tag.endswith("none-any")).lower()
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode()
    contents[f"{info}/entry_points.txt"] = entry_points.encode()
    rows = []
    for key, value in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(value).digest()).rstrip(b"=").decode()
        rows.append(f"{key},sha256={digest},{len(value)}\n")
    contents[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in contents.items():
            archive.writestr(key, value)
    return path


def example_wheel(directory: Path, *, version: str = "1.0.0", module: str | None = None) -> Path:
    """The wheel of examples/custom_strategy; `module`: other source for its module."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    )
    source = module if module is not None else (EXAMPLE / "length_strategy.py").read_text()
    name = project["name"].replace("-", "_")
    path = directory / f"{name}-{version}-py3-none-any.whl"
    return wheel(path, {"length_strategy.py": source}, name=name, version=version, entry_points=points)
