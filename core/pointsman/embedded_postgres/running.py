"""Reach the embedded PostgreSQL of a gateway that runs, from another process of the same user (backups)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from urllib.parse import quote

from pointsman.embedded_postgres.cluster import SUPERUSER
from pointsman.embedded_postgres.lock import read_note
from pointsman.embedded_postgres.postmaster import HOST
from pointsman.embedded_postgres.server import DATABASE
from pointsman.errors import ProcessError

__all__ = ["running_url"]


def running_url(data_dir: Path) -> str | None:
    """URL of the database in a data directory that somebody owns at this moment; None when nobody does.

    Raises:
        ProcessError: E4602 when lock or password cannot be read (another user's), E4603 when the owner has no server yet.
    """
    lock = data_dir / "lock"
    if not lock.exists():
        return None
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None  # let go with the descriptor; an owner that starts in this instant waits for nobody and says so
        except BlockingIOError:
            password = (data_dir / "postgres_password").read_text(encoding="ascii").strip()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ProcessError(
            f"the data directory's database cannot be reached: {error.strerror}",
            code="E4602",
            where=str(data_dir),
            mend="run this as the user who runs the gateway",
        ) from error
    port = read_note(lock).get("port")
    if not port:
        raise ProcessError(
            "the gateway there is starting or stopping", code="E4603", where=str(data_dir), mend="try again in a moment"
        )
    return f"postgresql://{SUPERUSER}:{quote(password, safe='')}@{HOST}:{int(port)}/{DATABASE}"
