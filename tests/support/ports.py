"""TCP ports for servers that are told theirs before they listen."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import cycle

__all__ = ["free_port"]

# Below what the kernel hands out to whoever asks for any port (32768 and above on Linux): between the look and the server's
# start nobody takes it by chance. Each process of `make test` has a range of its own.
FIRST, EACH, PROCESSES = 20_000, 1_500, 8


def _own() -> Iterator[int]:
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
    ports = range(FIRST + EACH * process, FIRST + EACH * (process + 1))
    begin = os.getpid() % EACH  # another run on this machine begins elsewhere
    return cycle([*ports[begin:], *ports[:begin]])


_PORTS = _own()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has at this moment.

    Raises:
        OSError: none of this process's range is free.
    """
    for _ in range(EACH):
        port = next(_PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no port is free among {EACH} of {FIRST} to {FIRST + EACH * PROCESSES}")
