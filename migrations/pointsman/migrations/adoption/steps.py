"""The steps of an adoption, in order: check, key, backup, migrate, prove. Each may be repeated; a second run picks up where the
first one ended, for what is done already is seen in the database itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from pointsman.database_url import address, own_schema, schema_of
from pointsman.errors import DatabaseError
from pointsman.migrations.adoption.census import columns_of
from pointsman.migrations.adoption.checks import Refused, check_database, check_keys
from pointsman.migrations.adoption.proof import Before, before, prove
from pointsman.migrations.adoption.rehearsal import Rehearsal, Scratch, rehearse
from pointsman.migrations.adoption.report import Outcome, Report
from pointsman.migrations.adoption.secrets import Keys
from pointsman.migrations.adoption.space import room_for_backup
from pointsman.migrations.adoption.witness import Witness
from pointsman.migrations.backup import backup
from pointsman.migrations.connection import connect
from pointsman.migrations.runner import migrate, status

__all__ = ["Options", "adopt"]

_SHOWN = 8
_KEYS_TABLE = "LiteLLM_VerificationToken"


@dataclass(frozen=True, slots=True)
class Options:
    """How to adopt.

    Attributes:
        keys: the installation's.
        scratch: where to rehearse.
        backup: file for the backup; None: none is made, because the operator has one.
        dry_run: only check.
        accept_unreadable: go on though some ciphertext cannot be read (it could not before, either).
        accept_migrations: names in the ledger that the operator vouches for.
        witness: gives the process that knows LiteLLM; one may serve several adoptions.
    """

    keys: Keys
    scratch: Scratch
    backup: Path | None
    dry_run: bool = False
    accept_unreadable: bool = False
    accept_migrations: frozenset[str] = field(default_factory=frozenset)
    witness: Callable[[], AbstractContextManager[Witness]] = Witness


def adopt(database_url: str, options: Options, say: Callable[[str], None]) -> Report:
    """Take over a database of LiteLLM's.

    Args:
        database_url: a direct connection, no transaction pooler, as the tables' owner.
        options: see there.
        say: gets a line for each step.

    Returns:
        The report; its outcome says whether anything was refused (nothing is changed then), failed or not proved.

    Raises:
        DatabaseError: E4500 unreachable, E4504 bad URL.
    """
    report = Report(address(database_url), options.dry_run, say)
    with options.witness() as witness:
        try:
            with connect(database_url) as connection:
                history = check_database(connection, own_schema(database_url), options.accept_migrations, report)
                present = columns_of(connection)
                check_keys(connection, present, witness, options.keys, report, accept=options.accept_unreadable)
            rehearsal = _rehearse(database_url, options, report)
            if not rehearsal.applied:
                report.add("check", "everything is applied already: nothing to back up, nothing to migrate")
            elif options.backup is not None:
                _check_room(database_url, options.backup, report)
            if options.dry_run:
                report.add("check", "dry run: nothing was changed")
                return report
            if rehearsal.applied and options.backup is not None:
                _back_up(database_url, options.backup, report)
        except Refused as refused:
            return report.end(Outcome.REFUSED, str(refused), refused.step)
        with connect(database_url) as connection:
            then = before(connection, present, rehearsal.columns, history.pending, witness, options.keys)
        if rehearsal.applied:
            if options.backup is None:
                report.add("backup", "none is made, as you asked", "skipped")
            try:
                report.add("migrate", str(migrate(database_url, lambda _: None)))
            except DatabaseError as error:
                return report.end(Outcome.MIGRATION_FAILED, f"{error}{_way_back(report)}", "migrate")
        return _prove(database_url, then, witness, options, report)


def _rehearse(database_url: str, options: Options, report: Report) -> Rehearsal:
    try:
        rehearsal = rehearse(database_url, options.scratch)
    except DatabaseError as error:
        raise Refused("check", f"a rehearsal on a copy of the schema failed: {error}") from error
    if rehearsal.lacking:
        raise Refused(
            "check",
            f"migrated, the schema would not be what this version needs ({len(rehearsal.lacking)} differences): "
            + "; ".join(rehearsal.lacking[:_SHOWN])
            + ". Let the LiteLLM that made it repair it (start it once), or mend these by hand",
        )
    report.add(
        "check", f"rehearsed on a copy of the schema: {rehearsal.applied} migrations go through, and nothing is lacking then"
    )
    if rehearsal.extra:
        report.add("check", f"not LiteLLM's, and left alone: {', '.join(rehearsal.extra[:_SHOWN])}", "note")
    return rehearsal


def _check_room(database_url: str, file: Path, report: Report) -> None:
    with connect(database_url) as connection:
        trouble, text = room_for_backup(connection, file)
    if trouble:
        raise Refused("backup", text)
    report.add("check", text)


def _back_up(database_url: str, file: Path, report: Report) -> None:
    try:
        made = backup(database_url, file, lambda _: None)
    except DatabaseError as error:
        raise Refused("backup", f"{error}") from error
    report.facts["backup"] = {"path": str(made.path), "sha256": made.manifest.sha256, "size": made.manifest.size}
    report.add("backup", str(made))
    report.add("backup", f"the way back: pointsman db restore {made.path} --to <URL of an empty database> --yes")


def _way_back(report: Report) -> str:
    made = report.facts.get("backup")
    return f" (the backup is {made['path']})" if made else ""


def _prove(database_url: str, then: Before, witness: Witness, options: Options, report: Report) -> Report:
    with connect(database_url) as connection:
        proof = prove(connection, then, witness, options.keys)
    now = status(database_url)
    for text in proof.notes:
        report.add("prove", text, "note")
    trouble = [*proof.trouble, *(["migrations are pending still"] if now.pending else [])]
    report.facts["rows"] = proof.rows
    if trouble:
        return report.end(Outcome.NOT_PROVED, "; ".join(trouble) + _way_back(report), "prove")
    report.add("prove", f"{sum(proof.rows.values()):,} rows in {len(proof.rows)} tables are as before, column by column")
    report.add(
        "prove",
        f"{proof.rows.get(_KEYS_TABLE, 0)} virtual keys, {proof.parsed['models']} models, {proof.parsed['agents']} agents and "
        f"{proof.parsed['servers']} MCP servers are there and LiteLLM reads them; {proof.opened} stored secrets open",
    )
    where = "" if schema_of(database_url) == "public" else f" (schema {schema_of(database_url)})"
    report.add(
        "prove", f"adopted{where}: start `pointsman serve` with this DATABASE_URL, the same master key and the same salt key"
    )
    return report
