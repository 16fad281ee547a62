"""The server process: start it, wait until it answers, stop it, and find what an earlier life left running.

The postmaster is a direct child (no `pg_ctl`, which leaves it to process 1): its end is seen at once, and where `setpriv` exists it
gets a fast shutdown when its owner dies hard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from pointsman.embedded_postgres.cluster import Cluster, data_directory_error
from pointsman.embedded_postgres.identity import BARE_ENVIRONMENT
from pointsman.errors import ProcessError

__all__ = ["Postmaster", "free_port", "stop_survivors", "survivors"]

HOST = "127.0.0.1"
_POLL = 0.02
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


def survivors(path: Path) -> list[int]:
    """Processes whose working directory is the cluster (a postmaster and its backends stand there). Empty where there is no /proc."""
    found: list[int] = []
    target = os.path.realpath(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                    if os.readlink(f"/proc/{entry.name}/cwd") == target:  # noqa: PTH115 - the link, not a Path
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

    The postmaster is asked for a fast shutdown, then for an immediate one; backends without a postmaster end by themselves and are
    killed when they do not. A `postmaster.pid` that names a living process of somebody else (ids are reused) is removed, for
    Postgres would believe it.

    Args:
        path: the cluster.
        patience: seconds before each harder step.

    Returns:
        The process ids found.
    """
    found = await asyncio.to_thread(survivors, path)
    recorded = _recorded(path)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        alive = await asyncio.to_thread(survivors, path)
        if not alive:
            break
        for pid in [recorded] if recorded in alive and number != signal.SIGKILL else alive:
            with contextlib.suppress(OSError, TypeError):
                os.kill(pid or 0, number) if pid else None
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and await asyncio.to_thread(survivors, path):
            await asyncio.sleep(5 * _POLL)
    if recorded is not None and Path("/proc/self").exists() and recorded not in await asyncio.to_thread(survivors, path):
        with contextlib.suppress(OSError):
            os.kill(recorded, 0)
            (path / "postmaster.pid").unlink(missing_ok=True)
    return found


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

    async def ready(self, deadline: float) -> bool:
        """Wait for the line `ready` in `postmaster.pid` (what pg_ctl does too).

        Args:
            deadline: on the clock of `time.monotonic`.

        Returns:
            False when the process ended or the deadline passed.
        """
        status = self.cluster.path / "postmaster.pid"
        while time.monotonic() < deadline:
            process = self._process
            if process is None or process.poll() is not None:
                return False
            with contextlib.suppress(OSError):
                lines = status.read_text(encoding="ascii", errors="replace").splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return True
            await asyncio.sleep(_POLL)
        return False

    async def wait(self) -> int:
        """Wait until the process ends; its exit status."""
        process = self._process
        if process is None:
            return 0
        while (status := process.poll()) is None:
            await asyncio.sleep(10 * _POLL)
        return status

    async def stop(self, fast: float = 20.0, immediate: float = 5.0) -> None:
        """Fast shutdown (SIGINT), after `fast` seconds immediate (SIGQUIT), after `immediate` more SIGKILL; idempotent."""
        process = self._process
        if process is None:
            return
        for number, patience in ((signal.SIGINT, fast), (signal.SIGQUIT, immediate), (signal.SIGKILL, immediate)):
            if process.poll() is not None:
                break
            process.send_signal(number)
            deadline = time.monotonic() + patience
            while process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(_POLL)
        self._process = None

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
