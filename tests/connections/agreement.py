"""Ask the engine's driver and psycopg what they make of the same URL."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from pointsman.database_credentials import DatabaseAccess
from pointsman.database_url import libpq_url
from pointsman.errors import DatabaseError
from pointsman.migrations.install import node_binary
from pointsman.migrations.install.layout import Layout

__all__ = ["LOOK", "by_libpq", "by_the_engine"]

SERVER = Path(__file__).resolve().parents[2] / "migrations/pointsman/migrations/engine/server"
LOOK = (
    "SELECT ssl, coalesce(client_dn, ''), current_user::text, (current_schemas(false))[1]::text"
    " FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
)
SCRIPT = f"""
const {{ parseUrl }} = await import({json.dumps((SERVER / "url.mjs").as_uri())});
const {{ Connector }} = await import({json.dumps((SERVER / "connect.mjs").as_uri())});
const [, , , sql, ...urls] = process.argv;
const ask = async (url) => {{
  try {{
    const client = await new Connector(parseUrl(url)).open();
    const {{ rows }} = await client.query({{ text: sql, rowMode: 'array' }});
    await client.end();
    return rows[0];
  }} catch (error) {{
    return String(error.message || error.errors);
  }}
}};
const answers = await Promise.all(urls.map(ask));
process.stdout.write(JSON.stringify(answers));
process.exit(0);
"""


def by_the_engine(urls: Sequence[str], sql: str = LOOK) -> list[Any]:
    """For each URL the first row, or what went wrong; with the engine's own connect.mjs, in one process."""
    command = [str(node_binary()), "--input-type=module", "-e", SCRIPT, "-", str(Layout.current().engine_modules), sql, *urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def by_libpq(url: str, directory: Path, sql: str = LOOK) -> Any:
    """The first row, or what went wrong; as the supervisor and the workers connect."""
    try:
        with psycopg.connect(libpq_url(DatabaseAccess({}, directory).url(url)), connect_timeout=5) as connection:
            row = connection.execute(sql.encode()).fetchone()
            return list(row or ())
    except (psycopg.OperationalError, DatabaseError) as error:
        return str(error)
