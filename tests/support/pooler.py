"""A connection pooler as PgBouncer is one, small enough for the fast tests: clients take turns on a few sessions of the server.

In mode `transaction` a client has a session from its first statement until the server says that no transaction is open; in mode
`session` for as long as it stays. It speaks the wire protocol (https://www.postgresql.org/docs/current/protocol-message-formats.html)
as far as it has to: start-up, then whole messages both ways. It gives its clients process ids of its own, as poolers do.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

__all__ = ["pooler"]

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return data


def _message(sock: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(sock, 1)
    (length,) = struct.unpack("!I", size := _exactly(sock, 4))
    return kind, size + _exactly(sock, length - 4)


class _Pool:
    """Sessions of the server, logged in by libpq and then used raw."""

    def __init__(self, url: str, size: int, newest_first: bool) -> None:
        self._free: deque[socket.socket] = deque()
        self._newest_first = newest_first
        self._changed = threading.Condition()
        for _ in range(size):
            connection = psycopg.connect(url, autocommit=True, sslmode="disable", gssencmode="disable")
            self._free.append(socket.socket(fileno=os.dup(connection.pgconn.socket)))
            self._free[-1].setblocking(True)
            self._keep = [*getattr(self, "_keep", []), connection]

    def take(self) -> socket.socket:
        with self._changed:
            if not self._changed.wait_for(lambda: self._free, 60):
                raise ConnectionError("no session of the server fell free")
            return self._free.pop() if self._newest_first else self._free.popleft()

    def give(self, session: socket.socket) -> None:
        with self._changed:
            self._free.append(session)
            self._changed.notify()

    def close(self) -> None:
        for connection in self._keep:
            connection.close()


def _serve(client: socket.socket, pool: _Pool, mode: str) -> None:
    session: socket.socket | None = None
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each short answer waits for the last one's receipt
    try:
        while True:
            (length,) = struct.unpack("!I", _exactly(client, 4))
            (code,) = struct.unpack("!I", _exactly(client, length - 4)[:4])
            if code not in (_SSL_REQUEST, _GSS_REQUEST):
                break
            client.sendall(b"N")
        client.sendall(b"R" + struct.pack("!II", 8, 0))
        for name, value in (("server_version", "18.0"), ("client_encoding", "UTF8"), ("standard_conforming_strings", "on")):
            text = f"{name}\0{value}\0".encode()
            client.sendall(b"S" + struct.pack("!I", 4 + len(text)) + text)
        key = struct.pack("!II", random.getrandbits(31), random.getrandbits(31))
        client.sendall(b"K" + struct.pack("!I", 12) + key + b"Z" + struct.pack("!I", 5) + b"I")
        while True:
            kind, body = _message(client)
            if kind == b"X":
                return
            session = session or pool.take()
            session.sendall(kind + body)
            if kind in (b"Q", b"S"):
                state = b""
                while not state:
                    kind, body = _message(session)
                    client.sendall(kind + body)
                    state = body[-1:] if kind == b"Z" else b""
                if state == b"I" and mode == "transaction":
                    pool.give(session)
                    session = None
    except (ConnectionError, OSError):
        pass
    finally:
        client.close()
        if session is not None:
            pool.give(session)


@contextmanager
def pooler(url: str, *, size: int = 2, mode: str = "transaction", newest_first: bool = True) -> Iterator[str]:
    """Run one before the server of `url`.

    Args:
        url: database that its sessions are in.
        size: sessions of the server.
        mode: `transaction` or `session`.
        newest_first: who was used last is used next (as PgBouncer does unless told otherwise).

    Yields:
        The URL by which clients reach it.
    """
    pool = _Pool(url, size, newest_first)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):  # closed: the test is over
                while True:
                    client, _ = listening.accept()
                    threading.Thread(target=_serve, args=(client, pool, mode), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        parts = urlsplit(url)
        try:
            yield url.replace(parts.netloc, f"{parts.username}:{parts.password}@127.0.0.1:{listening.getsockname()[1]}")
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            pool.close()
