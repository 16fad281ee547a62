"""The listening socket, bound once by the supervisor and inherited by every worker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time

from pointsman.errors import ProcessError

__all__ = ["bind", "refuse"]

BACKLOG = 2048


def bind(host: str, port: int, patience: float = 3.0) -> socket.socket:
    """Bind and listen; a port that is just being given up (a restart) is waited for, `patience` seconds at most.

    Raises:
        ProcessError: E4601, the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + patience
    while True:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
            sock.set_inheritable(True)
            return sock
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise ProcessError(
                f"cannot listen: {error.strerror}",
                code="E4601",
                where=f"{host}:{port}",
                mend="stop what listens there, or choose another port with --port",
            ) from error


async def refuse(sock: socket.socket, after: float) -> None:
    """Make the kernel refuse new connections, for every process that shares the socket; else they would wait in its queue."""
    await asyncio.sleep(after)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
