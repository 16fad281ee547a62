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
    assert got["hosts"] == [{"host": "db.example", "port": 6543}]
    assert (client["user"], client["password"], client["database"]) == ("u", "p@/:x", "name")
    assert got["pool"]["max"] == len(os.sched_getaffinity(0)) * 2 + 1
    assert got["poolTimeout"] == 10_000
    assert client["connectionTimeoutMillis"] == 5_000
    assert got["schema"] == "public"
    assert got["startup"] == {"TimeZone": "UTC"}
    assert got["tls"] == {"mode": "prefer", "minVersion": "TLSv1.2"}
    assert (got["session"], got["channelBinding"]) == ("any", "prefer")


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


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u@localhost:6000/d?host=/run/pg", ["/run/pg:6000"]),
        ("postgresql://u@%2Frun%2Fpg/d", ["/run/pg:5432"]),
        ("postgresql://u@[::1]:6000/d", ["[::1]:6000"]),
        ("postgresql://u@h1:1,h2:2,[::1]/d", ["h1:1", "h2:2", "[::1]:5432"]),
        ("postgresql://u@/d?host=a,b&port=1,2", ["a:1", "b:2"]),
        ("postgresql://u@/d?host=a,b&port=7", ["a:7", "b:7"]),
        ("postgresql:///d", ["localhost:5432"]),
    ],
)
def test_hosts(url: str, hosts: list[str]) -> None:
    got = parse(url)
    assert got["where"] == ",".join(hosts)
    assert got["session"] == ("read-write" if len(hosts) > 1 else "any")


def test_an_address_beside_a_host_name() -> None:
    assert parse("postgresql://u@h/d?hostaddr=127.0.0.1")["hosts"] == [{"host": "h", "port": 5432, "hostaddr": "127.0.0.1"}]


@pytest.mark.parametrize(
    ("parameters", "mode", "authority"),
    [
        ("sslmode=disable", "disable", None),
        ("sslmode=require", "require", None),
        ("sslmode=require&sslaccept=strict", "verify-full", "system"),
        ("sslaccept=strict&sslcert=/ca.pem", "verify-full", "/ca.pem"),
        ("sslmode=require&sslcert=/ca.pem", "require", None),
        ("sslmode=disable&sslaccept=strict", "disable", None),
        ("sslrootcert=/ca.pem", "verify-full", "/ca.pem"),
        ("sslmode=require&sslrootcert=/ca.pem", "require", "/ca.pem"),
        ("sslmode=verify-full", "verify-full", "system"),
        ("sslmode=verify-ca&sslrootcert=/ca.pem", "verify-ca", "/ca.pem"),
    ],
)
def test_tls(parameters: str, mode: str, authority: str | None) -> None:
    tls = parse(f"postgresql://u@h/d?{parameters}")["tls"]
    assert (tls["mode"], tls.get("authority")) == (mode, authority)


@pytest.mark.parametrize(
    "url",
    [
        "not a url",
        "mysql://h/d",
        "postgresql://u:hidden@h/d?pool_timeout=soon",
        "postgresql://u:hidden@h:x/d",
        "postgresql://u:hidden@h1,h2/d?port=1,2,3",
        "postgresql://u:hidden%zz@h/d",
        "postgresql://u:hidden@h/d?sslmode=verify-ca",
        "postgresql://u:hidden@h/d?sslmode=require&sslrootcert=system",
        "postgresql://u:hidden@h/d?sslmode=whatever",
        "postgresql://u:hidden@h/d?target_session_attrs=best",
        "postgresql://u:hidden@h/d?requirepeer=me",
    ],
)
def test_refusals_hide_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="BadUrl") as caught:
        parse(url)
    assert "hidden" not in str(caught.value)
