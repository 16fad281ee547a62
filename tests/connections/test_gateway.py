"""A real gateway of two workers behind everything at once: hosts of which one is dead, an odd schema, a password from a file,
a small pool. One boot; what a test changes at the server it puts right again.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import psycopg
import pytest
from psycopg import sql

from support.gateway import Gateway, free_port, pointsman
from support.pg_cluster import PASSWORD, PgCluster
from support.processes import marked, wait_for

pytestmark = pytest.mark.slow("connections")

SCHEMA = 'its "own" schema'
POOL = 4
AT_MOST = POOL + 4 + 2
"""The engine's, a decision writer for each of two workers, in the supervisor upkeep and feedback, and two to build indexes."""
CONFIG = {
    "model_list": [{"model_name": "m", "litellm_params": {"model": "mock/m", "mock": {"answer": "hello"}}}],
    "general_settings": {"database_connection_pool_limit": POOL // 2},
}
OURS = "usename = 'app' AND datname = 'gate' AND pid <> pg_backend_pid()"


class Watch:
    """Counts the role's connections, many times a second, from the first moment of the gateway's life."""

    def __init__(self, server: PgCluster) -> None:
        self._connection = psycopg.connect(server.url(), autocommit=True)
        self._stopping = threading.Event()
        self.most = self.engine = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        query = f"SELECT count(*), count(*) FILTER (WHERE application_name = 'gate') FROM pg_stat_activity WHERE {OURS}"  # noqa: S608
        while not self._stopping.is_set():
            row = self._connection.execute(query.encode()).fetchone()
            assert row is not None
            self.most, self.engine = max(self.most, row[0]), max(self.engine, row[1])
            time.sleep(0.005)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)
        self._connection.close()


@dataclass
class Place:
    server: PgCluster
    gateway: Gateway
    secret: Path
    watch: Watch
    url: str

    def set_password(self, password: str) -> None:
        self.server.execute(sql.SQL("ALTER ROLE app PASSWORD {}").format(password).as_string(None))

    def throw_out(self) -> None:
        self.server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")  # noqa: S608

    def ask(self, key: str) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        return httpx.post(
            f"{self.gateway.url}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
            trust_env=False,
        )

    def recovered(self) -> bool:
        """Whether a key that nobody has seen is looked up again: it is unknown."""
        return self.ask(f"sk-{secrets.token_hex(8)}").status_code == 401


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("place")
    server = PgCluster(root / "pg").start()
    server.execute("CREATE ROLE app LOGIN", "CREATE DATABASE gate OWNER app", "REVOKE CONNECT ON DATABASE gate FROM public")
    secret = root / "secret"
    secret.write_text("the first one\n")
    url = (
        f"postgresql://app@127.0.0.1:{free_port()},127.0.0.1:{server.port}/gate?schema={quote(SCHEMA)}"
        "&application_name=gate&pool_timeout=3&options=-c%20statement_timeout%3D50s"
    )
    gateway = Gateway(CONFIG, root / "gateway", url, env={"DATABASE_PASSWORD_FILE": str(secret)})
    watch = Watch(server)
    made = Place(server, gateway, secret, watch, url)
    made.set_password("the first one")
    gateway.start()
    yield made
    gateway.stop()
    watch.stop()
    server.stop()


def test_keys_and_spend_are_in_the_schema_on_the_host_that_answers(place: Place) -> None:
    key = place.gateway.new_key()
    assert place.ask(key).json()["choices"][0]["message"]["content"] == "hello"
    tables = sql.Identifier(SCHEMA).as_string(None)
    logs = f'SELECT count(*) FROM {tables}."LiteLLM_SpendLogs"'  # noqa: S608
    wait_for(lambda: place.server.execute(logs, database="gate") != [(0,)], 60, "the request is in the log", 0.2)
    found = place.server.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database="gate")
    assert found == [(0,)]
    (options,) = place.server.execute(f"SELECT query FROM pg_stat_activity WHERE {OURS} AND application_name = 'gate' LIMIT 1")  # noqa: S608
    assert options


@pytest.mark.requirement("R-4.4")
def test_no_more_connections_than_said(place: Place) -> None:
    """From its start and under load, with twice as many clients as connections; every one of the engine's is used."""
    key = place.gateway.new_key()
    until = time.monotonic() + 4
    numbers = itertools.count()

    def work(_: int) -> int:
        done = 0
        with place.gateway.http(place.gateway.master_key) as admin:
            while time.monotonic() < until:
                name = f"load-{next(numbers)}"
                assert admin.post("/user/new", json={"user_id": name, "auto_create_key": False}).status_code == 200
                assert admin.get("/user/info", params={"user_id": name}).status_code == 200
                assert place.ask(key).status_code == 200
                done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) > 10
    assert place.watch.engine == POOL
    assert POOL < place.watch.most <= AT_MOST
    assert f"database connections: {AT_MOST} at most" in place.gateway.log_path.read_text()


def test_an_exhausted_pool_is_a_database_that_is_busy(place: Place) -> None:
    """All connections wait for a lock; whoever gets none is told 503, never that the key is wrong."""
    table = f'{sql.Identifier(SCHEMA).as_string(None)}."LiteLLM_VerificationToken"'
    with psycopg.connect(place.server.url("gate")) as blocker, ThreadPoolExecutor(10) as pool:
        blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        asked = [pool.submit(place.ask, f"sk-{secrets.token_hex(8)}") for _ in range(10)]
        assert [answer.result().status_code for answer in asked] == [503] * 10
        blocker.rollback()
    wait_for(place.recovered, 30, "keys are looked up again", 0.2)
    assert place.watch.most <= AT_MOST


def test_a_rotated_password_is_taken_from_the_file(place: Place) -> None:
    key = place.gateway.new_key()
    place.set_password(PASSWORD)
    place.secret.write_text(PASSWORD)
    place.throw_out()
    wait_for(place.recovered, 20, "new connections are made with the new password", 0.2)
    assert place.ask(key).status_code == 200
    assert place.gateway.key_info(key)["key_name"]


def test_a_command_takes_the_password_from_the_file(place: Place) -> None:
    done = pointsman("db", "status", env={"DATABASE_URL": place.url, "DATABASE_PASSWORD_FILE": str(place.secret)})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("ALTER ROLE app PASSWORD 'another'", None),
        ("REVOKE CONNECT ON DATABASE gate FROM app", "GRANT CONNECT ON DATABASE gate TO app"),
        pytest.param("ALTER ROLE app NOLOGIN", "ALTER ROLE app LOGIN"),
        pytest.param(
            "ALTER DATABASE gate RENAME TO elsewhere",
            "ALTER DATABASE elsewhere RENAME TO gate",
        ),
        pytest.param(
            "ALTER DATABASE gate ALLOW_CONNECTIONS false",
            "ALTER DATABASE gate ALLOW_CONNECTIONS true",
        ),
    ],
)
def test_a_refusing_server_is_a_database_that_is_away(broken: str, mended: str | None, place: Place) -> None:
    """503, not the 401 that sends an operator looking for keys; and it goes on by itself afterwards."""
    if "RENAME" in broken:  # wants nobody in it
        place.server.execute("ALTER DATABASE gate ALLOW_CONNECTIONS false")
        place.throw_out()
        wait_for(lambda: place.server.sessions(OURS) == 0, 10, "nobody is connected")
        place.server.execute("ALTER DATABASE gate ALLOW_CONNECTIONS true; ALTER DATABASE gate RENAME TO elsewhere")
    else:
        place.server.execute(broken)
    place.throw_out()
    try:
        answer = place.ask(f"sk-{secrets.token_hex(8)}")
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "no_db_connection")
        assert "database" in answer.json()["error"]["message"]
    finally:
        if mended is None:
            place.set_password(place.secret.read_text())
        else:
            place.server.execute(mended)
    wait_for(place.recovered, 30, "keys are looked up again", 0.2)


@pytest.mark.parametrize(
    ("change", "words", "mend"),
    [
        (("app:right", "app:wrong"), "password authentication failed", "user and password"),
        (("/gate", "/nowhere"), 'database "nowhere" does not exist', "create the database"),
        pytest.param(
            ("app:right@", "stranger:right@"),
            "password authentication failed",
            "user and password",
        ),
        pytest.param(
            ("app:right@", "guest:right@"),
            "permission denied for database",
            "GRANT CONNECT",
        ),
        pytest.param(("?", "?sslmode=require"), "does not support SSL", "sslmode=disable"),
        pytest.param(
            ("127.0.0.1:", "no.such.host.invalid:"),
            "no.such.host.invalid",
            "host and port",
        ),
    ],
)
def test_at_the_start_it_says_what_to_do(change: tuple[str, str], words: str, mend: str, place: Place) -> None:
    for role in ("app", "guest"):
        place.server.execute(f"DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    place.server.execute("ALTER ROLE guest PASSWORD 'right'")
    place.set_password("right")
    try:
        url = f"postgresql://app:right@127.0.0.1:{place.server.port}/gate?".replace(*change)
        done = pointsman("db", "status", env={"DATABASE_URL": url})
    finally:
        place.set_password(place.secret.read_text())
    assert done.returncode != 0
    for part in ("E4500", words, mend):
        assert part in done.stderr
    assert "right@" not in done.stderr


def test_a_gateway_that_signs_its_passwords(tmp_path: Path) -> None:
    """The server takes the token that the supervisor signs; LiteLLM in the workers hears nothing of tokens."""
    server = PgCluster(tmp_path / "pg").start()
    server.execute("CREATE ROLE app LOGIN", "CREATE DATABASE gate OWNER app")
    runs = tmp_path / "t"
    runs.mkdir()
    env = {"IAM_TOKEN_DB_AUTH": "True", "DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": str(server.port), "DATABASE_USER": "app"}
    env |= {"DATABASE_NAME": "gate", "DATABASE_SSLMODE": "disable", "AWS_REGION": "eu-central-1", "TMPDIR": str(runs)}
    gateway = Gateway(CONFIG, tmp_path / "gateway", None, env=env)
    try:
        gateway.spawn()
        file = wait_for(lambda: next(runs.glob("*/pgpass"), None), 30, "the first token is signed")
        ready = threading.Event()

        def follow() -> str:
            """What a real server does by itself: take whatever was signed last, which at the start may be anew each second."""
            token = ""
            while True:
                now = file.read_text().strip().replace("\\:", "\0").split(":")[4].replace("\0", ":")
                if now != token:
                    server.execute(sql.SQL("ALTER ROLE app PASSWORD {}").format(now).as_string(None))
                    token = now
                if ready.wait(0.05):
                    return token

        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(follow)
            try:
                gateway.wait_ready()
            finally:
                ready.set()
        token = following.result()
        assert token.startswith(f"127.0.0.1:{server.port}/?Action=connect&DBUser=app&")
        assert gateway.key_info(gateway.new_key())["key_name"]
        for pid in marked(gateway.mark):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert (b"IAM_TOKEN_DB_AUTH" in environment) == (pid == gateway.pid)
            assert token.encode() not in environment
            assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        gateway.stop()
    finally:
        gateway.kill()
        server.stop()
    assert token not in gateway.log_path.read_text()
    assert not list(runs.glob("*/pgpass"))
