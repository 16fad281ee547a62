"""Migrate a copy of the schema first, on another server, and compare the outcome with a schema made from nothing.

That tells before anything is changed whether the migrations will go through, and whether the ledger is right about what the
schema already has: LiteLLM itself notes migrations as applied that it did not run.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from pointsman.database_url import libpq_url, own_schema, schema_of
from pointsman.errors import DatabaseError
from pointsman.migrations.adoption.census import Columns, columns_of, unique_indexes
from pointsman.migrations.backup.tools import find_tool, said, way_to
from pointsman.migrations.connection import connect
from pointsman.migrations.ledger import OUR_TABLE, PRISMA_TABLE
from pointsman.migrations.runner import migrate

__all__ = ["Rehearsal", "Scratch", "rehearse"]

Scratch = Callable[[], AbstractContextManager[str]]
"""Gives the URL of a database on a server where databases may be made and dropped; as a context manager."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came of it.

    Attributes:
        applied: how many migrations were applied to the copy.
        lacking: columns and unique indexes that a new database has and the migrated copy has not, or otherwise.
        extra: tables and columns that the copy has beyond a new database's.
        columns: of the migrated copy.
    """

    applied: int
    lacking: tuple[str, ...]
    extra: tuple[str, ...]
    columns: Columns


def rehearse(database_url: str, scratch: Scratch) -> Rehearsal:
    """Copy the schema and the ledger (no other rows) to a scratch database, migrate it, compare, drop.

    Raises:
        DatabaseError: E4501 a migration does not go through on this schema; E4506 the schema cannot be read.
    """
    schema = schema_of(database_url)
    with scratch() as server:
        copy, new = _database(server, schema), _database(server, schema)
        try:
            _copy_schema(database_url, copy, schema)
            report = migrate(copy, _silent)
            migrate(new, _silent)
            with connect(copy) as one, connect(new) as other:
                have, want = columns_of(one), columns_of(other)
                lacking = _differences(have, want)
                lacking += [
                    f"unique index of {table} {what}" for table, what in sorted(unique_indexes(other) - unique_indexes(one))
                ]
        finally:
            for url in (copy, new):
                _drop(server, url)
    tables = {table for table, _ in want}
    extra = sorted({table if table not in tables else f"{table}.{column}" for table, column in have.keys() - want.keys()})
    return Rehearsal(len(report.applied), tuple(lacking), tuple(extra), have)


def _silent(_: str) -> None:
    """The copy's progress is of no interest."""


def _differences(have: Columns, want: Columns) -> list[str]:
    return [
        f"{table}.{column} is {have.get((table, column), 'missing')}, should be {kind}"
        for (table, column), kind in sorted(want.items())
        if have.get((table, column)) != kind
    ]


def _database(server: str, schema: str) -> str:
    name = f"pointsman_rehearsal_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(libpq_url(server), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    query = urlencode({"schema": schema}, quote_via=quote) if schema != "public" else ""
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}", query=query))


def _drop(server: str, url: str) -> None:
    name = urlsplit(url).path.removeprefix("/")
    with psycopg.connect(libpq_url(server), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _copy_schema(source: str, target: str, schema: str) -> None:
    with connect(source) as connection:
        dump = find_tool("pg_dump", connection.info.server_version)
    schemas = ['"' + name.replace('"', '""') + '"' for name in (schema, own_schema(source))]
    ledgers = [f"--table={one}.{table}" for one in schemas for table in (PRISMA_TABLE, OUR_TABLE)]
    parts = (["--schema-only", *(f"--schema={one}" for one in schemas)], ["--data-only", *ledgers])
    script = b"".join(_run_dump(source, dump.path.as_posix(), arguments) for arguments in parts)
    psql = find_tool("psql", 0)
    with way_to(target, "pointsman rehearsal") as (name, environment):
        # What cannot be copied (a table with a type of an extension) is not LiteLLM's; what it needs is missed later.
        subprocess.run(
            [str(psql.path), "--no-psqlrc", "--quiet", "--output=/dev/null", f"--dbname={name}"],
            env=environment,
            input=script,
            capture_output=True,
            check=False,
        )


def _run_dump(source: str, program: str, arguments: Iterable[str]) -> bytes:
    with way_to(source, "pointsman rehearsal") as (name, environment):
        done = subprocess.run(
            [program, *arguments, "--no-owner", "--no-privileges", "--no-password", f"--dbname={name}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    if done.returncode != 0 and b"no matching tables" not in done.stderr:
        raise DatabaseError(
            f"the schema cannot be read: {said(done.stderr, source)}",
            code="E4506",
            where=schema_of(source),
            mend="let this role read LiteLLM's tables: run as their owner",
        )
    return done.stdout
