"""The server process: start it, wait until it answers, stop it, and find what an earlier life left running.

The postmaster is a direct child (no `pg_ctl`, which leaves it to process 1): its end is seen at once, and where `setpriv`
exists it gets a fast shutdown when its owner dies hard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pointsman.embedded_postgres.cluster import Cluster, data_directory_error
from pointsman.embedded_postgres.identity import BARE_ENVIRONMENT
from pointsman.errors import ProcessError

__all__ = ["HOST", "Postmaster", "free_port", "stop_survivors", "survivors"]

HOST = "127.0.0.1"
_POLL = 0.02
_WATCH = 0.25
_LOG_TAIL = 12
_OPTIONS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    # A backend notices a vanished client soon, not when it next writes.
    "client_connection_check_interval": "5s",
}


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


def survivors(path: Path) -> list[int]:
    """Postgres processes that stand in the cluster: a postmaster and its backends. Empty where there is no /proc."""
    found: list[int] = []
    target = os.path.realpath(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                process = Path(entry.path)
                with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                    # Also by name: an operator's shell may stand there too.
                    if (process / "comm").read_text().strip() == "postgres" and str((process / "cwd").readlink()) == target:
                        found.append(int(entry.name))
    return found


def _recorded(path: Path) -> int | None:
    """The postmaster's process id in `postmaster.pid` (its first line)."""
    try:
        return int((path / "postmaster.pid").read_text(encoding="ascii", errors="replace").split("\n", 1)[0])
    except (OSError, ValueError):
        return None


async def stop_survivors(path: Path, patience: float = 10.0) -> list[int]:
    """End what an earlier owner left running on this cluster; call it only while holding the owner lock.

    The postmaster is asked for a fast shutdown, then for an immediate one; backends without a postmaster end by themselves and
    are killed when they do not. A `postmaster.pid` that names a living process of somebody else (ids are reused) is removed,
    for Postgres would believe it.

    Args:
        path: the cluster.
        patience: seconds before each harder step.

    Returns:
        The process ids found.
    """
    recorded = _recorded(path)
    found = survivors(path)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        alive = survivors(path)
        # The postmaster ends its backends in good order; without one they end by themselves.
        leader = [pid for pid in alive if pid == recorded]
        for pid in leader if leader and number != signal.SIGKILL else alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if await _until(lambda: not survivors(path), patience if alive else 0.0):
            break
    if recorded is not None and found.count(recorded) == 0:
        _forget(path, recorded)
    return found


def _forget(path: Path, recorded: int) -> None:
    """Remove a `postmaster.pid` whose process id now belongs to somebody else; else leave it, Postgres cleans up with it."""
    if not Path("/proc/self").exists():
        return
    try:
        os.kill(recorded, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass  # alive, and another user's
    with contextlib.suppress(OSError):
        (path / "postmaster.pid").unlink(missing_ok=True)


class Postmaster:
    """One run of the server.

    Args:
        cluster: prepared files.
        port: TCP port on 127.0.0.1.
        options: further settings of postgresql.conf.
    """

    def __init__(self, cluster: Cluster, port: int, options: dict[str, str]) -> None:
        self.cluster = cluster
        self.port = port
        self._options = {**_OPTIONS, "port": str(port), **options}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def spawn(self) -> None:
        """Start the process. Call it from a thread that lives as long as the owner: the death signal follows that thread."""
        identity = self.cluster.identity
        command = [
            *identity.prefix,
            *identity.dies_with_us,
            str(self.cluster.binaries / "postgres"),
            "-D",
            str(self.cluster.path),
        ]
        for name, value in self._options.items():
            command += ["-c", f"{name}={value}"]
        try:
            with self.cluster.log.open("ab") as log:
                self.cluster.log.chmod(0o600)
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    command,
                    env=BARE_ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    # Ctrl-C is for the supervisor; Postgres stops last.
                    start_new_session=True,
                )
        except OSError as error:
            raise data_directory_error(
                Path(str(error.filename or self.cluster.log)), "Postgres cannot be started", error
            ) from error

    async def ready(self, seconds: float) -> bool:
        """Wait for the line `ready` in `postmaster.pid` (what pg_ctl does too).

        Args:
            seconds: to wait at most; replaying the log after a crash is part of it.

        Returns:
            False when the process ended or time is over; `pid` tells which.
        """
        await _until(lambda: self.pid is None or self._says_ready(), seconds)
        return self.pid is not None and self._says_ready()

    def _says_ready(self) -> bool:
        try:
            lines = (self.cluster.path / "postmaster.pid").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    async def wait(self) -> int:
        """Wait until the process ends; its exit status (negative: the signal that ended it)."""
        if self._process is None:
            return 0
        while (status := self._process.poll()) is None:  # noqa: ASYNC110 - a child that must be reaped, no event tells
            await asyncio.sleep(_WATCH)
        return status

    async def stop(self, fast: float = 20.0, immediate: float = 5.0) -> None:
        """Fast shutdown (SIGINT), after `fast` seconds immediate (SIGQUIT), after `immediate` more SIGKILL; idempotent."""
        for number, patience in ((signal.SIGINT, fast), (signal.SIGQUIT, immediate), (signal.SIGKILL, immediate)):
            if self._process is None or self._process.poll() is not None:
                break
            self._process.send_signal(number)
            await _until(lambda: self.pid is None, patience)

    def output(self) -> str:
        """What this run wrote to the log, at most its last 64 KiB."""
        try:
            with self.cluster.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - 65_536))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def failure(self, what: str) -> ProcessError:
        """An error with the last lines of the log."""
        output = self.output()
        tail = "\n  ".join(line for line in output.splitlines()[-_LOG_TAIL:] if line.strip())
        text = f"{what}; its log ends:\n  {tail}\n" if tail else f"{what}; it wrote nothing to its log"
        if "No space left on device" in output or "Disk quota exceeded" in output:
            return ProcessError(
                text, code="E4602", where=str(self.cluster.log), mend="free some space on that disk and start again"
            )
        if "Permission denied" in output or "Read-only file system" in output:
            return ProcessError(
                text, code="E4602", where=str(self.cluster.log), mend="give this user write access to the data directory"
            )
        return ProcessError(text, where=str(self.cluster.log), mend="read the log; `pointsman doctor` checks the machine")
