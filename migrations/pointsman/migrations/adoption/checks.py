"""The checks that look at the database itself: what it is, who may change it, where it comes from, and whether the key fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from pointsman.migrations.adoption.census import Columns, columns_of, dropped_by, others, rights_lacking
from pointsman.migrations.adoption.history import History, read_history
from pointsman.migrations.adoption.report import Report
from pointsman.migrations.adoption.secrets import Keys, Opened, Value, open_values, stored_values
from pointsman.migrations.adoption.witness import Witness
from pointsman.migrations.baseline import has_litellm_tables
from pointsman.migrations.sources import litellm_migrations, litellm_version

__all__ = ["Refused", "check_database", "check_keys", "listed"]

_SHOWN = 8


class Refused(Exception):
    """A check did not pass; the text says which, and what to do."""

    def __init__(self, step: str, text: str) -> None:
        self.step = step
        super().__init__(text)


def listed(names: Sequence[str]) -> str:
    """The first few of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_database(connection: psycopg.Connection[Any], own: str, accepted: frozenset[str], report: Report) -> History:
    """It is LiteLLM's, this role may migrate it, and its ledger is understood.

    Args:
        own: name of the schema of our tables.
        accepted: names in the ledger that the operator vouches for.

    Raises:
        Refused: what is not so.
    """
    version = connection.info.server_version
    report.add("check", f"PostgreSQL {version // 10_000}.{version % 10_000} at {report.database} answers")
    if not has_litellm_tables(connection):
        raise Refused("check", "there are no tables of LiteLLM's here: check host, database and schema of the URL")
    if lacking := rights_lacking(connection, own):
        raise Refused("check", "this role cannot migrate: " + "; ".join(lacking))
    history = read_history(connection, litellm_migrations(), accepted)
    report.facts["history"] = {name: list(getattr(history, name)) for name in ("pending", "late", "rewritten", "withdrawn")}
    _judge(history)
    if not history.present:
        report.add("check", "there is no ledger of migrations (`prisma db push`): the schema itself will be compared", "note")
    else:
        report.add("check", f"{len(history.applied)} of LiteLLM's migrations are applied, {len(history.pending)} are not yet")
    for names, what in (
        (history.late, "are pending though later ones are applied: LiteLLM released them out of order"),
        (history.rewritten, "were applied from files that LiteLLM has rewritten since"),
        (history.withdrawn, "are LiteLLM's own, and no longer in its package"),
    ):
        if names:
            report.add(
                "check", f"{len(names)} migrations {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}", "note"
            )
    for text in _losses(connection, history):
        report.add("check", text, "note")
    if there := others(connection):
        report.add("check", f"others are connected and may write meanwhile; stop LiteLLM first: {listed(there)}", "note")
    return history


def _judge(history: History) -> None:
    if history.failed:
        name, log = next(iter(history.failed.items()))
        raise Refused(
            "check",
            f"another tool began the migration {name} and did not finish it ({' '.join(log.split())[:200] or 'no log'}): let "
            "LiteLLM finish it, or look what of it is in the schema and use `prisma migrate resolve`",
        )
    if history.newer:
        raise Refused(
            "check",
            f"a newer LiteLLM was here: it applied {listed(history.newer)} and this version ({litellm_version()} of "
            "litellm-proxy-extras) knows nothing of it; take a Pointsman with that LiteLLM",
        )
    if history.foreign:
        raise Refused(
            "check",
            f"the ledger has migrations that are not LiteLLM's: {listed(history.foreign)}; if you know them, name each with "
            "--accept-migration",
        )


def _losses(connection: psycopg.Connection[Any], history: History) -> list[str]:
    """What LiteLLM's pending migrations throw away: columns that they drop and that hold something."""
    pending = set(history.pending)
    present = columns_of(connection)
    found = []
    for table, column in sorted(dropped_by(one for one in litellm_migrations() if one.name in pending)):
        if (table, column) in present:
            query = sql.SQL("SELECT count({}) FROM {}").format(sql.Identifier(column), sql.Identifier(table))
            row = connection.execute(query).fetchone()
            if row and row[0]:
                found.append(f"LiteLLM's migrations drop the column {table}.{column}, which {row[0]} rows fill")
    return found


def check_keys(
    connection: psycopg.Connection[Any], present: Columns, witness: Witness, keys: Keys, report: Report, *, accept: bool
) -> None:
    """The key opens what is stored encrypted.

    Args:
        present: the columns there are.
        accept: go on though some of it does not open.

    Raises:
        Refused: it does not; with table and row, never a value.
    """
    opened = open_values(witness, stored_values(connection, present), keys)
    report.facts["secrets"] = {"opened": opened.by, "unreadable": len(opened.unreadable), "plain": opened.plain}
    if not opened.encrypted:
        report.add("key", "nothing is stored encrypted here; any salt key will do from now on")
        return
    if text := _trouble(opened, keys):
        if opened.elsewhere or not accept or keys.effective is None:
            raise Refused("key", text)
        report.add("key", text, "note")
    name = "LITELLM_SALT_KEY" if keys.salt else "the master key"
    report.add("key", f"{name} opens {opened.by.get(str(keys.effective), 0)} stored secrets")
    if not keys.salt:
        report.add(
            "key",
            "no salt key was set, so LiteLLM used the master key: set LITELLM_SALT_KEY to it for Pointsman; then the "
            "master key can change later and what is stored can still be read",
            "note",
        )


def _trouble(opened: Opened, keys: Keys) -> str | None:
    """What is wrong with the keys, with the rows; None when nothing is."""
    if opened.elsewhere:
        return (
            f"{len(opened.elsewhere)} of {opened.encrypted} stored secrets open with the master key, not with the salt key: "
            f"{_places(opened.elsewhere)}. LiteLLM takes the master key while LITELLM_SALT_KEY is not set. If all do, give that"
            " master key as the salt key; if only some do, set those again in LiteLLM with the salt key that it has now"
        )
    if not opened.unreadable:
        return None
    if keys.effective is None:
        return (
            f"{opened.encrypted} secrets are stored encrypted and no key was given: set LITELLM_SALT_KEY (or --salt-key-file)"
            ", or LITELLM_MASTER_KEY (or --master-key-file) where LiteLLM ran without a salt key"
        )
    how_many = sum(opened.by.values())
    hint = (
        "those were encrypted with another key, and LiteLLM could not read them either; set them again in LiteLLM, or go on "
        "without them by --accept-unreadable"
        if how_many
        else "this is not the key that they were encrypted with (without a salt key, LiteLLM takes its master key)"
    )
    return f"the key opens {how_many or 'none'} of {opened.encrypted} stored secrets, not {_places(opened.unreadable)}: {hint}"


def _places(values: tuple[Value, ...]) -> str:
    return listed(list(dict.fromkeys(value.place for value in values)))
