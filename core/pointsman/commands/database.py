"""`pointsman db`: look after the database's schema. Parses and prints; what is done stands in `pointsman.migrations`.

Heavy imports stay inside the commands, so that `pointsman --help` is quick.
"""

from __future__ import annotations

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
def migrate() -> None:
    """Apply LiteLLM's migrations and ours. Safe to run from many instances at once."""
    from pointsman.migrations.runner import migrate as apply

    click.echo(str(apply(database_url(direct=True), lambda line: click.echo(line, err=True))))


@db.command()
def status() -> None:
    """Show what is applied and what is pending; exit status 1 when something is."""
    from pointsman.migrations.runner import status as look

    result = look(database_url(direct=True))
    click.echo(str(result))
    if result.pending:
        sys.exit(1)


for command in (adoption.adopt, adoption.backup, adoption.restore):
    db.add_command(command)
