"""Addresses, names and parameters as odd as they may be: to the engine's driver and to psycopg, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connections.agreement import by_libpq, by_the_engine
from pointsman.database_parts import Parts
from pointsman.database_url import address, libpq_url, redact
from support.pg_cluster import PASSWORD, PgCluster

ODD = 'o\'dd: "name" é@/?#%'
WHO = "SELECT current_user::text, current_database()::text, current_setting('statement_timeout')"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgCluster]:
    cluster = PgCluster(tmp_path_factory.mktemp("addresses") / "pg").start()
    name = ODD.replace('"', '""')
    password = PASSWORD.replace("'", "''")
    cluster.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'", f'CREATE DATABASE "{name}" OWNER "{name}"')
    yield cluster
    cluster.stop()


def test_engine_and_libpq_agree(server: PgCluster, tmp_path: Path) -> None:
    port, secret, odd = server.port, quote(PASSWORD, safe=""), quote(ODD, safe="")
    who = f"{odd}:{secret}"
    socket = quote(str(server.directory), safe="")
    passfile, open_file = tmp_path / "pass", tmp_path / "open"
    fields = [text.replace("\\", "\\\\").replace(":", "\\:") for text in (ODD, PASSWORD)]
    for file, mode in ((passfile, 0o600), (open_file, 0o644)):
        file.write_text(f"# a remark\n127.0.0.1:1:*:*:no\n*:{port}:*:{':'.join(fields)}\n")
        file.chmod(mode)
    fine = [ODD, ODD, "0"]
    cases: dict[str, Any] = {
        f"postgresql://{who}@127.0.0.1:{port}/{odd}": fine,
        f"postgres://{who}@localhost:{port}/{odd}": fine,
        f"postgresql://{who}@[::1]:{port}/{odd}": fine,
        f"postgresql://{who}@/{odd}?host={socket}&port={port}": fine,
        f"postgresql://{who}@{socket}:{port}/{odd}": fine,
        f"postgresql://{who}@localhost:{port}/{odd}?host={socket}": fine,
        f"postgresql://{who}@nobody.invalid:{port}/{odd}?hostaddr=127.0.0.1": fine,
        f"postgresql://127.0.0.1:{port}/?user={odd}&password={secret}&dbname={odd}": fine,
        f"postgresql://{who}@127.0.0.1:{port}": fine,  # no database: the role's
        f"postgresql://{odd}@127.0.0.1:{port}/{odd}?passfile={passfile}": fine,
        f"postgresql://{odd}@127.0.0.1:{port}/{odd}?passfile={open_file}": None,  # others may read it
        f"postgresql://{odd}@127.0.0.1:{port}/{odd}?passfile=/no/such/file": None,
        f"postgresql://{who}@127.0.0.1:1,[::1]:{port}/{odd}": fine,
        f"postgresql://{who}@/{odd}?host=127.0.0.1,{socket}&port=1,{port}": fine,
        f"postgresql://{who}@127.0.0.1:{port}/{odd}?options=-c%20statement_timeout%3D7s": [ODD, ODD, "7s"],
        f"postgresql://{who}@127.0.0.1:{port}/{odd}?options=-c+statement_timeout%3D7s+-c+lock_timeout%3D1s": [ODD, ODD, "7s"],
        f"postgresql://{who}@127.0.0.1:{port}/{odd}?options=-c%20no_such_setting%3D1": None,
        f"postgresql://{who}@127.0.0.1:{port}/{odd}?connect_timeout=0&keepalives=0&connection_limit=3&socket_timeout=9": fine,
        f"postgresql://{who}x@127.0.0.1:{port}/{odd}": None,
        f"postgresql://{who}@127.0.0.1:{port}/nowhere": None,
        f"postgresql://{who}@127.0.0.1:1/{odd}": None,
        f"postgresql://{who}@127.0.0.1:{port},127.0.0.1:{port}/{odd}?target_session_attrs=standby": None,
    }
    engine = by_the_engine(list(cases), WHO)
    told = {}
    for (url, wanted), one in zip(cases.items(), engine, strict=True):
        two = by_libpq(url, tmp_path, WHO)
        if [None if isinstance(answer, str) else answer for answer in (one, two)] != [wanted, wanted]:
            told[url] = (one, two)
    assert not told


def test_what_the_engine_sets_for_a_session(server: PgCluster) -> None:
    url = f"{server.url()}?schema={quote(ODD)}&application_name=me"
    sql = "SELECT current_setting('application_name'), current_setting('TimeZone'), current_setting('search_path')"
    schema = '"' + ODD.replace('"', '""') + '"'
    got = by_the_engine([url, f"{url}&pgbouncer=true"], sql)
    assert got == [["me", "UTC", schema], ["me", "UTC", '"$user", public']]


text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12)


@given(user=text, password=text, database=text, schema=text)
def test_whatever_the_names_are(user: str, password: str, database: str, schema: str) -> None:
    """Taken apart it is what was put in, and no message has the password."""
    encoded = [quote(part, safe="") for part in (user, password, database, schema)]
    url = "postgresql://{}:{}@[::1]:7,h/{}?schema={}".format(*encoded)
    parts = Parts.of(url)
    assert (parts.user, parts.password, parts.database, parts.get("schema")) == (user, password, database, schema)
    assert str(Parts.of(str(parts))) == str(parts)
    again = Parts.of(libpq_url(url))
    assert (again.user, again.password, again.database, again.hosts) == (user, password, database, parts.hosts)
    assert parts.without_password().password is None
    assert address(url) == f"[::1]:7,h:5432/{encoded[2]}"
    assert f"<{password}>" not in redact(f"<{password}> and <{encoded[1]}>", url) or password in ("*", "**", "***")
