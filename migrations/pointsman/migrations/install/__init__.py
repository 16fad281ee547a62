"""What pip cannot install: the engine's npm packages and the Prisma client generated for LiteLLM's schema.

Belongs to environment set-up and image builds (``python -m pointsman.migrations.install``); takes seconds, once. A stamp
names its inputs, so that later calls only compare a hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pointsman.errors import ProcessError
from pointsman.migrations.install.client import STAND_IN_MARK, generate
from pointsman.migrations.install.layout import ENGINE_COMMIT, PRISMA_VERSION, REVISION, Layout, node_binary
from pointsman.migrations.install.npm import install_locked
from pointsman.settings import environment

__all__ = ["ENGINE_COMMIT", "PRISMA_VERSION", "Layout", "ensure_installed", "node_binary", "problems"]


def ensure_installed(
    progress: Callable[[str], None],
    *,
    types_stand_in: bool | None = None,
    env: Mapping[str, str] | None = None,
    layout: Layout | None = None,
) -> None:
    """Install what is missing or out of date; return at once when nothing is.

    Args:
        progress: told each step that is done, one line.
        types_stand_in: whether the slim stand-in replaces the generated types; None keeps what was chosen, at first yes.
        env: environment for npm (registry, proxies); the process's own by default.
        layout: another installation, for tests.

    Raises:
        ProcessError: E4604 with the step, its output and what to do. Nothing half-done counts as installed.
    """
    layout = layout or Layout.current()
    env = environment() if env is None else env
    if not _outdated(layout, types_stand_in):
        return
    with _locked(layout):
        reasons = _outdated(layout, types_stand_in)
        if not reasons:
            return
        chosen = _chosen(layout, types_stand_in)
        layout.stamp.unlink(missing_ok=True)
        progress("query engine: installing its npm packages")
        install_locked(layout.engine_source, layout.engine_modules, env)
        progress("Prisma command line: installing its npm packages")
        install_locked(layout.cli_source, layout.cli_modules, env)
        progress("Prisma client: generating it for LiteLLM's schema")
        generate(layout, env, types_stand_in=chosen)
        stamp = {"inputs": _inputs(layout), "types_stand_in": chosen}
        draft = layout.stamp.with_suffix(".tmp")
        draft.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        draft.replace(layout.stamp)


def problems(layout: Layout | None = None) -> list[str]:
    """What is missing or out of date, one sentence each; empty when all is well. Writes nothing."""
    try:
        return _outdated(layout or Layout.current(), None)
    except ProcessError as error:
        return [str(error)]


def _outdated(layout: Layout, types_stand_in: bool | None) -> list[str]:
    found = []
    node_binary()
    stamp = _read_stamp(layout)
    chosen = _chosen(layout, types_stand_in)
    if stamp is None:
        found.append("The set-up step has not run to its end.")
    elif stamp.get("inputs") != _inputs(layout):
        found.append("LiteLLM, Python or the pinned npm packages have changed since set-up.")
    for file, what in (
        (
            layout.engine_modules / "node_modules/@prisma/client/runtime/query_engine_bg.postgresql.wasm",
            "Prisma's query engine",
        ),
        (layout.engine_modules / "node_modules/pg/package.json", "Node's Postgres driver"),
        (layout.prisma_package / "client.py", "the generated Prisma client"),
        (layout.prisma_package / "types.py", "the generated Prisma types"),
        (layout.schema, "the schema of the generated client"),
    ):
        if not file.is_file():
            found.append(f"{what[0].upper()}{what[1:]} is missing: {file}")
    types = layout.prisma_package / "types.py"
    if types.is_file():
        with types.open(encoding="utf-8") as lines:
            if lines.readline().startswith(STAND_IN_MARK) != chosen:
                found.append(f"The Prisma types are {'not ' if chosen else ''}the stand-in: {types}")
    return found


def _chosen(layout: Layout, types_stand_in: bool | None) -> bool:
    if types_stand_in is not None:
        return types_stand_in
    return bool((_read_stamp(layout) or {}).get("types_stand_in", True))


def _read_stamp(layout: Layout) -> dict[str, Any] | None:
    try:
        stamp = json.loads(layout.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _inputs(layout: Layout) -> str:
    """sha256 over everything that the result depends on."""
    digest = hashlib.sha256(f"{REVISION} {PRISMA_VERSION} {ENGINE_COMMIT} {sys.implementation.cache_tag}".encode())
    for directory in (layout.engine_source, layout.cli_source):
        for name in ("package.json", "package-lock.json"):
            digest.update((directory / name).read_bytes())
    digest.update(layout.litellm_schema.read_bytes())
    digest.update((layout.prisma_package / "generator" / "generator.py").read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        with layout.lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
    except OSError as error:  # of any step: permissions, a full disk
        raise ProcessError(
            f"Set-up cannot write into the Python environment: {error}.",
            code="E4604",
            where=str(layout.root),
            mend="Run `python -m pointsman.migrations.install` as the environment's owner, or while building the image.",
        ) from error
