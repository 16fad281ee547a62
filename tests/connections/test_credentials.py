"""Passwords that change while the gateway runs: AWS tokens and files, with a real Postgres that takes only the newest."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg import sql

from connections.conftest import Engine
from pointsman.database_credentials import DatabaseAccess, sign_with_aws
from pointsman.database_parts import Host, Parts
from pointsman.database_url import environment_url, libpq_url, migration_url
from pointsman.errors import ConfigError, DatabaseError
from pointsman.process.environment import worker_environment
from support.pg_cluster import PgCluster

Engines = Callable[[str], Awaitable[Engine]]
HOST = "prod.abc123.eu-central-1.rds.amazonaws.com"
RDS = {"IAM_TOKEN_DB_AUTH": "True", "DATABASE_HOST": HOST, "DATABASE_USER": "app", "DATABASE_NAME": "litellm"}


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials to sign with; no network is needed."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


class Door:
    """Lets nobody in while the password changes: AWS honours old tokens for a while, an ordinary role has one password."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._changing = asyncio.Lock()
        self._entering = 0
        self._entered = asyncio.Event()
        self.connections = 0
        self._open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    @contextlib.asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        async with self._changing:
            while self._entering:
                self._entered.clear()
                await self._entered.wait()
            yield

    @contextlib.asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """For a client that reads its password before it knocks."""
        async with self._changing:
            self._entering += 1
        try:
            yield
        finally:
            self._entering -= 1
            self._entered.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._changing:
            self._entering += 1
        self.connections += 1
        self._open[asyncio.current_task()] = writer
        inside = False

        def entered() -> None:
            nonlocal inside
            if not inside:
                inside = True
                self._entering -= 1
                self._entered.set()

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, watch: bool) -> None:
            with contextlib.suppress(OSError):
                while chunk := await source.read(65536):
                    target.write(chunk)
                    await target.drain()
                    if watch and b"Z\x00\x00\x00\x05I" in chunk:  # ReadyForQuery: the password was taken
                        entered()
            target.close()

        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(pump(reader, upstream, watch=False), pump(upstream_reader, writer, watch=True))
        finally:
            entered()
            del self._open[asyncio.current_task()]

    async def close(self) -> None:
        self._server.close()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*(task for task in self._open if task is not None))


@pytest.mark.parametrize("source", ["tokens", "file"])
async def test_no_statement_fails_while_the_password_changes(
    source: str, server: PgCluster, engines: Engines, tmp_path: Path
) -> None:
    role = f"app_{source}"
    server.execute(f"CREATE ROLE {role} LOGIN")
    door = Door(server.port)
    port = await door.open()
    seen: list[str] = []

    def change(password: str) -> None:
        server.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), password).as_string(None))
        seen.append(password)

    secret = tmp_path / "secret"
    if source == "tokens":
        env = {
            **RDS,
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(port),
            "DATABASE_USER": role,
            "AWS_REGION": "eu-central-1",
        }
        env |= {"DATABASE_NAME": "postgres", "DATABASE_SSLMODE": "disable"}

        def sign(host: Host, user: str) -> str:
            assert user == role
            if host.port == port:  # the same for the way around the door
                change(f"{sign_with_aws(env, host, user)}&n={len(seen)}")  # two of one second are the same
            return seen[-1]

        access = DatabaseAccess(env, tmp_path, sign=sign)
    else:
        env = {
            "DATABASE_PASSWORD_FILE": str(secret),
            "DATABASE_URL": f"postgresql://{role}@127.0.0.1:{port}/postgres?sslmode=disable",
        }
        change("first: one")
        secret.write_text("first: one\n")
        access = DatabaseAccess(env, tmp_path)
    url = access.url(environment_url(env) or "")
    assert (Parts.of(url).password, "X-Amz" in url) == (None, False)
    access.url(url.replace(f":{port}/", f":{server.port}/"))
    assert stat.S_IMODE((tmp_path / "pgpass").stat().st_mode) == 0o600

    engine = await engines(f"{url}&connection_limit=3&max_connection_lifetime=1")
    done = asyncio.Event()
    answered = 0

    async def ask() -> None:
        nonlocal answered
        while not done.is_set():
            assert await engine.ask("SELECT 1 AS one") == [{"one": 1}]
            answered += 1

    async def connect() -> None:
        while not done.is_set():
            async with door.passing():
                direct = libpq_url(url).replace(f":{port}/", f":{server.port}/")
                connection = await psycopg.AsyncConnection.connect(direct)
            await connection.close()
            await asyncio.sleep(0.01)

    traffic = [asyncio.create_task(work()) for work in (ask, ask, ask, connect)]
    for number in range(3):
        before = door.connections
        async with door.shut():
            if source == "file":
                change(f"password {number}: \\ and more")
                secret.write_text(seen[-1])
            await asyncio.to_thread(access.refresh)
        while door.connections < before + 3:  # new connections, with the new password
            await asyncio.sleep(0.02)
            assert not any(task.done() for task in traffic), [task.exception() for task in traffic if task.done()]
    done.set()
    await asyncio.gather(*traffic)
    assert answered > 20
    assert len(set(seen)) >= 4
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):  # the old ones do not work
        psycopg.connect(server.url(user=role, password=seen[-2]))
    await door.close()


async def test_renewal_goes_on_after_a_failure(server: PgCluster, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one")
    access = DatabaseAccess({"DATABASE_PASSWORD_FILE": str(secret)}, tmp_path, interval=0.02)
    access.url("postgresql://u@h/d")
    task = asyncio.create_task(access.run())
    secret.unlink()
    await asyncio.sleep(0.1)
    assert (tmp_path / "pgpass").read_text() == "*:*:*:*:one\n"  # what was last stays
    secret.write_text("two\r\n")
    async with asyncio.timeout(5):
        while (tmp_path / "pgpass").read_text() != "*:*:*:*:two\n":  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)
    task.cancel()


def test_a_token_is_for_its_host_and_lives_a_quarter_of_an_hour(tmp_path: Path) -> None:
    """Signed offline. Two hosts get a token each; the region may come from the name; only TLS carries it."""
    url = environment_url({**RDS, "DATABASE_SCHEMA": "odd schema", "DATABASE_USER": "svc@corp"})
    assert url == f"postgresql://svc%40corp@{HOST}/litellm?schema=odd%20schema"
    other = HOST.replace("prod", "standby")
    access = DatabaseAccess(RDS, tmp_path)
    got = Parts.of(access.url(f"postgresql://svc%40corp@{HOST},{other}:6000/litellm"))
    assert got.get("sslmode") == "require"
    lines = [line.replace("\\:", "\0").split(":") for line in (tmp_path / "pgpass").read_text().splitlines()]
    assert [line[:4] for line in lines] == [[HOST, "5432", "*", "svc@corp"], [other, "6000", "*", "svc@corp"]]
    for (host, port), line in zip(((HOST, 5432), (other, 6000)), lines, strict=True):
        token = urlsplit("https://" + line[4].replace("\0", ":"))
        asked = parse_qs(token.query)
        assert (token.hostname, token.port) == (host, port)
        assert (asked["Action"], asked["DBUser"], asked["X-Amz-Expires"]) == (["connect"], ["svc@corp"], ["900"])
        assert "/eu-central-1/rds-db/" in asked["X-Amz-Credential"][0]
    assert Parts.of(access.url(f"postgresql://a@{HOST}/d?sslmode=verify-full")).get("sslmode") == "verify-full"
    assert access.url("postgresql://a:own@direct/d") == "postgresql://a:own@direct/d"  # DIRECT_URL with a password of its own


def test_without_a_region_or_credentials_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {**RDS, "DATABASE_HOST": "db.internal"}
    with pytest.raises(DatabaseError, match="region") as caught:
        DatabaseAccess(env, tmp_path).url(environment_url(env) or "")
    assert (caught.value.code, caught.value.where) == ("E4500", "db.internal:5432")
    assert "AWS_REGION" in (caught.value.mend or "")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DatabaseError, match="AWS gives no token"):
        DatabaseAccess(RDS, tmp_path).url(environment_url(RDS) or "")


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({"IAM_TOKEN_DB_AUTH": "maybe"}, "E4203"),
        ({"IAM_TOKEN_DB_AUTH": "true"}, "E4204"),
        ({"AZURE_POSTGRESQL_AUTH": "True", "DATABASE_URL": "postgresql://h/d"}, "E4203"),
        ({**RDS, "DATABASE_PASSWORD_FILE": "/f"}, "E4203"),
    ],
)
def test_what_cannot_be_meant_is_refused(env: dict[str, str], code: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        DatabaseAccess(env, tmp_path).url(environment_url(env) or "")
    assert caught.value.code == code


def test_a_password_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be read") as caught:
        DatabaseAccess({"DATABASE_PASSWORD_FILE": "/no/such/file"}, tmp_path).url("postgresql://u@h/d")
    assert caught.value.code == "E4500"


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, None),
        (
            {"DATABASE_URL": "postgresql://a/b", "DATABASE_HOST": "x", "DATABASE_USER": "u", "DATABASE_NAME": "d"},
            "postgresql://a/b",
        ),
        (
            {
                "DATABASE_HOST": "h",
                "DATABASE_PORT": "6000",
                "DATABASE_USERNAME": "u@x",
                "DATABASE_PASSWORD": "p@:/",
                "DATABASE_NAME": "d",
            },
            "postgresql://u%40x:p%40%3A%2F@h:6000/d",
        ),
        (
            {"DATABASE_HOST": "::1", "DATABASE_USER": "u", "DATABASE_NAME": "d", "DATABASE_SSLROOTCERT": "/ca.pem"},
            "postgresql://u@[::1]/d?sslrootcert=%2Fca.pem",
        ),
        ({"DATABASE_HOST": "h", "DATABASE_NAME": "d"}, None),
    ],
)
def test_litellms_single_variables(env: dict[str, str], url: str | None) -> None:
    assert environment_url(env) == url


def test_the_schema_is_changed_by_the_direct_url() -> None:
    pooled = "postgresql://u:p@pooler:6432/d?pgbouncer=true&schema=its%20own"
    assert migration_url({"DATABASE_URL": pooled}) == pooled
    assert migration_url({"DIRECT_URL": "postgresql://o:p@db/d"}, pooled) == "postgresql://o:p@db/d?schema=its%20own"
    assert migration_url({"DIRECT_URL": "postgresql://o:p@db/d?schema=x"}, pooled) == "postgresql://o:p@db/d?schema=x"
    assert migration_url({}) is None


def test_workers_renew_nothing(tmp_path: Path) -> None:
    """LiteLLM's client would replace its query engine to renew a token, and start a second one for a read replica."""
    from pointsman import litellm_config

    (tmp_path / "c.yaml").write_text("model_list: []\n")
    env = {
        "LITELLM_MASTER_KEY": "sk-0123456789abcdef0123456789abcdef",
        "DATABASE_URL_READ_REPLICA": "postgresql://r/d",
        "IAM_TOKEN_DB_AUTH": "True",
    }
    config = litellm_config.load(tmp_path / "c.yaml", {"LITELLM_MASTER_KEY": env["LITELLM_MASTER_KEY"]})
    got: dict[str, Any] = worker_environment(
        config, env, run_dir=tmp_path, workers=1, database_url="postgresql://u@h/d?passfile=/f", engine={}
    )
    assert got["DATABASE_URL"] == "postgresql://u@h/d?passfile=/f"
    assert not {"DATABASE_URL_READ_REPLICA", "IAM_TOKEN_DB_AUTH"} & set(got)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> object:
    """One server for the passwords of many roles."""
    cluster = PgCluster(tmp_path_factory.mktemp("credentials") / "pg").start()
    yield cluster
    cluster.stop()
