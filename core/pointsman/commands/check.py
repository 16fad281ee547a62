"""`pointsman check`, `init` and `doctor`: look, and say what is wrong and how to mend it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pointsman import litellm_config
from pointsman.errors import ConfigError, PointsmanError, ProcessError
from pointsman.migrations import install
from pointsman.migrations.runner import status
from pointsman.settings import default_data_dir

__all__ = ["Finding", "check", "doctor", "init"]

MIN_FREE_GIB = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`: what was looked at, whether it is well, what was seen, and how to mend it."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def check(path: Path, env: Mapping[str, str]) -> list[litellm_config.Problem]:
    """All problems of a configuration, at once."""
    return list(litellm_config.check(path, env))


def init(output: Path, env: Mapping[str, str], *, force: bool) -> str:
    """Look for provider keys and local servers, write a YAML for what was found; returns a sentence on that.

    Raises:
        ConfigError: E4200, the file exists and `force` is off; E4201, it cannot be written.
    """
    if output.exists() and not force:
        raise ConfigError("the file exists", where=str(output), mend="choose another name with --output, or --force")
    found = litellm_config.detect(env)
    try:
        output.write_text(litellm_config.render_init(found), "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", code="E4201", where=str(output)) from error
    names = ", ".join(str(item.name) for item in found) or "nothing but the mock models"
    return f"wrote {output}; found {names}"


def doctor(env: Mapping[str, str], data_dir: Path | None) -> Iterator[Finding]:
    """Look at what a gateway needs on this machine."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")
    problems = install.problems()
    yield Finding("set-up", not problems, "; ".join(problems) or "complete", "run `make setup`")
    where = (data_dir or default_data_dir(env)).expanduser().absolute()
    existing = next(parent for parent in (where, *where.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    yield Finding("disk", free >= MIN_FREE_GIB, f"{free:.1f} GiB free at {existing}", "free some space, or use --data-dir")
    yield _writable(where, existing)
    if url := env.get("DATABASE_URL"):
        yield _database(url)


def _writable(where: Path, existing: Path) -> Finding:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=existing):
            return Finding("data directory", True, str(where))
    except OSError as error:
        problem = ProcessError(f"not writable: {error.strerror}", code="E4602", where=str(where))
        return Finding("data directory", False, str(problem), "use --data-dir with a directory of your own")


def _database(url: str) -> Finding:
    try:
        pending = len(status(url).pending)
    except PointsmanError as error:
        return Finding("database", False, str(error), error.mend or "")
    return Finding("database", True, f"reachable, {pending} migration(s) pending")
