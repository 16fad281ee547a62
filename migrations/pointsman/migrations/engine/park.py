"""Sleeps until its parent is gone: ``python -ISE park.py PARENT_PID``. Standard library only: nothing else is on its path."""

import os
import signal
import sys
import time

__all__ = ["main"]

INTERVAL = 1.0
"""Seconds between two looks at the parent."""


def main(parent: int) -> None:
    """Return as soon as `parent` is not the parent any more; SIGINT and SIGTERM end it at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    while os.getppid() == parent:
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
