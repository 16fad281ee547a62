"""Which processes a gateway has started, found by a mark in their environment: children that lost their parent, too."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["MARK", "kill_all", "marked", "resident_mib", "wait_for"]

MARK = "GATEWAY_UNDER_TEST"
T = TypeVar("T")


def marked(mark: str) -> dict[int, str]:
    """Pid -> command line of every living process whose environment holds `MARK=mark`."""
    needle = f"{MARK}={mark}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # gone in the meantime
            if needle not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def kill_all(mark: str) -> list[int]:
    """SIGKILL every marked process, again and again until none is left; returns their pids."""
    killed: list[int] = []
    while pids := [pid for pid in marked(mark) if pid != os.getpid()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed += pids
        time.sleep(0.02)
    return killed


def resident_mib(pid: int) -> float:
    """Resident memory of a process in MiB (proc(5), `statm`)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def wait_for(what: Callable[[], T | None], timeout: float, why: str, interval: float = 0.05) -> T:
    """The first true value of `what()`, asked again until `timeout` seconds have passed.

    Raises:
        AssertionError: it never came; `why` says what was waited for, with the last value.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {why} (last: {value!r})")
        time.sleep(interval)
