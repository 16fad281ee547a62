"""PostgreSQL 13 to 18, and Debian's 15: migrations from nothing, engine, decisions, a gateway. The servers come by npm."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from support.gateway import Gateway
from support.marks import ROOT
from support.pg_versions import install_servers, server_major
from support.postgres import UNSAFE_AND_FAST, PostgresServer
from support.processes import wait_for
from support.topology import priced, routed_config
from support.upstreams import Upstreams

VERSIONS = (13, 14, 15, 16, 17, 18)
DEBIAN = Path("/usr/lib/postgresql/15/bin")
SUITE = (
    "tests/postgres/test_fixtures.py",
    *(f"tests/engine/test_{name}.py" for name in ("crud", "values", "transactions", "errors", "litellm", "conformance_raw")),
    *(f"tests/migrations/test_{name}.py" for name in ("runner", "own_schema", "statements")),
    *(f"tests/decisions/test_{name}.py" for name in ("maintenance", "store", "upkeep")),
)
"""What meets a server; the whole of tests/engine would take minutes a version."""
SUITE_SECONDS = 240.0
"""What one version may take on a busy machine."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Major version -> its binaries."""
    return install_servers(tmp_path_factory.mktemp("servers") / "npm")


def run_suite(binaries: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--postgres", str(binaries), *SUITE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SUITE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) > 100, "the tests of the engine, the migrations and the decisions were found"
    assert "skipped" not in done.stdout.splitlines()[-1]
    print(f"\nPostgres {server_major(binaries)}: {passed[1]} tests in {time.monotonic() - started:.0f} s")


@pytest.mark.slow("postgresversions")
@pytest.mark.timeout(300)
@pytest.mark.requirement("R-17")
@pytest.mark.parametrize("version", VERSIONS)
def test_engine_migrations_and_decisions_work_on(servers: dict[int, Path], version: int) -> None:
    assert server_major(servers[version]) == version
    # Where Debian's 15 is installed it stands for 15: one build more, in the time of one less.
    run_suite(DEBIAN if version == 15 and DEBIAN.is_dir() else servers[version])


@pytest.fixture
def server(servers: dict[int, Path], tmp_path: Path) -> Iterator[Callable[[int], PostgresServer]]:
    """Factory of servers of a version."""
    made: list[PostgresServer] = []

    def make(version: int) -> PostgresServer:
        instance = PostgresServer(tmp_path / f"postgres-{version}", UNSAFE_AND_FAST, servers[version])
        made.append(instance)
        instance.start()
        return instance

    yield make
    for instance in made:
        instance.close()


@pytest.mark.slow("postgresversions")
@pytest.mark.timeout(120)
@pytest.mark.requirement("R-17")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_gateway_starts_on_an_empty_database_of(
    server: Callable[[int], PostgresServer], upstreams: Upstreams, tmp_path: Path, version: int
) -> None:
    """It migrates, makes a key, serves a chat, counts its cost, keeps the decision, and finds the key after a restart."""
    url = server(version).fresh_database()
    gateway = Gateway(routed_config([priced(upstreams)], {}, {}), tmp_path / "gateway", url, workers=1).start()
    try:
        key = gateway.new_key(max_budget=100)
        answer = gateway.openai(key).chat.completions.with_raw_response.create(
            model="priced", messages=[{"role": "user", "content": "two words"}]
        )
        assert answer.parse().choices[0].message.content == "served by priced"
        decision = answer.headers["x-pointsman-decision-id"]
        spent = wait_for(lambda: gateway.key_info(key)["spend"], 30, "the request was paid for")
        with psycopg.connect(url, autocommit=True) as database:
            assert database.info.server_version // 10_000 == version
            for table in ("decisions", "attempts", "outcomes"):
                query = f"SELECT count(*) FROM pointsman_{table} WHERE decision_id = %s"  # noqa: S608 - our own names

                def kept(query: str = query) -> bool:
                    row = database.execute(query, (decision,)).fetchone()  # type: ignore[arg-type]
                    return row == (1,)

                wait_for(kept, 15, f"the row in pointsman_{table}")

            def logged() -> bool:
                row = database.execute('SELECT count(*), sum(spend) FROM "LiteLLM_SpendLogs" WHERE spend > 0').fetchone()
                return row == (1, pytest.approx(spent))

            wait_for(logged, 30, "the request is in LiteLLM's log")
        gateway.restart()
        again = gateway.openai(key).chat.completions.create(model="priced", messages=[{"role": "user", "content": "again"}])
        assert again.choices[0].message.content == "served by priced"
    finally:
        gateway.kill()
