"""One owner at a time for a data directory: an advisory lock on `<data-dir>/lock`, with a note inside that says who holds it.

The lock is `flock(2)`: the kernel drops it when its holder dies, however it dies, so a lock left by `kill -9` is taken over
without anybody judging process ids. The note is only for the message that the second owner gets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from pointsman.errors import ProcessError

__all__ = ["OwnerLock", "read_note"]

_NOTE_BYTES = 4096


def read_note(path: Path) -> dict[str, Any]:
    """What the (present or last) holder wrote about itself; empty when there is nothing readable."""
    try:
        note = json.loads(path.read_bytes()[:_NOTE_BYTES] or b"{}")
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


class OwnerLock:
    """The exclusive, advisory lock of a data directory.

    The file is never removed or replaced: two processes that lock two files of one name would both think they own it.

    Args:
        path: the lock file; created 0600 when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._note: dict[str, Any] = {}

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, **note: Any) -> None:
        """Take the lock or say who has it.

        Args:
            note: JSON-able facts for the next one who asks, e.g. `address="http://127.0.0.1:4000"`.

        Raises:
            ProcessError: E4603 when another process (or object) holds it, E4602 when the file cannot be used.
        """
        if self._descriptor is not None:
            return
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ProcessError(
                f"the lock file cannot be opened: {error.strerror}",
                code="E4602",
                where=str(self.path),
                mend="give this user write access to the data directory, or name another with --data-dir",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise self._in_use() from error
        except OSError as error:  # a file system without locks
            os.close(descriptor)
            raise ProcessError(
                f"the file system cannot lock files: {error.strerror}",
                code="E4602",
                where=str(self.path),
                mend="name a data directory on a local disk with --data-dir",
            ) from error
        self._descriptor = descriptor
        self._note = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": round(time.time(), 3)}
        try:
            self.note(**note)
        except BaseException:
            self.release()
            raise

    def note(self, **facts: Any) -> None:
        """Add facts to the note. Raises ProcessError E4602 when it cannot be written (full disk)."""
        if self._descriptor is None:
            return
        self._note.update(facts)
        text = json.dumps(self._note).encode()[:_NOTE_BYTES]
        try:
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))
        except OSError as error:
            raise ProcessError(
                f"the lock file cannot be written: {error.strerror}",
                code="E4602",
                where=str(self.path),
                mend="free some space on that disk" if error.errno == errno.ENOSPC else "check the disk",
            ) from error

    def release(self) -> None:
        """Let go; idempotent."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):  # an empty note is a courtesy
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def _in_use(self) -> ProcessError:
        note = read_note(self.path)
        holder = f"process {note['pid']}" if "pid" in note else "another process"
        if note.get("host") not in (None, socket.gethostname()):
            holder += f" on {note['host']}"
        address = note.get("address") or (f"Postgres on 127.0.0.1:{note['port']}" if "port" in note else None)
        if address:
            holder += f" ({address})"
        return ProcessError(
            f"the data directory is in use by {holder}",
            code="E4603",
            where=str(self.path.parent),
            mend="stop that gateway, or give this one a directory of its own with --data-dir",
        )
