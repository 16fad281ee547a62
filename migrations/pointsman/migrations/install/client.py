"""Generates the Prisma client for LiteLLM's schema, offline, and slims what LiteLLM loads of it.

`prisma generate` wants three native engines, of which it only asks the version here; a stub answers. It writes into a scratch
directory; only a complete result moves into site-packages, file by file.

The generated ``types.py`` is 10 MB of TypedDicts. At run time a TypedDict call is a dict and LiteLLM uses them for nothing
else, so a stand-in answers every name with `dict` and saves each worker seconds and memory. The original stays beside it as
``types.pyi``, where type checkers look first. `ensure_installed(types_stand_in=False)` keeps the original in place.
"""

from __future__ import annotations

import compileall
import filecmp
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pointsman.errors import ProcessError
from pointsman.migrations.install.layout import ENGINE_COMMIT, PRISMA_VERSION, Layout
from pointsman.migrations.install.npm import run_tool, tool_environment

__all__ = ["STAND_IN_MARK", "generate"]

STAND_IN_MARK = "# Stand-in made by pointsman.migrations.install"

_STAND_IN = f'''{STAND_IN_MARK}; the generated types are in types.pyi.
"""Answers every generated TypedDict with `dict`, which is what they are at run time."""

from typing import Any

from ._types import *


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return dict
'''

_MEND = "Run: python -m pointsman.migrations.install"


def generate(layout: Layout, env: Mapping[str, str], *, types_stand_in: bool) -> None:
    """Generate the client and put it into prisma-client-py's package.

    Raises:
        ProcessError: E4604; the package is then as it was, unless the disk filled up while moving files.
    """
    with tempfile.TemporaryDirectory(prefix="prisma-", dir=layout.root) as scratch:
        work = Path(scratch)
        output = work / "out" / "prisma"
        schema = work / "schema.prisma"
        schema.write_text(_schema_for(layout.litellm_schema, output), encoding="utf-8")
        run_tool(
            [str(tool) for tool in (*_prisma_cli(layout), "generate", "--schema", schema)],
            what="prisma generate",
            mend=_MEND,
            cwd=work,
            env=_generator_environment(layout, env, work),
        )
        if not (output / "client.py").is_file():
            raise ProcessError("prisma generate wrote no client.", code="E4604", where=str(output), mend=_MEND)
        if types_stand_in:
            (output / "types.py").replace(output / "types.pyi")
            (output / "types.py").write_text(_STAND_IN, encoding="utf-8")
        _move_generated(output, layout.prisma_package)
    if not types_stand_in:
        (layout.prisma_package / "types.pyi").unlink(missing_ok=True)
    # The interpreter would do it on first import, unless PYTHONDONTWRITEBYTECODE is set or the directory is read-only then.
    compileall.compile_dir(layout.prisma_package, quiet=2)


def _schema_for(original: Path, output: Path) -> str:
    """LiteLLM's schema for this machine only, generated into `output`.

    Raises:
        ProcessError: E4604 when the schema is not there or has no Python generator.
    """
    try:
        text = original.read_text(encoding="utf-8")
    except OSError as error:
        raise ProcessError(
            f"LiteLLM's schema cannot be read: {error}.", code="E4604", where=str(original), mend="Reinstall litellm."
        ) from error
    replacement = f'binaryTargets = ["native"]\n  output = "{output}"'
    text, count = re.subn(r"binaryTargets\s*=\s*\[[^\]]*\]", replacement, text, count=1)
    if count != 1:
        raise ProcessError(
            "LiteLLM's schema has no binaryTargets line any more.", code="E4604", where=str(original), mend="Pin litellm back."
        )
    return text


def _prisma_cli(layout: Layout) -> list[Path]:
    from pointsman.migrations.install.layout import node_binary

    return [node_binary(), layout.cli_modules / "node_modules" / "prisma" / "build" / "index.js"]


def _generator_environment(layout: Layout, env: Mapping[str, str], work: Path) -> dict[str, str]:
    """Environment for Prisma's command line: stub engines, no network, the generator by this very interpreter."""
    stubs = work / "bin"
    stubs.mkdir()
    engine = _script(stubs / "query-engine", f"echo 'query-engine {ENGINE_COMMIT}'")
    # The schema names its generator as a command; the environment's own script may have another interpreter in its first line.
    _script(stubs / "prisma-client-py", f'exec "{sys.executable}" -m prisma "$@"')
    if shutil.which("openssl", path=env.get("PATH")) is None:
        # Only asked for its version, to name a native engine that is never fetched.
        _script(stubs / "openssl", "echo 'OpenSSL 3.0.0'")
    return {
        **tool_environment(env, stubs),
        "DATABASE_URL": "postgresql://unused",
        "PRISMA_CLI_QUERY_ENGINE_TYPE": "binary",
        "PRISMA_QUERY_ENGINE_BINARY": str(engine),
        "PRISMA_SCHEMA_ENGINE_BINARY": str(engine),
        "PRISMA_QUERY_ENGINE_LIBRARY": str(engine),
        "PRISMA_VERSION": PRISMA_VERSION,
        "PRISMA_EXPECTED_ENGINE_VERSION": ENGINE_COMMIT,
        "PRISMA_BINARY_CACHE_DIR": str(layout.cli_modules),
        "PRISMA_HIDE_UPDATE_MESSAGE": "1",
        "CHECKPOINT_DISABLE": "1",
    }


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o700)
    return path


def _move_generated(output: Path, package: Path) -> None:
    """Move what generation added or changed; the rest of `output` is a copy of the package itself."""
    for file in sorted(output.rglob("*")):
        if not file.is_file() or "__pycache__" in file.parts:
            continue
        target = package / file.relative_to(output)
        if target.is_file() and filecmp.cmp(file, target, shallow=False):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)  # noqa: PTH105 - the atomic one, also on Windows
