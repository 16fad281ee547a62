"""Newline-delimited JSON over a Unix socket, between the supervisor and its children.

One message is one JSON object with a `type`. The file mode of the socket's directory (0700) is the access control.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["MAX_MESSAGE", "Channel", "ChannelClosedError"]

MAX_MESSAGE = 4 * 2**20
"""Longest message in bytes; a longer one closes the channel."""


class ChannelClosedError(ConnectionError):
    """The other side is gone."""


class Channel:
    """One end of a connection. Any task of the owning event loop may send; one task receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, path: str) -> Channel:
        """Connect to the supervisor's socket.

        Raises:
            OSError: nobody listens there.
        """
        return cls(*await asyncio.open_unix_connection(path, limit=MAX_MESSAGE))

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a message; it is written by the event loop in order. A closed channel swallows it (the receiver notices)."""
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")

    @property
    def unread(self) -> int:
        """Bytes that wait to be written, because the other side does not read."""
        return self._writer.transport.get_write_buffer_size()

    async def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            ChannelClosedError: end of stream, or bytes that are no message.
        """
        try:
            line = await self._reader.readuntil(b"\n")
            message = orjson.loads(line)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError, orjson.JSONDecodeError) as error:
            raise ChannelClosedError(str(error)) from error
        if not isinstance(message, dict):
            raise ChannelClosedError("not an object")
        return message

    async def close(self) -> None:
        """Close after what was sent is out."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
