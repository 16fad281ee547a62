"""Behind a real PgBouncer: the engine and our own connections in both modes, migrations past it."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest

from connections.conftest import Engine
from pointsman.database_url import libpq_url
from support.debian import pgbouncer
from support.gateway import Gateway, free_port, pointsman
from support.pg_cluster import PgCluster
from support.processes import wait_for

pytestmark = pytest.mark.slow("connections")
Engines = Callable[[str], Awaitable[Engine]]
SERVER_CONNECTIONS = 6
CONFIG = {
    "model_list": [{"model_name": "m", "litellm_params": {"model": "mock/m", "mock": {"answer": "hello"}}}],
    "pointsman": {"telemetry": {"logs": {"provider_messages": True}}},  # else the log could not quote the database
}


@dataclass
class Site:
    """A database, and the pooler before it."""

    server: PgCluster
    port: int
    password: str

    def pooled(self, parameters: str = "") -> str:
        return f"postgresql://app:{self.password}@127.0.0.1:{self.port}/gate?{parameters}"

    def direct(self, parameters: str = "") -> str:
        return f"postgresql://app:{self.password}@127.0.0.1:{self.server.port}/gate?{parameters}"


@pytest.fixture(scope="module", params=["transaction", "session"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp(request.param)
    server = PgCluster(root / "pg").start()
    password = secrets.token_urlsafe(12)
    server.execute(f"CREATE ROLE app LOGIN PASSWORD '{password}'", "CREATE DATABASE gate OWNER app")
    program, environment = pgbouncer()
    home, port = root / "pgbouncer", free_port()
    home.mkdir()
    (home / "users").write_text(f'"app" "{password}"\n')
    # A pool smaller than the engine's, so that clients really take turns.
    (home / "ini").write_text(f"""
[databases]
gate = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {home}/users
pool_mode = {request.param}
default_pool_size = {SERVER_CONNECTIONS if request.param == "transaction" else 40}
server_tls_sslmode = disable
""")
    # PgBouncer does not run as root; as somebody else by name only, it still reads our files.
    command = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"] if os.geteuid() == 0 else []
    with (root / "log").open("wb") as log:
        process = subprocess.Popen([*command, str(program), str(home / "ini")], env=environment, stdout=log, stderr=log)
    made = Site(server, port, password)

    def answers() -> bool:
        assert process.poll() is None, (root / "log").read_text()
        try:
            with psycopg.connect(libpq_url(made.pooled()), connect_timeout=3):
                return True
        except psycopg.OperationalError:
            return False

    try:
        wait_for(answers, 15, "PgBouncer answers", 0.1)
        yield made
    finally:
        process.terminate()
        process.wait(10)
        server.stop()


@pytest.mark.parametrize("parameters", ["pgbouncer=true", ""])
async def test_the_engine_takes_turns(parameters: str, site: Site, engines: Engines) -> None:
    """Statements, values, errors and transactions of more clients than there are server connections."""
    table = f"notes_{secrets.token_hex(4)}"
    site.server.execute(f"CREATE TABLE {table} (n int PRIMARY KEY, who text)", f"GRANT ALL ON {table} TO app", database="gate")
    engine = await engines(site.pooled(f"connection_limit=20&{parameters}"))

    async def work(who: int) -> None:
        for turn in range(15):
            number = who * 100 + turn
            await engine.execute(f"INSERT INTO {table} VALUES ($1, $2)", number, f"w{who}")  # noqa: S608
            assert await engine.ask(f"SELECT who FROM {table} WHERE n = $1", number) == [{"who": f"w{who}"}]  # noqa: S608
            async with engine.db.tx(max_wait=20_000, timeout=20_000) as tx:
                await tx.execute_raw(f"UPDATE {table} SET who = 'x' WHERE n = $1", number)  # noqa: S608
                found = await tx.query_raw(f"SELECT who FROM {table} WHERE n = $1", number)  # noqa: S608
            assert found == [{"who": "x"}]

    await asyncio.gather(*(work(who) for who in range(12)))
    assert await engine.ask(f"SELECT count(*)::int AS n FROM {table} WHERE who = 'x'") == [{"n": 180}]  # noqa: S608
    assert await engine.ask("SELECT current_setting('TimeZone') AS zone") == [{"zone": "UTC"}]


def test_migrations_want_a_direct_connection(site: Site, request: pytest.FixtureRequest) -> None:
    turns = "test_migrations_want_a_direct_connection[transaction]" in request.node.name
    through = pointsman("db", "migrate", env={"DATABASE_URL": site.pooled("pgbouncer=true")}, timeout=120)
    assert ("E4508" in through.stderr) == turns
    assert (through.returncode != 0) == turns
    past = pointsman(
        "db", "migrate", env={"DATABASE_URL": site.pooled("pgbouncer=true"), "DIRECT_URL": site.direct()}, timeout=120
    )
    assert past.returncode == 0, past.stderr


def test_a_gateway_behind_it(site: Site, tmp_path: Path) -> None:
    """Keys, spend and decision records by turns; the schema is made by DIRECT_URL."""
    gateway = Gateway(
        CONFIG, tmp_path, site.pooled("pgbouncer=true&connection_limit=10"), env={"DIRECT_URL": site.direct()}
    ).start()
    try:
        keys = [gateway.new_key() for _ in range(10)]
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        for key in keys * 3:
            answer = httpx.post(
                f"{gateway.url}/v1/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {key}"},
                timeout=30,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
        logged = 'SELECT count(*) FROM "LiteLLM_SpendLogs"'
        wait_for(lambda: site.server.execute(logged, database="gate")[0][0] == 30, 90, "all requests are in the log", 0.5)
    finally:
        gateway.stop()
    assert "prepared statement" not in gateway.log_path.read_text()
    decisions = "SELECT schemaname FROM pg_tables WHERE tablename = 'pointsman_outcomes'"
    ((schema,),) = site.server.execute(decisions, database="gate")
    assert site.server.execute(f'SELECT count(*) FROM "{schema}".pointsman_outcomes', database="gate") == [(30,)]  # noqa: S608
