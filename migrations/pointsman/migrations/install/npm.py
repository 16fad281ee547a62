"""Installs pinned npm packages: whole or not at all, no install scripts, hashes checked by npm itself."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pointsman.errors import ProcessError
from pointsman.migrations.install.layout import node_binary, npm_command

__all__ = ["install_locked", "run_tool", "tool_environment"]

_TIMEOUT = 600.0
_TAIL = 2000


def tool_environment(env: Mapping[str, str], *paths: Path) -> dict[str, str]:
    """The caller's environment (registry, proxy and certificate settings) with `paths` and the real node first on PATH."""
    search = [*(str(path) for path in paths), str(node_binary().parent), env.get("PATH") or "/usr/local/bin:/usr/bin:/bin"]
    return {**env, "PATH": ":".join(search)}


def run_tool(command: list[str], *, what: str, mend: str, cwd: Path, env: Mapping[str, str], timeout: float = _TIMEOUT) -> str:
    """Run one set-up command to its end and return what it printed.

    Args:
        what: the step, for the message.
        mend: what to do if it fails.
        timeout: seconds.

    Raises:
        ProcessError: E4604 with the end of its output.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{what} took longer than {timeout:.0f} s.", code="E4604", where=command[0], mend=mend) from None
    except OSError as error:
        raise ProcessError(f"{what} could not be started: {error}.", code="E4604", where=command[0], mend=mend) from error
    output = (done.stdout + done.stderr).strip()
    if done.returncode != 0:
        raise ProcessError(
            f"{what} failed with exit code {done.returncode}:\n{output[-_TAIL:]}", code="E4604", where=str(cwd), mend=mend
        )
    return output


def install_locked(source: Path, target: Path, env: Mapping[str, str]) -> None:
    """`npm ci` of the lock in `source`, put in place of `target` in one move.

    The lock holds no addresses, so npm asks whatever registry the machine is set up for, and checks each package's sha512.

    Raises:
        ProcessError: E4604; `target` is then as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(source / name, fresh / name)
        run_tool(
            [*npm_command(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"],
            what=f"npm ci for {target.name}",
            mend="Check that the npm registry answers (npm config get registry; a mirror goes into ~/.npmrc), then run: "
            "python -m pointsman.migrations.install",
            cwd=fresh,
            env=tool_environment(env),
        )
        if target.exists():
            target.rename(Path(scratch) / "stale")
        fresh.rename(target)
