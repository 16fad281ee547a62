"""`pointsman db`: look after the database's schema. Parses and prints; what is done stands in `pointsman.migrations`.

Heavy imports stay inside the commands, so that `pointsman --help` is quick.
"""

from __future__ import annotations

import sys

import click

from pointsman.errors import ConfigError
from pointsman.settings import environment

__all__ = ["database_url", "db"]


@click.group()
def db() -> None:
    """Look after the database's schema (DATABASE_URL)."""


def database_url() -> str:
    """DATABASE_URL of the environment.

    Raises:
        ConfigError: E4204 when it is not set.
    """
    url = environment().get("DATABASE_URL")
    if not url:
        raise ConfigError(
            "DATABASE_URL is not set", code="E4204", mend="export DATABASE_URL=postgresql://user:password@host/db"
        )
    return url


@db.command()
def migrate() -> None:
    """Apply LiteLLM's migrations and ours. Safe to run from many instances at once."""
    from pointsman.migrations.runner import migrate as apply

    click.echo(str(apply(database_url(), lambda line: click.echo(line, err=True))))


@db.command()
def status() -> None:
    """Show what is applied and what is pending; exit status 1 when something is."""
    from pointsman.migrations.runner import status as look

    result = look(database_url())
    click.echo(str(result))
    if result.pending:
        sys.exit(1)
