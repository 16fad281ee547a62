"""Two versions of the gateway on one database: the schema goes forward under the feet of the older one, and nobody notices."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from pointsman.migrations.install.layout import package_dir
from pointsman.migrations.preview import preview
from pointsman.migrations.runner import migrate, status
from pointsman.migrations.sources import litellm_migrations, our_migrations
from support.gateway import Gateway
from support.postgres import OWN_FIRST
from support.processes import wait_for
from support.topology import routed_config, single
from support.upstreams import Upstreams

pytestmark = [pytest.mark.slow("migrations"), pytest.mark.timeout(300)]

Make = Callable[[], str]
LATER = {
    "2999_litellm_expands": """
        ALTER TABLE "LiteLLM_VerificationToken" ADD COLUMN IF NOT EXISTS "later" TEXT NOT NULL DEFAULT 'x';
        ALTER TABLE "LiteLLM_SpendLogs" ADD COLUMN IF NOT EXISTS "later" JSONB DEFAULT '{}';
        CREATE TABLE IF NOT EXISTS "LiteLLM_Later" ("id" TEXT PRIMARY KEY);
        """,
    "2999_litellm_index": 'CREATE INDEX CONCURRENTLY IF NOT EXISTS "later_idx" ON "LiteLLM_VerificationToken" ("later")',
}
OURS_LATER = {
    "9001_expand": """
        ALTER TABLE pointsman_decisions ADD COLUMN later text NOT NULL DEFAULT 'x';
        ALTER TABLE pointsman_rollout ADD COLUMN later text;
        CREATE TABLE pointsman_later (x int);
        """
}


def lens(name: str) -> bool:
    """Migrations of a part of LiteLLM that chats have nothing to do with: what an earlier LiteLLM may well be without."""
    return "lens" in name and name > "20261006"


def older_litellm(folder: Path) -> Path:
    """LiteLLM's package of migrations as an earlier version had it; for PYTHONPATH."""
    shutil.copytree(
        package_dir("litellm_proxy_extras"),
        folder / "litellm_proxy_extras",
        ignore=lambda _, names: [name for name in names if name == "__pycache__" or lens(name)],
    )
    return folder


def later(folder: Path) -> dict[str, Path]:
    """All files, and some of a version that is not there yet."""
    folders = {"litellm_folder": folder / "litellm", "our_folder": folder / "ours"}
    for one in litellm_migrations():
        shutil.copytree(one.path.parent, folders["litellm_folder"] / one.name)
    for name, text in LATER.items():
        (folders["litellm_folder"] / name).mkdir()
        (folders["litellm_folder"] / name / "migration.sql").write_text(text)
    folders["our_folder"].mkdir()
    for one in our_migrations():
        shutil.copy(one.path, folders["our_folder"])
    for name, text in OURS_LATER.items():
        (folders["our_folder"] / f"{name}.sql").write_text(text)
    return folders


class Traffic:
    """Chats with virtual keys, new keys among them, by several clients of one gateway; what failed, and what was decided."""

    def __init__(self, gateway: Gateway, keys: list[str]) -> None:
        self.gateway = gateway
        self.keys = keys
        self.failed: list[str] = []
        self.decisions: list[str] = []
        self.slowest = 0.0

    def chat(self, client: httpx.Client, key: str, text: str) -> None:
        body = {"model": "plain", "messages": [{"role": "user", "content": text}]}
        started = time.monotonic()
        answer = client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        self.slowest = max(self.slowest, time.monotonic() - started)
        if answer.status_code != 200:
            self.failed.append(f"{answer.status_code} {answer.text[:300]}")
        else:
            self.decisions.append(answer.headers["x-pointsman-decision-id"])

    def work(self, number: int, stop: threading.Event) -> None:
        with httpx.Client(base_url=self.gateway.url, trust_env=False, timeout=30) as client:
            while not stop.is_set():
                try:
                    key = self.keys[number % len(self.keys)]
                    if number % 3 == 0:  # an uncached key: the database is asked
                        admin = {"authorization": f"Bearer {self.gateway.master_key}"}
                        made = client.post("/key/generate", json={}, headers=admin)
                        made.raise_for_status()
                        key = made.json()["key"]
                    self.chat(client, key, f"hello {number}")
                except httpx.HTTPError as error:
                    self.failed.append(f"{type(error).__name__}: {error}")
                time.sleep(0.02)

    @contextmanager
    def running(self, clients: int = 4) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self.work, args=(number, stop), daemon=True) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)

    def goes_on(self, count: int = 30) -> None:
        there = len(self.decisions)
        wait_for(lambda: self.failed or len(self.decisions) > there + count, 60, f"{count} more requests")


@pytest.mark.requirement("R-16")
def test_versions_roll_on_one_database(upstreams: Upstreams, fresh_database: Make, tmp_path: Path) -> None:
    url = fresh_database()
    overlay = older_litellm(tmp_path / "older")
    migrate(url, lambda _: None, litellm_folder=overlay / "litellm_proxy_extras" / "migrations")
    behind = status(url).pending
    assert len(behind) >= 5
    config = routed_config([single(upstreams, "plain", "openai/small")], {}, {})
    folders = later(tmp_path / "later")
    found = preview(url, **folders)
    assert [step.migration.name for step in found.steps] == [*sorted([*behind, *LATER]), *OURS_LATER]
    before = Gateway(config, tmp_path / "n", url, env={"PYTHONPATH": str(overlay)}, arguments=["--no-migrate"])
    after = Gateway(config, tmp_path / "n1", url, arguments=["--no-migrate"])
    try:
        before.start()  # where the schema is its own, --no-migrate starts
        keys = [before.new_key() for _ in range(4)]
        old, new = Traffic(before, keys), Traffic(after, keys)
        with old.running():
            old.goes_on()
            started = time.monotonic()
            report = migrate(url, lambda _: None, **folders)
            migrated = time.monotonic() - started
            assert set(report.applied) == {*behind, *LATER, *OURS_LATER}
            old.goes_on()
            after.start()  # beside it; and what a still later version has applied does not keep it from starting
            with new.running():
                new.goes_on()
                old.goes_on()
            old.goes_on()
        assert old.failed == []
        assert new.failed == []
        print(
            f"{len(old.decisions)} + {len(new.decisions)} requests, migrated in {migrated:.1f} s, slowest {old.slowest:.2f} s"
        )
        # The older one can be started once more, too: a roll-out that is taken back.
        before.restart()
        with httpx.Client(base_url=before.url, trust_env=False, timeout=30) as client:
            old.chat(client, keys[0], "after all")
        assert old.failed == []
        wanted = {*old.decisions, *new.decisions}
        with psycopg.connect(url, autocommit=True, options=OWN_FIRST) as connection:

            def missing() -> set[str]:
                kept = "SELECT decision_id FROM pointsman_decisions JOIN pointsman_outcomes USING (decision_id)"
                return wanted - {name for (name,) in connection.execute(kept.encode())}

            wait_for(lambda: not missing(), 20, "every decision and outcome is in the database")

            def logged() -> int:
                row = connection.execute("SELECT count(*) FROM \"LiteLLM_SpendLogs\" WHERE status = 'success'").fetchone()
                return int(row[0]) if row else 0

            wait_for(lambda: logged() >= len(wanted), 30, f"{len(wanted)} entries in LiteLLM's log of requests")
    finally:
        before.stop()
        after.stop()
