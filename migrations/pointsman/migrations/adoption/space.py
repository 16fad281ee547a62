"""Whether a backup will fit on the disk it goes to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import psycopg

__all__ = ["room_for_backup"]

# Tables and what they keep aside, without indexes: a backup holds rows, compressed, so this is more than it takes.
_BYTES = (
    "SELECT pg_database_size(current_database()), coalesce(sum(pg_table_size(c.oid)), 0)::bigint FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%'"
)


def room_for_backup(connection: psycopg.Connection[Any], file: Path) -> tuple[bool, str]:
    """(whether there is trouble, one sentence with the figures)."""
    row = connection.execute(_BYTES).fetchone()
    size, rows = (int(row[0]), int(row[1])) if row else (0, 0)
    folder = file.expanduser().absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return True, f"{folder} is not there, or may not be written to: name another with --backup"
    if file.exists():
        return True, f"{file} exists already: name another with --backup"
    free = shutil.disk_usage(folder).free
    if free < rows:
        return True, (
            f"a backup may take {_mib(rows)} and {folder} has {_mib(free)} free: name another place with --backup, or"
            " --no-backup if you have one of your own"
        )
    return False, f"the database takes {_mib(size)}, its rows {_mib(rows)}; {folder} has {_mib(free)} free for the backup"


def _mib(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
