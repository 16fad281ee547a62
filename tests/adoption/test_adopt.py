"""Databases of older LiteLLMs, adopted or refused: real migrations, real ledgers, rows as LiteLLM writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pointsman.migrations.adoption import Keys, Options, Outcome, Report, adopt
from pointsman.migrations.adoption.census import dropped_by, renamed_by, rewritten_by
from pointsman.migrations.adoption.witness import Witness
from pointsman.migrations.backup import restore
from pointsman.migrations.runner import status
from pointsman.migrations.sources import litellm_migrations
from support.gateway import pointsman
from support.old_litellm import KEY, SALT, Filled, count, dump, encrypt, execute, fill, litellm_schema, rows
from support.postgres import PostgresServer

Make = Callable[[], str]
HASH = hashlib.sha256(KEY.encode()).hexdigest()


class Adopter:
    """Adopts databases of the session's server, and rehearses there too."""

    def __init__(self, server: PostgresServer, witness: Witness, folder: Path) -> None:
        self._server = server
        self._witness = witness
        self.folder = folder
        self.lines: list[str] = []

    def __call__(self, url: str, keys: Keys | None = None, *, backup: str | None = "before.dump", **options: Any) -> Report:
        chosen = Options(
            keys=Keys(salt=SALT) if keys is None else keys,
            scratch=self._scratch,
            backup=self.folder / backup if backup else None,
            witness=lambda: nullcontext(self._witness),
            **options,
        )
        return adopt(url, chosen, self.lines.append)

    @contextmanager
    def _scratch(self) -> Iterator[str]:
        yield self._server.url("postgres")


@pytest.fixture(scope="module")
def witness() -> Iterator[Witness]:
    """One process with LiteLLM for all: loading it takes seconds."""
    with Witness() as process:
        yield process


@pytest.fixture
def adopter(postgres_server: PostgresServer, witness: Witness, tmp_path: Path) -> Adopter:
    """See there."""
    return Adopter(postgres_server, witness, tmp_path)


def failed(report: Report) -> str:
    """Why it was refused."""
    assert report.outcome is Outcome.REFUSED
    (text,) = report.found("failed")
    return text


def old(url: str, count: int, *, salt: str = SALT) -> Filled:
    """A database as of the first `count` migrations, in use."""
    litellm_schema(url, litellm_migrations()[:count])
    return fill(url, salt=salt)


def check_adopted(url: str, filled: Filled, report: Report) -> None:
    """Everything is there and nothing of it was told."""
    assert report.outcome is Outcome.ADOPTED, report.found("failed")
    assert status(url).current
    for table, number in filled.rows.items():
        assert count(url, table) == number
        assert report.facts["rows"][table] == number
    assert rows(url, 'SELECT token, spend FROM "LiteLLM_VerificationToken"') == [(HASH, 0.5)]
    told = "\n".join(step.text for step in report.steps) + repr(report.as_json())
    for secret in (*filled.secrets, "bearer-of-old", psycopg.conninfo.conninfo_to_dict(url)["password"]):
        assert str(secret) not in told


@pytest.mark.requirement("R-4.1")
@pytest.mark.slow("adoption")
def test_an_old_database_is_backed_up_migrated_and_proved(fresh_database: Make, adopter: Adopter) -> None:
    url = fresh_database()
    filled = old(url, 150)
    before = dump(url)
    report = adopter(url)
    check_adopted(url, filled, report)
    assert report.facts["secrets"] == {"opened": {"salt": 10}, "unreadable": 0, "plain": 0}
    assert {step.name for step in report.steps} == {"check", "key", "backup", "migrate", "prove"}
    # The backup is the database as it was.
    again = fresh_database()
    restore(again, adopter.folder / "before.dump", lambda _: None)
    assert dump(again) == before
    # A second run has nothing to do, and makes no second backup.
    second = adopter(url, backup="second.dump")
    assert second.outcome is Outcome.ADOPTED
    assert not (adopter.folder / "second.dump").exists()
    assert any("nothing to migrate" in step.text for step in second.steps)


@pytest.mark.slow("adoption")
@pytest.mark.parametrize("applied", [20, 100, 200, len(litellm_migrations())])
def test_whatever_part_of_the_migrations_was_applied(fresh_database: Make, adopter: Adopter, applied: int) -> None:
    url = fresh_database()
    filled = old(url, applied)
    before = dump(url)
    dry = adopter(url, dry_run=True)
    assert dry.outcome is Outcome.ADOPTED
    assert dump(url) == before
    assert list(adopter.folder.iterdir()) == []
    check_adopted(url, filled, adopter(url))


def test_history_as_it_really_is(fresh_database: Make, adopter: Adopter) -> None:
    """Rewritten, withdrawn, generated and late migrations, as nearly every database from before 2026 has them."""
    url = fresh_database()
    files = litellm_migrations()
    late = files[40]
    litellm_schema(
        url, [one if one.name != files[3].name else replace(one, sha256="0" * 64) for one in files[:60] if one != late]
    )
    withdrawn = replace(files[50], name="20251115120021_baseline_diff", text="SELECT 1", sha256="1" * 64)
    generated = replace(withdrawn, name="0_init")
    litellm_schema(url, [withdrawn, generated])
    filled = fill(url)
    with psycopg.connect(url, application_name="LiteLLM"):
        report = adopter(url)
    assert any(
        note.startswith("others are connected") and "LiteLLM from 127.0.0.1 (1)" in note for note in report.found("note")
    )
    check_adopted(url, filled, report)
    assert report.facts["history"]["late"] == [late.name]
    assert report.facts["history"]["rewritten"] == [files[3].name]
    assert report.facts["history"]["withdrawn"] == ["0_init", withdrawn.name]


def test_what_migrations_rename_or_drop_is_seen_in_their_text() -> None:
    files = litellm_migrations()
    assert ("LiteLLM_MCPServerTable", "spec_version") in dropped_by(files)
    assert {("LiteLLM_MCPServerTable", "alias"), ("LiteLLM_MCPServerTable", "server_name")} <= renamed_by(files)
    assert "LiteLLM_ShadowEvalJob" in rewritten_by(files)
    keys = {"LiteLLM_VerificationToken", "LiteLLM_CredentialsTable", "LiteLLM_ProxyModelTable"}
    assert not keys & rewritten_by(files), "migrations that rewrite keys or secrets want a look"
    assert not keys & {table for table, _ in dropped_by(files) | renamed_by(files)}


@pytest.mark.slow("adoption")
def test_a_schema_pushed_without_a_ledger(fresh_database: Make, adopter: Adopter) -> None:
    url = fresh_database()
    litellm_schema(url, ledger=False)
    filled = fill(url)
    report = adopter(url)
    check_adopted(url, filled, report)
    assert rows(url, "SELECT count(*), max(applied_steps_count) FROM _prisma_migrations") == [(len(litellm_migrations()), 0)]


def test_without_a_salt_key_litellm_took_its_master_key(fresh_database: Make, adopter: Adopter) -> None:
    url, master = fresh_database(), "sk-master-of-old"
    filled = old(url, len(litellm_migrations()), salt=master)
    # It was given a salt key only now: LiteLLM would read nothing any more.
    text = failed(adopter(url, Keys(salt="sk-a-later-salt-key", master=master), dry_run=True))
    assert "open with the master key, not with the salt key" in text
    assert "LiteLLM_CredentialsTable.credential_values of credential-1" in text
    # With the master key alone it is as it always was.
    report = adopter(url, Keys(master=master))
    check_adopted(url, filled, report)
    assert any("set LITELLM_SALT_KEY to it" in note for note in report.found("note"))


def meddle(url: str, body: str) -> None:
    """An event trigger: what no rehearsal on a copy of the schema can foresee."""
    execute(
        url,
        "DROP EVENT TRIGGER IF EXISTS meddler",
        f"CREATE OR REPLACE FUNCTION meddle() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        "CREATE EVENT TRIGGER meddler ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION meddle()",
    )


@pytest.mark.slow("adoption")
def test_a_migration_that_fails_and_one_that_changes_rows(fresh_database: Make, adopter: Adopter) -> None:
    url = fresh_database()
    old(url, 150)
    execute(url, """UPDATE "LiteLLM_AgentsTable" SET agent_card_params = '"no card"'""")
    meddle(url, "RAISE EXCEPTION 'not on my watch';")
    report = adopter(url)
    assert report.outcome is Outcome.MIGRATION_FAILED
    (text,) = report.found("failed")
    assert "not on my watch" in text
    assert f"the backup is {adopter.folder / 'before.dump'}" in text
    # The next run goes on from there, and sees what it did not do itself.
    meddle(url, 'UPDATE "LiteLLM_UserTable" SET spend = spend + 1;')
    report = adopter(url, backup=None)
    assert report.outcome is Outcome.NOT_PROVED
    assert report.found("failed") == ["rows of LiteLLM_UserTable are not what they were"]
    assert report.found("skipped") == ["none is made, as you asked"]
    execute(url, "DROP EVENT TRIGGER meddler")
    # What LiteLLM could not read before is told, and is no reason to stop.
    report = adopter(url)
    assert report.outcome is Outcome.ADOPTED
    assert any(note.startswith("LiteLLM cannot read LiteLLM_AgentsTable agent-1") for note in report.found("note"))


def test_the_command(fresh_database: Make, tmp_path: Path) -> None:
    url = fresh_database()
    execute(url, "CREATE TABLE somebody_elses (x int)")
    refused = pointsman("db", "adopt", "--json", env={"DATABASE_URL": url}, cwd=tmp_path)
    assert refused.returncode == 1
    report = json.loads(refused.stdout)
    assert (report["outcome"], report["exit_status"], report["steps"][-1]["state"]) == ("refused", 1, "failed")
    assert "failed  check    there are no tables of LiteLLM's here" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    assert pointsman("db", "adopt", "--no-backup", "--backup", "x", env={"DATABASE_URL": url}, cwd=tmp_path).returncode == 2
    missing = pointsman("db", "adopt", "--salt-key-file", "nowhere", env={"DATABASE_URL": url}, cwd=tmp_path)
    assert (missing.returncode, "E4204" in missing.stderr) == (1, True)


class TestRefused:
    """What is not understood is refused, and the database stays as it is, byte for byte."""

    def refuse(self, adopter: Adopter, url: str, keys: Keys | None = None, **options: Any) -> str:
        before = dump(url)
        text = failed(adopter(url, keys, **options))
        assert dump(url) == before
        assert list(adopter.folder.iterdir()) == []
        return text

    def test_wrong_salt_key(self, fresh_database: Make, adopter: Adopter) -> None:
        url = fresh_database()
        old(url, 200)
        text = self.refuse(adopter, url, Keys(salt="sk-another", master="sk-a-master-key"))
        assert "opens none of 10 stored secrets" in text
        assert "LiteLLM_ProxyModelTable.litellm_params of model-1" in text
        assert "this is not the key" in text
        assert "sk-another" not in text
        assert "no key was given" in self.refuse(adopter, url, Keys())
        # One row from the time of another key: LiteLLM could not read it either, and it can be left behind.
        value = json.dumps({"OLD_SETTING": encrypt("lost", "sk-earlier")})
        with psycopg.connect(url) as connection:
            query = """UPDATE "LiteLLM_Config" SET param_value = %s WHERE param_name = 'environment_variables'"""
            connection.execute(query, [value])
        assert "opens 9 of 10" in self.refuse(adopter, url)
        assert adopter(url, accept_unreadable=True).outcome is Outcome.ADOPTED

    def test_ledgers(self, fresh_database: Make, adopter: Adopter) -> None:
        url = fresh_database()
        files = litellm_migrations()
        old(url, 20)
        litellm_schema(url, [replace(files[0], name="20250601000000_by_somebody_else", text="SELECT 1")])
        text = self.refuse(adopter, url)
        assert "not LiteLLM's: 20250601000000_by_somebody_else" in text
        assert "--accept-migration" in text
        litellm_schema(url, [replace(files[0], name="20991231000000_of_the_future", text="SELECT 1")])
        assert "a newer LiteLLM was here: it applied 20991231000000_of_the_future" in self.refuse(adopter, url)
        execute(
            url,
            "INSERT INTO _prisma_migrations (id, checksum, migration_name, logs) "  # noqa: S608 - ours
            f"VALUES ('x', 'y', '{files[20].name}', 'relation exists')",
        )
        assert f"began the migration {files[20].name} and did not finish it (relation exists)" in self.refuse(adopter, url)

    def test_a_ledger_that_claims_too_much(self, fresh_database: Make, adopter: Adopter) -> None:
        """LiteLLM notes migrations as applied that it did not run; the rehearsal sees what is lacking."""
        url = fresh_database()
        litellm_schema(url, litellm_migrations())
        execute(url, 'ALTER TABLE "LiteLLM_VerificationToken" DROP COLUMN "budget_limits"')
        text = self.refuse(adopter, url)
        assert "LiteLLM_VerificationToken.budget_limits is missing, should be jsonb" in text

    def test_another_database(self, fresh_database: Make, adopter: Adopter) -> None:
        url = fresh_database()
        execute(url, "CREATE TABLE somebody_elses (x int)")
        assert "no tables of LiteLLM's" in self.refuse(adopter, url)

    def test_a_role_that_may_only_read(self, fresh_database: Make, adopter: Adopter, postgres_server: PostgresServer) -> None:
        url = fresh_database()
        old(url, 20)
        execute(
            url,
            "DROP ROLE IF EXISTS reader",
            "CREATE ROLE reader LOGIN PASSWORD 'reader'",
            "GRANT pg_read_all_data TO reader",
        )
        before = dump(url)
        host = url.rpartition("@")[2]
        text = failed(adopter(f"postgresql://reader:reader@{host}"))
        assert "may not make tables in LiteLLM's schema" in text
        assert "tables belong to pointsman" in text
        assert dump(url) == before

    def test_no_room_or_a_file_in_the_way(self, fresh_database: Make, adopter: Adopter) -> None:
        url = fresh_database()
        litellm_schema(url, litellm_migrations()[:20])
        assert "is not there" in self.refuse(adopter, url, backup="nowhere/before.dump")
