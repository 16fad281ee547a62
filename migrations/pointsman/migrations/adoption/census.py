"""Facts about a database: who may do what in it, who else is there, and digests of its rows to hold against later ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from pointsman.migrations.sources import Migration

__all__ = [
    "Census",
    "Columns",
    "census",
    "columns_of",
    "digest",
    "dropped_by",
    "others",
    "renamed_by",
    "rewritten_by",
    "rights_lacking",
    "unique_indexes",
]

Columns = dict[tuple[str, str], str]
"""(table, column) -> type, as `format_type` writes it."""

LARGEST_DIGEST = 200_000
"""Rows up to which a table is digested; logs of requests beyond it are counted only."""

_ALTERS = re.compile(r'ALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?"(LiteLLM_\w+)"([^;]*)', re.IGNORECASE)
_DROPS = re.compile(r'DROP\s+COLUMN\s+(?:IF\s+EXISTS\s+)?"(\w+)"', re.IGNORECASE)
_RENAMES = re.compile(r'RENAME\s+(?:COLUMN\s+)?"(\w+)"\s+TO\s+"(\w+)"', re.IGNORECASE)
_WRITES = re.compile(r'\b(?:UPDATE|INSERT\s+INTO|DELETE\s+FROM)\s+(?:"?public"?\.)?"(LiteLLM_\w+)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Census:
    """Rows of LiteLLM's tables at one moment.

    Attributes:
        rows: table -> number.
        digests: table -> digest over the columns asked for; large tables are left out.
    """

    rows: dict[str, int]
    digests: dict[str, str]


def rights_lacking(connection: psycopg.Connection[Any], own: str) -> list[str]:
    """What this role may not do and migrations need, each as a clause; empty when nothing is lacking.

    Args:
        own: name of the schema of our tables; it may be there already, made by somebody who may.
    """
    lacking: list[str] = []
    recovery, read_only, create, schemas, database = connection.execute(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', "
        "has_schema_privilege(current_schema(), 'CREATE'), "
        "coalesce(has_schema_privilege(to_regnamespace(quote_ident(%s)), 'CREATE'), "
        "has_database_privilege(current_database(), 'CREATE')), quote_ident(current_database())",
        (own,),
    ).fetchone() or (True, True, False, False, "")
    if recovery:
        lacking.append("the server is a read replica")
    elif read_only:
        lacking.append("transactions are read-only for this role")
    if not create:
        lacking.append("it may not make tables in LiteLLM's schema (GRANT CREATE ON SCHEMA)")
    if not schemas:
        lacking.append(f"it may not make the schema {own} for our tables (GRANT CREATE ON DATABASE {database})")
    foreign = connection.execute(
        "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = current_schema() "
        "AND (tablename LIKE 'LiteLLM\\_%' OR tablename = '_prisma_migrations') "
        "AND NOT pg_has_role(tableowner, 'USAGE') ORDER BY 1"
    ).fetchall()
    if foreign:
        lacking.append(
            f"{len(foreign)} tables belong to {foreign[0][1]}, {foreign[0][0]} for one, and only an owner may alter them"
        )
    return lacking


def others(connection: psycopg.Connection[Any]) -> list[str]:
    """Who else is connected to this database, as "name from address", without our own sessions."""
    rows = connection.execute(
        "SELECT coalesce(nullif(application_name, ''), usename, '?'), coalesce(host(client_addr), 'local'), count(*) "
        "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND coalesce(backend_type, 'client backend') = 'client backend' AND application_name NOT LIKE 'pointsman %' "
        "GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    return [f"{name} from {address} ({number})" for name, address, number in rows]


def columns_of(connection: psycopg.Connection[Any]) -> Columns:
    """Columns of the tables in the connection's schema."""
    rows = connection.execute(
        "SELECT c.relname, a.attname, replace(format_type(a.atttypid, a.atttypmod), quote_ident(n.nspname) || '.', '') "
        "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped"
    ).fetchall()
    return {(str(table), str(column)): str(kind) for table, column, kind in rows}


def unique_indexes(connection: psycopg.Connection[Any]) -> set[tuple[str, str]]:
    """(table, definition without names) of the unique indexes: upserts want the very same ones."""
    rows = connection.execute(
        "SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
        "WHERE c.relnamespace = current_schema()::regnamespace AND i.indisunique AND i.indisvalid"
    ).fetchall()
    return {(str(table), str(definition).partition(" USING ")[2]) for table, definition in rows}


def census(connection: psycopg.Connection[Any], columns: Mapping[str, Iterable[str]], undigested: Iterable[str] = ()) -> Census:
    """Count and digest in one snapshot.

    Args:
        columns: table -> the columns to digest.
        undigested: tables to count only.
    """
    rows: dict[str, int] = {}
    digests: dict[str, str] = {}
    leave = set(undigested)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for table, names in sorted(columns.items()):
            found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))).fetchone()
            rows[table] = int(found[0]) if found else 0
            if rows[table] <= LARGEST_DIGEST and table not in leave:
                digests[table] = digest(connection, table, names)
    return Census(rows, digests)


def digest(connection: psycopg.Connection[Any], table: str, columns: Iterable[str]) -> str:
    """md5 over the rows as text, whatever their order. (To notice change, not to keep anything secret.)"""
    query = sql.SQL(
        "SELECT md5(coalesce(string_agg(one, '' ORDER BY one), '')) FROM (SELECT md5(ROW({})::text) AS one FROM {}) t"
    )
    names = sql.SQL(", ").join(sql.Identifier(name) for name in sorted(columns))
    row = connection.execute(query.format(names, sql.Identifier(table))).fetchone()
    return str(row[0]) if row else ""


def dropped_by(migrations: Iterable[Migration]) -> set[tuple[str, str]]:
    """(table, column) of the columns that these migrations drop, whatever becomes of the name later."""
    return {(table, name) for one in migrations for table, rest in _ALTERS.findall(one.text) for name in _DROPS.findall(rest)}


def renamed_by(migrations: Iterable[Migration]) -> set[tuple[str, str]]:
    """(table, column) of the names that these migrations give up or give anew."""
    found = [(table, rest) for one in migrations for table, rest in _ALTERS.findall(one.text)]
    return {(table, name) for table, rest in found for pair in _RENAMES.findall(rest) for name in pair}


def rewritten_by(migrations: Iterable[Migration]) -> set[str]:
    """Tables whose rows these migrations write themselves."""
    return {name for migration in migrations for name in _WRITES.findall(migration.text)}
