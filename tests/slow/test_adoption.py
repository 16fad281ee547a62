"""An installation of stock LiteLLM becomes a Pointsman, and could go back; and a gateway's backup is drilled.

Slow: stock LiteLLM takes its time to start, twice, and so do gateways.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from pointsman.migrations.adoption import Keys, Options, Outcome, adopt
from pointsman.migrations.adoption.rehearsal import Scratch
from pointsman.migrations.adoption.witness import Witness
from pointsman.migrations.backup import backup, read_manifest, restore
from pointsman.migrations.sources import Migration, litellm_migrations
from support.gateway import Gateway, pointsman
from support.old_litellm import CREDENTIAL, KEY, MODEL_KEY, SALT, count, fill, litellm_schema, rows
from support.pg_versions import ForeignPostgres, install_servers
from support.postgres import UNSAFE_AND_FAST, PostgresServer
from support.processes import wait_for
from support.stock import StockLiteLLM
from support.topology import routed_config, single
from support.upstreams import Upstreams

pytestmark = [pytest.mark.slow("adoption"), pytest.mark.timeout(600)]

Make = Callable[[], str]
KEYS = {"LITELLM_MASTER_KEY": "sk-master-of-the-installation", "LITELLM_SALT_KEY": "sk-salt-of-the-installation"}
STORED = "sk-provider-key-in-the-database"
HELLO = [{"role": "user", "content": "hello there"}]
CARD: dict[str, Any] = {
    "protocolVersion": "0.3.0",
    "name": "old-agent",
    "description": "registered in stock LiteLLM",
    "url": "http://127.0.0.1:9/",
    "version": "1.0.0",
    "capabilities": {"streaming": True},
    "defaultInputModes": ["text"],
    "defaultOutputModes": ["text"],
    "skills": [{"id": "s", "name": "s", "description": "s", "tags": ["s"]}],
}


@pytest.fixture(scope="module")
def witness() -> Iterator[Witness]:
    with Witness() as process:
        yield process


def scratch_on(server: PostgresServer) -> Scratch:
    """Rehearse on the session's server."""

    @contextmanager
    def scratch() -> Iterator[str]:
        yield server.url("postgres")

    return scratch


def config(upstreams: Upstreams) -> dict[str, Any]:
    return routed_config([single(upstreams, "plain", "openai/small")], {}, {})


def stock_config(upstreams: Upstreams) -> dict[str, Any]:
    return {name: value for name, value in config(upstreams).items() if name != "pointsman"}


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code in (200, 201), f"{answer.request.url}: {answer.status_code} {answer.text[:600]}"
    return answer.json()


def furnish(admin: httpx.Client, upstreams: Upstreams) -> dict[str, str]:
    """What an operator makes by API; ids and the key."""
    made = {"key": ok(admin.post("/key/generate", json={"key_alias": "of-stock", "max_budget": 50}))["key"]}
    ok(
        admin.post(
            "/credentials",
            json={
                "credential_name": "stored",
                "credential_values": {"api_key": STORED, "api_base": upstreams.url("stored")},
                "credential_info": {"custom_llm_provider": "openai"},
            },
        )
    )
    for name, params in {
        "with-credential": {"model": "openai/small", "litellm_credential_name": "stored"},
        "with-key": {"model": "openai/small", "api_key": STORED + "-2", "api_base": upstreams.url("own")},
    }.items():
        ok(admin.post("/model/new", json={"model_name": name, "litellm_params": params, "model_info": {}}))
    agent = {"agent_name": "old-agent", "agent_card_params": CARD, "litellm_params": {}}
    made["agent"] = ok(admin.post("/v1/agents", json=agent))["agent_id"]
    server = {"alias": "old_tools", "url": "http://127.0.0.1:9/mcp", "transport": "http", "auth_type": "bearer_token"}
    server_answer = ok(admin.post("/v1/mcp/server", json={**server, "credentials": {"auth_value": "bearer-of-stock"}}))
    made["server"] = server_answer["server_id"]
    return made


def chat(client: httpx.Client, key: str, model: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return client.post("/v1/chat/completions", json={"model": model, "messages": HELLO}, headers=headers).status_code


def serves(client: httpx.Client, made: Mapping[str, str], upstreams: Upstreams) -> None:
    """The old key calls, the provider gets the decrypted keys, agent and server are there."""
    for model, upstream, sent in (
        ("plain", "plain", "sk-upstream-secret"),
        ("with-credential", "stored", STORED),
        ("with-key", "own", STORED + "-2"),
    ):
        before = upstreams.count(upstream)
        # Models of the database are read in the background, some seconds after the start.
        wait_for(lambda model=model: chat(client, made["key"], model) == 200, 60, f"{model} answers", interval=0.5)
        request = upstreams.requests(upstream, since=before)[-1]
        assert request["headers"]["authorization"] == f"Bearer {sent}"
    assert made["agent"] in {agent["agent_id"] for agent in ok(client.get("/v1/agents"))}
    card = ok(client.get(f"/a2a/{made['agent']}/.well-known/agent-card.json"))
    assert (card["name"], card["description"]) == (CARD["name"], CARD["description"])
    assert made["server"] in {server["server_id"] for server in ok(client.get("/v1/mcp/server"))}


@pytest.mark.requirement("R-4.1")
def test_stock_litellm_becomes_a_pointsman_and_can_go_back(fresh_database: Make, upstreams: Upstreams, tmp_path: Path) -> None:
    url = fresh_database()
    litellm_schema(url)
    with StockLiteLLM(stock_config(upstreams), tmp_path / "stock", url, KEYS) as stock:
        admin = stock.http(KEYS["LITELLM_MASTER_KEY"])
        made = furnish(admin, upstreams)
        serves(admin, made, upstreams)
        # What stock LiteLLM stored is encrypted, and is what `adopt` has to open.
        ((stored,),) = rows(url, 'SELECT credential_values::text FROM "LiteLLM_CredentialsTable"')
        assert STORED not in stored

    env = {"DATABASE_URL": url, **KEYS}
    wrong = pointsman("db", "adopt", "--dry-run", env={**env, "LITELLM_SALT_KEY": "sk-not-it"}, cwd=tmp_path, timeout=180)
    assert wrong.returncode == 1, wrong.stderr
    assert "opens none of" in wrong.stderr
    adopted = pointsman("db", "adopt", "--backup", tmp_path / "stock.dump", "--json", env=env, cwd=tmp_path, timeout=180)
    assert adopted.returncode == 0, adopted.stderr
    report = json.loads(adopted.stdout)
    assert report["outcome"] == "adopted"
    assert report["secrets"]["opened"]["salt"] >= 6
    assert (report["rows"]["LiteLLM_VerificationToken"], report["rows"]["LiteLLM_AgentsTable"]) == (1, 1)
    for secret in (*KEYS.values(), STORED, made["key"], "bearer-of-stock"):
        assert secret not in adopted.stdout + adopted.stderr

    gateway = Gateway(config(upstreams), tmp_path / "gateway", url, env=KEYS, workers=1)
    gateway.master_key = KEYS["LITELLM_MASTER_KEY"]
    gateway.start()
    try:
        serves(gateway.admin, made, upstreams)
        wait_for(lambda: decisions(url) > 0, 20, "decisions are stored", interval=0.2)
        assert gateway.key_info(made["key"])["key_alias"] == "of-stock"
    finally:
        gateway.stop()

    ours = decisions(url)
    with StockLiteLLM(stock_config(upstreams), tmp_path / "stock-again", url, KEYS) as stock:
        serves(stock.http(KEYS["LITELLM_MASTER_KEY"]), made, upstreams)
    assert decisions(url) == ours
    status = pointsman("db", "status", env={"DATABASE_URL": url})
    assert status.returncode == 0, status.stdout


def decisions(url: str) -> int:
    """Rows of our decisions."""
    return int(rows(url, "SELECT count(*) FROM pointsman_decisions")[0][0])


@pytest.mark.requirement("R-4.1", "R-17")
def test_the_backup_drill(
    new_database: Make, fresh_database: Make, postgres_server: PostgresServer, upstreams: Upstreams, tmp_path: Path
) -> None:
    """Back up under traffic, lose everything, restore elsewhere, serve with the same key; counts are the snapshot's."""
    url, file = new_database(), tmp_path / "drill.dump"
    gateway = Gateway(config(upstreams), tmp_path / "first", url, env=KEYS, workers=1)
    gateway.master_key = KEYS["LITELLM_MASTER_KEY"]
    gateway.start()
    key = gateway.new_key(key_alias="drilled", max_budget=1000)
    stop, failures = threading.Event(), []

    def traffic() -> None:
        with gateway.http(key) as client:
            while not stop.is_set():
                status = client.post("/v1/chat/completions", json={"model": "plain", "messages": HELLO}).status_code
                if status != 200:
                    failures.append(status)

    threads = [threading.Thread(target=traffic) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: count(url, "LiteLLM_SpendLogs") > 20 and decisions(url) > 20, 60, "rows are written", interval=0.2)
        made = pointsman("db", "backup", "--out", file, env={"DATABASE_URL": url}, timeout=120)
        at_backup = count(url, "LiteLLM_SpendLogs")
        wait_for(lambda: count(url, "LiteLLM_SpendLogs") > at_backup, 30, "it goes on after the backup", interval=0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert made.returncode == 0, made.stderr
    assert failures == [], "requests failed while the backup was made"
    gateway.kill()
    postgres_server.drop_database(url)

    manifest = read_manifest(file)
    assert manifest is not None
    assert 20 < manifest.rows["public.LiteLLM_SpendLogs"] <= at_backup
    target = fresh_database()
    put = pointsman("db", "restore", file, "--to", target, "--yes", timeout=120)
    assert put.returncode == 0, put.stderr
    assert count(target, "LiteLLM_SpendLogs") == manifest.rows["public.LiteLLM_SpendLogs"]
    snapshot = {name: number for name, number in manifest.rows.items() if "pointsman_decisions" in name}
    assert decisions(target) == sum(snapshot.values()) > 20

    second = Gateway(config(upstreams), tmp_path / "second", target, env=KEYS, workers=1)
    second.master_key = KEYS["LITELLM_MASTER_KEY"]
    second.start()
    try:
        spent = second.key_info(key)["spend"]
        assert chat(second.admin, key, "plain") == 200
        wait_for(lambda: second.key_info(key)["spend"] >= spent, 20, "spend goes on from there", interval=0.2)
        wait_for(lambda: decisions(target) > sum(snapshot.values()), 20, "decisions are stored again", interval=0.2)
    finally:
        second.stop()


def test_an_old_version_is_adopted_and_serves(
    fresh_database: Make, postgres_server: PostgresServer, witness: Witness, upstreams: Upstreams, tmp_path: Path
) -> None:
    """As of 2025, from before there were agents: the key calls, the provider gets its stored keys."""
    url = fresh_database()
    litellm_schema(url, litellm_migrations()[:60])
    fill(url, upstream=upstreams.url("of-old"))
    options = Options(
        Keys(salt=SALT), scratch_on(postgres_server), tmp_path / "before.dump", witness=lambda: nullcontext(witness)
    )
    assert adopt(url, options, print).outcome is Outcome.ADOPTED
    gateway = Gateway(config(upstreams), tmp_path / "gateway", url, env={"LITELLM_SALT_KEY": SALT}, workers=1)
    gateway.start()
    try:
        for model, sent in (("old-model", MODEL_KEY), ("old-model-with-credential", CREDENTIAL)):
            before = upstreams.count("of-old")
            wait_for(lambda model=model: chat(gateway.admin, KEY, model) == 200, 60, f"{model} answers", interval=0.5)
            assert upstreams.requests("of-old", since=before)[-1]["headers"]["authorization"] == f"Bearer {sent}"
        assert gateway.key_info(KEY)["key_alias"] == "old"
        assert {server["server_id"] for server in ok(gateway.admin.get("/v1/mcp/server"))} == {"server-1"}
    finally:
        gateway.stop()


@pytest.mark.requirement("R-17")
def test_the_oldest_and_other_versions_of_postgres(
    fresh_database: Make, postgres_server: PostgresServer, witness: Witness, tmp_path: Path
) -> None:
    """Adopted on 13 and 16; backed up there by the newest programs, restored there and on the newest server."""
    servers = install_servers(tmp_path / "servers")
    for major in (13, 16):
        server = PostgresServer(tmp_path / f"pg{major}", UNSAFE_AND_FAST)
        server.embedded = ForeignPostgres(servers[major], tmp_path / f"pg{major}", UNSAFE_AND_FAST)  # type: ignore[assignment]
        server.start()
        try:
            url, file = server.fresh_database("old"), tmp_path / f"of-{major}.dump"
            litellm_schema(url, litellm_migrations()[:100])
            filled = fill(url)
            scratch = scratch_on(postgres_server)
            options = Options(Keys(salt=SALT), scratch, tmp_path / f"before-{major}.dump", witness=lambda: nullcontext(witness))
            assert adopt(url, options, print).outcome is Outcome.ADOPTED
            made = backup(url, file, print)
            assert made.manifest.server_version // 10_000 == major
            for target in (server.fresh_database("again"), fresh_database()):
                assert restore(target, file, print).rows == made.manifest.rows
                assert {name: count(target, name) for name in filled.rows} == filled.rows
                assert pointsman("db", "status", env={"DATABASE_URL": target}).returncode == 0
        finally:
            server.close()


OLD_RELEASES = ("0.2.0", "0.2.20", "0.3.0", "0.4.15", "0.4.45", "0.4.60", "0.4.100")
"""Of litellm-proxy-extras: rewritten files, withdrawn ones, files that came late; the oldest wheel first."""


@pytest.mark.parametrize("release", OLD_RELEASES)
def test_the_schema_of_real_old_releases(
    fresh_database: Make, postgres_server: PostgresServer, witness: Witness, tmp_path: Path, release: str
) -> None:
    """Migrations as the release had them, from the package registry, not cut from today's."""
    migrations = released(release, tmp_path)
    assert len(migrations) > 10
    url = fresh_database()
    litellm_schema(url, migrations)
    filled = fill(url)

    options = Options(
        Keys(salt=SALT), scratch_on(postgres_server), tmp_path / "before.dump", witness=lambda: nullcontext(witness)
    )
    lines: list[str] = []
    report = adopt(url, options, lines.append)
    print("\n".join(lines))
    assert report.outcome is Outcome.ADOPTED, report.found("failed")
    assert {name: count(url, name) for name in filled.rows} == filled.rows


def released(release: str, folder: Path) -> list[Migration]:
    """Migrations of a release of litellm-proxy-extras, downloaded by pip."""
    requirement = f"litellm-proxy-extras=={release}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        pytest.fail(f"{requirement} cannot be downloaded: {done.stderr[-400:]}")
    (archive,) = folder.glob("litellm_proxy_extras-*")
    pattern = re.compile(r"/migrations/([^/]+)/migration\.sql$")
    with zipfile.ZipFile(archive) as wheel:
        found = {match[1]: wheel.read(name) for name in wheel.namelist() if (match := pattern.search(name))}
    for name, text in found.items():
        (folder / "sql" / name).mkdir(parents=True)
        (folder / "sql" / name / "migration.sql").write_bytes(text)
    return [Migration.read(name, folder / "sql" / name / "migration.sql") for name in sorted(found)]
