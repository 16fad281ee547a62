"""Write a backup: `pg_dump`'s custom format, and a manifest (`<file>.json`) that says what is in it.

The rows are counted in the snapshot that is dumped (`pg_export_snapshot`), so the figures hold whatever is written meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import address
from pointsman.errors import DatabaseError
from pointsman.migrations.backup.tools import find_tool, said, way_to
from pointsman.migrations.connection import connect
from pointsman.migrations.sources import litellm_version

__all__ = ["Backup", "Manifest", "backup", "count_rows", "manifest_path", "read_manifest", "sha256_of"]

FORMAT = 1
_LOCK_WAIT = "60s"
# What holds rows itself: plain tables and partitions, of any schema that is not the server's own.
_TABLES = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' "
    "AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema' AND c.relpersistence <> 't' ORDER BY 1, 2"
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the file `<backup>.json` says.

    Attributes:
        format: 1.
        made: time of the snapshot, ISO 8601, UTC.
        sha256, size: of the backup, hexadecimal and bytes.
        server_version, pg_dump: libpq's number of the server's version; major version of the program.
        litellm: version of LiteLLM's migrations here (the program's, not what was applied).
        rows: "schema.table" -> rows in the snapshot.
    """

    format: int
    made: str
    sha256: str
    size: int
    server_version: int
    pg_dump: int
    litellm: str
    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was just made: where it is, its manifest, and seconds it took."""

    path: Path
    manifest: Manifest
    seconds: float

    def __str__(self) -> str:
        made = self.manifest
        return (
            f"{self.path}: {made.size:,} bytes, {len(made.rows)} tables, {sum(made.rows.values()):,} rows, "
            f"{self.seconds:.1f} s, sha256 {made.sha256}"
        )


def manifest_path(backup_file: Path) -> Path:
    """Where the manifest of a backup lies."""
    return backup_file.with_name(backup_file.name + ".json")


def sha256_of(path: Path) -> str:
    """Digest of a file, 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def count_rows(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Rows of each table and partition, as "schema.table"."""
    counts: dict[str, int] = {}
    for schema, table in connection.execute(_TABLES.replace("%%", "%")).fetchall():
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table))
        row = connection.execute(query).fetchone()
        counts[f"{schema}.{table}"] = int(row[0]) if row else 0
    return counts


def backup(database_url: str, out: Path, progress: Callable[[str], None]) -> Backup:
    """Back up a whole database, whatever else is going on in it.

    Args:
        database_url: a direct connection, no transaction pooler: the snapshot belongs to a session.
        out: the file; it must not exist. It and its manifest are readable by the owner only, for keys' hashes and encrypted
            credentials are in it.
        progress: gets one line at a time.

    Raises:
        DatabaseError: E4506 with what failed, nothing left half-written; E4500, E4504.
    """
    started = time.monotonic()
    out = out.expanduser().absolute()
    _check_target(out)
    partial = out.with_name(out.name + ".partial")
    with connect(database_url) as connection:
        tool = find_tool("pg_dump", connection.info.server_version)
        try:
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                row = connection.execute("SELECT pg_export_snapshot(), clock_timestamp()").fetchone()
                assert row is not None  # noqa: S101 - for the type checker: it always has a row
                made: datetime = row[1]
                progress(f"backup: dumping {address(database_url)} to {out}")
                _dump(database_url, tool.path, str(row[0]), partial)
                rows = count_rows(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            partial.unlink(missing_ok=True)
            raise DatabaseError(
                f"this role may not read everything: {error.diag.message_primary}",
                code="E4506",
                where=address(database_url),
                mend="GRANT pg_read_all_data to it, or back up as the tables' owner",
            ) from error
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        manifest = Manifest(
            FORMAT,
            made.astimezone(UTC).isoformat(timespec="milliseconds"),
            sha256_of(partial),
            partial.stat().st_size,
            connection.info.server_version,
            tool.major,
            litellm_version(),
            rows,
        )
    _write_manifest(manifest_path(out), manifest)
    partial.replace(out)
    _sync(out.parent)
    return Backup(out, manifest, time.monotonic() - started)


def read_manifest(backup_file: Path) -> Manifest | None:
    """The manifest beside a backup; None: there is none.

    Raises:
        DatabaseError: E4506 when it is there and not readable.
    """
    path = manifest_path(backup_file)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        return Manifest(**found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatabaseError(
            f"the backup's manifest cannot be read: {error}",
            code="E4506",
            where=str(path),
            mend="copy it again from where the backup was made; without one a restore goes on unchecked",
        ) from error


def _check_target(out: Path) -> None:
    for path in (out, manifest_path(out)):
        if path.exists():
            raise DatabaseError("the file exists already", code="E4506", where=str(path), mend="name another, or remove it")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise DatabaseError(
            "the backup's directory is not there, or may not be written to",
            code="E4506",
            where=str(out.parent),
            mend="make it, or name another place",
        )


def _dump(database_url: str, program: Path, snapshot: str, partial: Path) -> None:
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    with way_to(database_url, "pointsman backup") as (name, environment):
        arguments = ["--format=custom", f"--snapshot={snapshot}", f"--lock-wait-timeout={_LOCK_WAIT}", "--no-password"]
        done = subprocess.run(
            [str(program), *arguments, f"--file={partial}", f"--dbname={name}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    if done.returncode != 0:
        raise DatabaseError(
            f"pg_dump ended with status {done.returncode}: {said(done.stderr, database_url)}",
            code="E4506",
            where=address(database_url),
            mend="mend what it says: a table locked for long, rights (GRANT pg_read_all_data), a full disk; then try again",
        )
    _sync(partial)


def _write_manifest(path: Path, manifest: Manifest) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """To the disk, not only to the kernel: whoever removes the original trusts the copy."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
