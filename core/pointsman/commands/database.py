"""`pointsman db`: look after the database's schema. Parses and prints; what is done stands in `pointsman.migrations`.

Heavy imports stay inside the commands, so that `pointsman --help` is quick.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from pointsman.commands import adoption
from pointsman.database_credentials import DatabaseAccess
from pointsman.database_url import environment_url, migration_url
from pointsman.errors import ConfigError
from pointsman.settings import environment

__all__ = ["database_url", "db"]


@click.group()
def db() -> None:
    """Look after the database's schema (DATABASE_URL)."""


def database_url(*, direct: bool = False) -> str:
    """The database URL of the environment, with a password that is fresh while the command runs.

    Args:
        direct: the one to change the schema by, `DIRECT_URL` where that is set.

    Raises:
        ConfigError: E4204 when there is none; E4203. DatabaseError: E4500, E4504.
    """
    env = environment()
    url = migration_url(env) if direct else environment_url(env)
    if not url:
        raise ConfigError(
            "DATABASE_URL is not set", code="E4204", mend="export DATABASE_URL=postgresql://user:password@host/db"
        )
    directory = tempfile.TemporaryDirectory(prefix="pointsman-")
    click.get_current_context().call_on_close(directory.cleanup)
    return DatabaseAccess(env, Path(directory.name)).url(url)


@db.command()
@click.option("--dry-run", is_flag=True, help="Print the SQL instead; it is complete, and psql can run it.")
@click.option(
    "--indexes", is_flag=True, help="Build the request log's indexes too, as `serve` does beside its work; may take hours."
)
def migrate(dry_run: bool, indexes: bool) -> None:
    """Apply LiteLLM's migrations and ours. Safe to run from many instances at once.

    Wants a direct connection: where DATABASE_URL goes through a pooler, set DIRECT_URL.
    """
    from pointsman.migrations import preview, runner

    url = database_url(direct=True)
    if dry_run:
        click.echo(preview.script(url), nl=False)
        return

    def tell(line: str) -> None:
        click.echo(line, err=True)

    click.echo(str(runner.migrate(url, tell)))
    if indexes and not runner.build_indexes(url, tell):
        sys.exit(1)


@db.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(as_json: bool) -> None:
    """Show what is applied, pending, failed, unknown (of a newer version) and changed since.

    Exit status 0: current, 1: something is pending, failed, or a file of ours was edited.
    """
    from pointsman.migrations.runner import status as look

    result = look(database_url(direct=True))
    click.echo(json.dumps(result.as_dict(), indent=2) if as_json else str(result))
    if not result.current:
        sys.exit(1)


@db.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--rolling", is_flag=True, help="Exit status 1 unless all of it is safe while instances of the version before work."
)
def plan(as_json: bool, rolling: bool) -> None:
    """Show what `migrate` would apply, in order, and whether instances of the version before can work on meanwhile."""
    from pointsman.migrations.preview import preview

    result = preview(database_url(direct=True))
    click.echo(json.dumps(result.as_dict(), indent=2) if as_json else str(result))
    if rolling and not result.rolling_safe:
        sys.exit(1)


for command in (adoption.adopt, adoption.backup, adoption.restore):
    db.add_command(command)
