"""`pointsman db adopt`, `backup` and `restore`: parse and print; what is done stands in `pointsman.migrations`.

The embedded Postgres of `pointsman up` is reached by `--data-dir`: a gateway that runs there is asked for its port, else the
server is started for as long as the command takes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from pointsman.database_url import check
from pointsman.errors import ConfigError, ProcessError
from pointsman.settings import environment

__all__ = ["adopt", "backup", "restore"]

PATH = click.Path(path_type=Path)
T = TypeVar("T")
data_dir_option = click.option("--data-dir", type=PATH, help="Data directory of `pointsman up`, instead of DATABASE_URL.")


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.command()
@click.option("--salt-key-file", type=PATH, help="File with the salt key.  [default: LITELLM_SALT_KEY]")
@click.option("--master-key-file", type=PATH, help="File with the master key.  [default: LITELLM_MASTER_KEY]")
@click.option("--backup", "file", type=PATH, help="File for the backup.  [default: litellm-<date>.dump here]")
@click.option("--no-backup", is_flag=True, help="Make none, because you have one.")
@click.option("--dry-run", is_flag=True, help="Only check.")
@click.option("--accept-unreadable", is_flag=True, help="Go on though some stored secrets open with no key.")
@click.option("--accept-migration", multiple=True, metavar="NAME", help="Vouch for a name in the ledger; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print a report for programs on standard output.")
def adopt(
    salt_key_file: Path | None,
    master_key_file: Path | None,
    file: Path | None,
    no_backup: bool,
    dry_run: bool,
    accept_unreadable: bool,
    accept_migration: tuple[str, ...],
    as_json: bool,
) -> None:
    """Take over the database of an existing LiteLLM (DATABASE_URL, DIRECT_URL): check, back up, migrate, prove.

    The salt key is LiteLLM's LITELLM_SALT_KEY; where that was never set, its master key. Nothing is changed unless everything
    is understood and the key opens what is stored. A second run goes on where the first one ended.

    Exit status: 0 adopted (or, with --dry-run, can be), 1 refused and nothing changed, 2 wrong usage, 3 a migration failed,
    4 migrated, but not proved to be as before.
    """
    from pointsman.commands.database import database_url
    from pointsman.migrations.adoption import Keys, Options
    from pointsman.migrations.adoption import adopt as take_over

    if file is not None and no_backup:
        raise click.UsageError("--backup and --no-backup exclude each other")
    env = environment()
    keys = Keys(
        salt=_key(salt_key_file) or env.get("LITELLM_SALT_KEY") or None,
        master=_key(master_key_file) or env.get("LITELLM_MASTER_KEY") or None,
    )
    default = Path.cwd() / f"litellm-{datetime.now(UTC):%Y%m%d-%H%M%S}.dump"
    options = Options(
        keys=keys,
        scratch=_scratch_server,
        backup=None if no_backup else file or default,
        dry_run=dry_run,
        accept_unreadable=accept_unreadable,
        accept_migrations=frozenset(accept_migration),
    )
    report = take_over(database_url(direct=True), options, _say)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    sys.exit(report.outcome.value)


@click.command()
@click.option("--out", type=PATH, required=True, help="File to write; FILE.json beside it says what is in it.")
@data_dir_option
def backup(out: Path, data_dir: Path | None) -> None:
    """Back up the whole database (DATABASE_URL), while gateways go on working.

    The salt key is not in it: keep a copy of that elsewhere, for without it stored provider credentials cannot be read.
    """
    from pointsman.migrations.backup import backup as make

    with _database(data_dir, made=False) as url:
        click.echo(str(make(url, out, _say)))


@click.command()
@click.argument("file", type=PATH)
@click.option("--to", metavar="URL", help="Database to restore into; it must be empty.  [default: DATABASE_URL]")
@click.option("--yes", is_flag=True, help="Do it.")
@data_dir_option
def restore(file: Path, to: str | None, yes: bool, data_dir: Path | None) -> None:
    """Restore a backup into an empty database: all of it or nothing, then checked against its manifest."""
    from pointsman.database_url import address
    from pointsman.migrations.backup import restore as put_back

    if to is not None and data_dir is not None:
        raise click.UsageError("--to and --data-dir exclude each other")
    if not yes:
        raise click.UsageError("this writes to a database: say --yes")
    if to is not None:
        check(to)
    with _database(data_dir, made=True, url=to) as url:
        click.echo(f"{address(url)}: {put_back(url, file, _say)}")


def _key(file: Path | None) -> str | None:
    """What a key file holds, without the line's end.

    Raises:
        ConfigError: E4204 when it cannot be read or is empty.
    """
    if file is None:
        return None
    try:
        if key := file.read_text(encoding="utf-8").strip():
            return key
        problem = "is empty"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {error.strerror if isinstance(error, OSError) else 'it is no text'}"
    raise ConfigError(f"the key file {problem}", code="E4204", where=str(file), mend="name the file that has the key")


@contextmanager
def _database(data_dir: Path | None, *, made: bool, url: str | None = None) -> Iterator[str]:
    """URL of the database that is meant: the one given, that of a data directory, or DATABASE_URL.

    Args:
        made: whether a data directory without a database may get one.
    """
    if data_dir is None:
        from pointsman.commands.database import database_url

        yield url or database_url(direct=True)
        return
    from pointsman.embedded_postgres import EmbeddedPostgres, running_url

    where = data_dir.expanduser().absolute()
    if not made and not (where / "postgres").is_dir():
        raise ProcessError("no database is here", code="E4602", where=str(where), mend="name the directory that `up` told")
    if running := running_url(where):
        yield running
        return
    with _embedded(EmbeddedPostgres(where)) as own:
        yield own


@contextmanager
def _scratch_server() -> Iterator[str]:
    """A Postgres of its own, with nothing in it, to rehearse on; gone afterwards."""
    from pointsman.embedded_postgres import EmbeddedPostgres

    with tempfile.TemporaryDirectory(prefix="pointsman-rehearsal-") as folder:
        Path(folder).chmod(0o711)  # where Postgres runs as another user than root, it has to pass through
        hasty = {"fsync": "off", "full_page_writes": "off"}  # nothing here outlives the command
        with _embedded(EmbeddedPostgres(Path(folder) / "data", options=hasty)) as url:
            yield url


@contextmanager
def _embedded(postgres: Any) -> Iterator[str]:
    with _loop() as call:
        try:
            yield call(postgres.start())
        finally:
            call(postgres.stop())


@contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """An event loop in a thread of its own, for as long as the server that is started on it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="embedded-postgres", daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
