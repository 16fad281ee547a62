"""The first process of a process of its own: it starts `serve.py` as its child, and outlives whatever that one starts.

Run as `python -I guard.py FD`, by the operator's interpreter, so it imports the standard library alone. On Linux it is a
subreaper (prctl(2)): descendants whose parents are gone become its children, also those that made a session of their own. When
the child ends, or the owner's end of the socket closes, e.g. since the supervisor was killed, it kills them all and then ends
as the child did. So nothing is left behind, and nothing holds the owner's pipes open.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import select
import signal
import sys
import time
from pathlib import Path

__all__ = ["guard", "main"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
SERVE = Path(__file__).with_name("serve.py")
PAUSE = 0.01
"""Seconds between two looks at what is left while it ends; what is being killed may still fork."""


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Of this process, adopted ones included; on Linux (proc(5))."""
    with contextlib.suppress(OSError, ValueError):
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []


def _reap(child: int) -> int | None:
    """Take leave of everything that has ended; the child's status, once it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                found = os.waitstatus_to_exitcode(ended[1])
    return found


def guard(child: int, descriptor: int) -> int:
    """Wait for the child's end or the owner's, then kill what is left; the child's status, negative for a signal."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # its number is written to the pipe
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(woken, select.POLLIN)
    poll.register(descriptor, 0)  # hang-ups are told unasked; what is said there is for the child
    status = _reap(child)
    while status is None:
        events = poll.poll()
        if any(number == woken for number, _ in events):
            os.read(woken, 4096)
        status = _reap(child)
        if any(number == descriptor for number, _ in events):
            break
    if status is None:
        os.kill(child, signal.SIGKILL)
    while left := _children():  # each that is killed leaves its own children to us
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE)
        found = _reap(child)
        status = found if status is None else status
    return -signal.SIGKILL if status is None else status


def main(descriptor: int) -> int:
    """Become the guard, and the child; returns in both."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    ours = os.getpid()
    child = os.fork()
    if child == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != ours:  # it was gone before
            return 1
        runpy.run_path(str(SERVE), run_name="__main__")
        return 0
    status = guard(child, descriptor)
    if status < 0:  # as the child did, so that the owner reads the signal
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(ours, -status)
    return max(status, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
