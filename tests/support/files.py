"""The files of the repository, as git sees them: tracked, or new and not ignored."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from support.marks import ROOT

__all__ = ["ROOMS", "files", "package_modules"]

# The design card's rooms, and what goes with them.
ROOMS = (
    "litellm_config",
    "custom_router",
    "strategies",
    "mlops",
    "migrations",
    "a2a",
    "mcp",
    "deploy/aws",
    "docker",
    "tests",
    "docs",
)


@cache
def files(*patterns: str) -> tuple[Path, ...]:
    """Paths below the root whose name fits one of git's `patterns` (all without), in order.

    Raises:
        subprocess.CalledProcessError: this is no git checkout.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file()))


def package_modules() -> tuple[Path, ...]:
    """The modules of the package `pointsman`, over all its portions."""
    return tuple(
        path
        for path in files("*.py")
        if len(path.relative_to(ROOT).parts) > 2 and path.relative_to(ROOT).parts[1] == "pointsman"
    )
