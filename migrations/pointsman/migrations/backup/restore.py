"""Restore a backup into an empty database: all of it or nothing, then checked against its manifest.

`pg_restore` writes SQL that `psql` runs in one transaction. Between the two one setting is left out that servers before
PostgreSQL 17 do not know and the newest programs always send.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pointsman.database_url import address
from pointsman.errors import DatabaseError
from pointsman.migrations.backup.dump import Manifest, count_rows, read_manifest, sha256_of
from pointsman.migrations.backup.tools import find_tool, said, way_to
from pointsman.migrations.connection import connect

__all__ = ["Restored", "restore"]

_UNKNOWN_BEFORE_17 = b"SET transaction_timeout = 0;\n"
_ALL_OR_NOTHING = (
    "--no-psqlrc",
    "--quiet",
    "--no-password",
    "--single-transaction",
    "--set=ON_ERROR_STOP=1",
    "--output=/dev/null",
)
_PREAMBLE = 65_536  # bytes; the settings stand at the very start
# Whatever somebody made here: relations, types, functions, schemas; not what belongs to an extension or to the server.
_FOREIGN = """
SELECT format('%s %s.%s', kind, schema, name) FROM (
  SELECT 'relation' AS kind, n.nspname AS schema, c.relname AS name, c.oid AS oid, 'pg_class'::regclass AS class
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind NOT IN ('i', 'I', 't')
  UNION ALL SELECT 'type', n.nspname, t.typname, t.oid, 'pg_type'::regclass
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype IN ('e', 'd', 'r')
  UNION ALL SELECT 'function', n.nspname, p.proname, p.oid, 'pg_proc'::regclass
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
) found
WHERE schema NOT LIKE 'pg\\_%' AND schema <> 'information_schema'
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = class AND d.objid = found.oid AND d.deptype = 'e')
ORDER BY 1 LIMIT 4
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        rows: "schema.table" -> rows, as they are in the database now.
        checked: whether there was a manifest to hold them against.
        seconds: whole call.
    """

    rows: dict[str, int]
    checked: bool
    seconds: float

    def __str__(self) -> str:
        how = "as the manifest says" if self.checked else "no manifest to check them against"
        return f"restored {len(self.rows)} tables, {sum(self.rows.values()):,} rows ({how}) in {self.seconds:.1f} s"


def restore(database_url: str, backup_file: Path, progress: Callable[[str], None]) -> Restored:
    """Restore a backup. Everything belongs to the URL's user afterwards; rights that others had are not taken over.

    Raises:
        DatabaseError: E4507 not empty, or it did not go through (nothing is changed); E4506 the file is not the one that was
            made; E4500, E4504.
    """
    started = time.monotonic()
    manifest = _verified(backup_file, progress)
    with connect(database_url) as connection:
        _refuse_unless_empty(connection, database_url)
        server = connection.info.server_version
    reader, writer = find_tool("pg_restore", manifest.server_version if manifest else server), find_tool("psql", server)
    progress(f"restore: {backup_file} to {address(database_url)}")
    _pipe(database_url, backup_file, reader.path, writer.path, drop_new_setting=server < 170_000)
    with connect(database_url) as connection:
        connection.execute("ANALYZE")  # a dump holds no statistics, and the first queries would be planned blindly
        rows = count_rows(connection)
    if manifest is not None and rows != manifest.rows:
        names = sorted(name for name in rows | manifest.rows if rows.get(name) != manifest.rows.get(name))
        raise DatabaseError(
            "the restored rows are not those of the manifest: "
            + "; ".join(f"{name} has {rows.get(name)}, should have {manifest.rows.get(name)}" for name in names[:5]),
            code="E4506",
            where=str(backup_file),
            mend="see that nobody writes to the database yet; drop it, make it anew and restore again",
        )
    return Restored(rows, manifest is not None, time.monotonic() - started)


def _verified(backup_file: Path, progress: Callable[[str], None]) -> Manifest | None:
    if not backup_file.is_file():
        raise DatabaseError("there is no such backup", code="E4506", where=str(backup_file), mend="check the path")
    manifest = read_manifest(backup_file)
    if manifest is None:
        progress(f"restore: {backup_file.name}.json is not beside it, so neither file nor rows can be checked")
    elif (found := sha256_of(backup_file)) != manifest.sha256:
        raise DatabaseError(
            f"the backup is not the file that was made: its sha256 is {found}, the manifest says {manifest.sha256}",
            code="E4506",
            where=str(backup_file),
            mend="copy it again from where it was made, or take an earlier one",
        )
    return manifest


def _refuse_unless_empty(connection: psycopg.Connection[Any], database_url: str) -> None:
    there = [str(row[0]) for row in connection.execute(_FOREIGN).fetchall()]
    if there:
        raise DatabaseError(
            f"the database is not empty: {', '.join(there[:3])}{' ...' if len(there) > 3 else ''}",
            code="E4507",
            where=address(database_url),
            mend="make a new one (CREATE DATABASE ...) and name it with --to; nothing is ever overwritten",
        )


def _pipe(database_url: str, backup_file: Path, reader: Path, writer: Path, *, drop_new_setting: bool) -> None:
    with (
        way_to(database_url, "pointsman restore") as (name, environment),
        tempfile.TemporaryFile() as read_errors,
        tempfile.TemporaryFile() as write_errors,
    ):
        source = subprocess.Popen(
            [str(reader), "--no-owner", "--no-privileges", "--file=-", str(backup_file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=read_errors,
        )
        sink = subprocess.Popen(
            [str(writer), *_ALL_OR_NOTHING, f"--dbname={name}"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=write_errors,
        )
        try:
            whole = _copy(source, sink, drop_new_setting=drop_new_setting)
        finally:
            for process in (source, sink):
                if process.poll() is None:
                    process.kill()
                process.wait()
        if whole and sink.returncode == 0:
            return
        # When psql stops first, pg_restore only complains of the broken pipe.
        reason = b""
        for stream in (write_errors, read_errors):
            stream.seek(0)
            reason = reason or stream.read()
    raise DatabaseError(
        f"the backup could not be restored: {said(reason, database_url)}",
        code="E4507",
        where=address(database_url),
        mend="mend what it says and start again; nothing was changed",
    )


def _copy(source: subprocess.Popen[bytes], sink: subprocess.Popen[bytes], *, drop_new_setting: bool) -> bool:
    """Pass the script on; whether both ended well. psql is told the end only when the script is whole: it would commit."""
    assert source.stdout is not None  # noqa: S101 - for the type checker: both are pipes
    assert sink.stdin is not None  # noqa: S101
    with source.stdout as script:
        preamble = script.read(_PREAMBLE)
        try:
            sink.stdin.write(preamble.replace(_UNKNOWN_BEFORE_17, b"", 1) if drop_new_setting else preamble)
            shutil.copyfileobj(script, sink.stdin, 1 << 20)
            sink.stdin.flush()
            if source.wait() != 0:
                sink.kill()
                return False
            sink.stdin.close()
        except BrokenPipeError:
            sink.wait()
            return False
    return sink.wait() == 0
