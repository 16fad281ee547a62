"""What must hold after the migration: rows as before, secrets that open, rows that LiteLLM's own types take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from pointsman.migrations.adoption.census import (
    Census,
    Columns,
    census,
    columns_of,
    dropped_by,
    others,
    renamed_by,
    rewritten_by,
)
from pointsman.migrations.adoption.secrets import Keys, Opened, open_values, stored_values
from pointsman.migrations.adoption.witness import Witness
from pointsman.migrations.sources import litellm_migrations

__all__ = ["Before", "Proof", "before", "prove"]

_PARSED = {
    "models": ("LiteLLM_ProxyModelTable", "model_id"),
    "agents": ("LiteLLM_AgentsTable", "agent_id"),
    "servers": ("LiteLLM_MCPServerTable", "server_id"),
}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Before:
    """What was there before the migration.

    Attributes:
        columns: table -> columns that stay, over which rows are digested.
        undigested: tables whose rows a pending migration writes itself.
        census: rows and digests.
        unreadable: rows that LiteLLM's own types refused already.
        others: who else was connected: then a difference may be theirs.
    """

    columns: dict[str, tuple[str, ...]]
    undigested: frozenset[str]
    census: Census
    unreadable: frozenset[tuple[str, str]]
    others: tuple[str, ...]


@dataclass(slots=True)
class Proof:
    """What was found afterwards.

    Attributes:
        rows: table -> number now.
        parsed: `models`, `agents`, `servers` -> how many LiteLLM's types took.
        opened: stored secrets that open.
        trouble: what does not hold; empty when all does.
        notes: what cannot be told because others were writing, and what was so before.
    """

    rows: dict[str, int] = field(default_factory=dict)
    parsed: dict[str, int] = field(default_factory=dict)
    opened: int = 0
    trouble: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def before(
    connection: psycopg.Connection[Any], present: Columns, later: Columns, pending: Iterable[str], witness: Witness, keys: Keys
) -> Before:
    """Count and digest what is there.

    Args:
        present: columns now.
        later: columns after the migration, from the rehearsal.
        pending: names of the migrations to come.
    """
    columns: dict[str, list[str]] = {}
    names = set(pending)
    migrations = [one for one in litellm_migrations() if one.name in names]
    moved = dropped_by(migrations) | renamed_by(migrations)
    for table, column in sorted(present.keys() & later.keys()):
        if table.startswith("LiteLLM_") and (table, column) not in moved:
            columns.setdefault(table, []).append(column)
    undigested = frozenset(rewritten_by(migrations))
    kept = {table: tuple(found) for table, found in columns.items()}
    unreadable = frozenset((kind, row) for kind, row, _ in _parse(connection, present, witness, keys)[1])
    return Before(kept, undigested, census(connection, kept, undigested), unreadable, tuple(others(connection)))


def prove(connection: psycopg.Connection[Any], then: Before, witness: Witness, keys: Keys) -> Proof:
    """Hold the database against what it was."""
    proof = Proof()
    now = census(connection, then.columns, then.undigested)
    proof.rows = now.rows
    _compare(then, now, proof, shared=bool(then.others or others(connection)))
    columns = columns_of(connection)
    opened = open_values(witness, stored_values(connection, columns), keys)
    proof.opened = sum(opened.by.values())
    _compare_secrets(opened, proof)
    proof.parsed, unreadable = _parse(connection, columns, witness, keys)
    for kind, row, why in unreadable:
        text = f"LiteLLM cannot read {_PARSED[kind][0]} {row}: {why}"
        (proof.notes if (kind, row) in then.unreadable else proof.trouble).append(text)
    return proof


def _parse(
    connection: psycopg.Connection[Any], columns: Columns, witness: Witness, keys: Keys
) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """How many of each kind LiteLLM's types take, and the rest as (kind, id, why)."""
    key = next((value for _, value in keys.named), None)
    parsed: dict[str, int] = {}
    unreadable: list[tuple[str, str, str]] = []
    for kind, (table, row_id) in _PARSED.items():
        rows = _as_prisma(connection, table, columns) if (table, row_id) in columns else []
        found = witness.unreadable(kind, rows, key)
        parsed[kind] = len(rows) - len(found)
        unreadable += [(kind, row, why) for row, why in found]
    return parsed, unreadable


def _as_prisma(connection: psycopg.Connection[Any], table: str, columns: Columns) -> list[dict[str, Any]]:
    """Rows as LiteLLM gets them: Prisma has no NULL for a list."""
    lists = {column for (name, column), kind in columns.items() if name == table and kind.endswith("[]")}
    found = connection.execute(sql.SQL("SELECT to_jsonb(t) FROM {} t").format(sql.Identifier(table))).fetchall()
    return [{name: [] if value is None and name in lists else value for name, value in row.items()} for (row,) in found]


def _compare(then: Before, now: Census, proof: Proof, *, shared: bool) -> None:
    found = [
        f"{table} has {now.rows[table]} rows and had {rows}"
        for table, rows in then.census.rows.items()
        if now.rows[table] != rows
    ]
    found += [
        f"rows of {table} are not what they were"
        for table, digest in then.census.digests.items()
        if now.digests.get(table) != digest and now.rows[table] == then.census.rows[table]
    ]
    if found and shared:
        proof.notes.append("others were connected, so these may be their changes: " + "; ".join(found[:_SHOWN]))
    else:
        proof.trouble += found[:_SHOWN]


def _compare_secrets(opened: Opened, proof: Proof) -> None:
    if opened.elsewhere:
        proof.trouble.append(f"{len(opened.elsewhere)} stored secrets open with another key than LiteLLM will take")
    if opened.unreadable:
        proof.notes.append(f"{len(opened.unreadable)} stored secrets do not open, as before")
