"""Prisma's URL parameters reach the driver, and only those that it knows."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pointsman.migrations.install import node_binary

MODULE = Path(__file__).resolve().parents[2] / "migrations/pointsman/migrations/engine/server/url.mjs"
READ = f"import {{ parseUrl }} from {json.dumps(MODULE.as_uri())}; console.log(JSON.stringify(parseUrl(process.argv[1])))"


def parse(url: str) -> dict[str, Any]:
    done = subprocess.run(
        [str(node_binary()), "--input-type=module", "-e", READ, url], capture_output=True, text=True, check=False, env={}
    )
    if done.returncode:
        raise ValueError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_defaults_are_prismas() -> None:
    got = parse("postgresql://u:p%40%2F:x@db.example:6543/name")
    client = got["client"]
    assert (client["host"], client["port"], client["user"], client["password"], client["database"]) == (
        "db.example", 6543, "u", "p@/:x", "name",
    )  # fmt: skip
    assert got["pool"]["max"] == len(os.sched_getaffinity(0)) * 2 + 1
    assert got["poolTimeout"] == 10_000
    assert client["connectionTimeoutMillis"] == 5_000
    assert got["schema"] == "public"
    assert got["startup"] == {"TimeZone": "UTC"}
    assert (client["ssl"], got["preferTls"]) == ({"rejectUnauthorized": False}, True)


def test_parameters_are_honoured() -> None:
    got = parse(
        "postgres://u@h/d?connection_limit=7&pool_timeout=3&schema=my%22schema&connect_timeout=2&socket_timeout=9"
        "&application_name=me&options=-c%20statement_timeout%3D5s&statement_cache_size=0&unknown=1"
    )
    assert (got["pool"]["max"], got["poolTimeout"]) == (7, 3_000)
    assert (got["client"]["connectionTimeoutMillis"], got["client"]["query_timeout"]) == (2_000, 9_000)
    assert got["startup"] == {"TimeZone": "UTC", "search_path": '"my""schema"'}
    assert got["client"]["application_name"] == "me"
    assert got["client"]["options"] == "-c statement_timeout=5s"
    assert "unknown" not in json.dumps(got)


def test_behind_pgbouncer_no_search_path_is_sent() -> None:
    assert parse("postgresql://u@h/d?schema=s&pgbouncer=true")["startup"] == {"TimeZone": "UTC"}


def test_unix_sockets() -> None:
    got = parse("postgresql://u@localhost:6000/d?host=/run/pg")
    assert (got["client"]["host"], got["client"]["port"], got["client"]["ssl"]) == ("/run/pg", 6000, False)


@pytest.mark.parametrize(
    ("parameters", "ssl", "prefer"),
    [
        ("sslmode=disable", False, False),
        ("sslmode=prefer", {"rejectUnauthorized": False}, True),
        ("sslmode=require", {"rejectUnauthorized": False}, False),
        ("sslmode=require&sslaccept=strict", {"rejectUnauthorized": True}, False),
        ("sslmode=verify-full", {"rejectUnauthorized": True}, False),
    ],
)
def test_tls(parameters: str, ssl: object, prefer: bool) -> None:
    got = parse(f"postgresql://u@h/d?{parameters}")
    assert (got["client"]["ssl"], got["preferTls"]) == (ssl, prefer)


@pytest.mark.parametrize("url", ["not a url", "mysql://h/d", "postgresql://u:hidden@h/d?pool_timeout=soon"])
def test_refusals_hide_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="BadUrl") as caught:
        parse(url)
    assert "hidden" not in str(caught.value)
