"""The runner on a real Postgres: all of it, once, by one, or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pointsman.database_url import address, libpq_url, redact, unreachable
from pointsman.errors import DatabaseError
from pointsman.migrations.indexes import build_indexes, ledger_name
from pointsman.migrations.lock import KEYS
from pointsman.migrations.runner import migrate, status
from pointsman.migrations.sources import litellm_migrations, our_migrations
from support.postgres import OWN_FIRST

Make = Callable[[], str]


def silent(_: str) -> None:
    """No progress."""


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(libpq_url(url), options=OWN_FIRST) as connection:
        return connection.execute(query.encode()).fetchall()


def run(url: str, *statements: str) -> None:
    with psycopg.connect(libpq_url(url), autocommit=True, options=OWN_FIRST) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def schema(url: str) -> list[tuple[Any, ...]]:
    """Everything a migration could change, as rows."""
    return rows(
        url,
        "SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a "
        "JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname IN ('public', 'public_pointsman') AND a.attnum > 0 AND NOT a.attisdropped "
        "UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid), '' FROM pg_constraint "
        "UNION ALL SELECT 'type', typname, '', '' FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace "
        "WHERE n.nspname IN ('public', 'public_pointsman') ORDER BY 1, 2, 3, 4",
    )


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


def litellm_like(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "migration.sql").write_text(text)
    return folder


@contextmanager
def held(url: str, key: int) -> Iterator[int]:
    with psycopg.connect(url, autocommit=True, application_name="somebody else") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (key,))
        yield connection.info.backend_pid


@pytest.mark.requirement("R-4.1")
def test_everything_is_applied_and_noted_as_prisma_does(fresh_database: Make) -> None:
    url = fresh_database()
    lines: list[str] = []
    report = migrate(url, lines.append)
    files = litellm_migrations()
    assert report.applied == tuple(one.name for one in [*files, *our_migrations()])
    ledger = rows(
        url,
        "SELECT migration_name, checksum, applied_steps_count, logs, rolled_back_at, id, finished_at >= started_at "
        "FROM _prisma_migrations ORDER BY started_at",
    )
    assert [row[:2] for row in ledger] == [(one.name, one.sha256) for one in files]
    assert {row[2:5] for row in ledger} == {(1, None, None)}
    assert all(len(row[5]) == 36 and row[6] for row in ledger)
    assert any(" " in row[0] for row in ledger)  # one of LiteLLM's names has spaces
    assert rows(url, "SELECT name, sha256 FROM pointsman_migrations ORDER BY name") == [
        (one.name, one.sha256) for one in our_migrations()
    ]
    tables = set(rows(url, "SELECT schemaname, tablename FROM pg_tables WHERE schemaname LIKE 'public%'"))
    assert {("public", "LiteLLM_VerificationToken"), ("public_pointsman", "pointsman_decisions")} <= tables
    assert not {table for place, table in tables if place == "public" and table.startswith("pointsman")}
    assert rows(url, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []
    assert lines
    found = status(url)
    assert found.current
    assert found.litellm.applied == tuple(one.name for one in files)


def test_second_run_is_fast_and_does_nothing(new_database: Make) -> None:
    url = new_database()
    before = schema(url)
    started = time.monotonic()
    report = migrate(url, silent)
    assert time.monotonic() - started < 1.0
    assert (report.applied, report.adopted) == ((), ())
    assert report.already == len(litellm_migrations()) + len(our_migrations())
    assert "current" in str(report)
    assert schema(url) == before


class TestFailure:
    """A file that fails leaves the schema as it was before it, and says what and where."""

    @pytest.mark.parametrize(
        ("bad", "line", "culprit", "reason"),
        [
            ("CREATE TABLE b (x int);\n\n-- why\nCREATE TABLE good (x int);", 4, "CREATE TABLE good", "already exists"),
            ("CREATE TABLE b (x int);\nSELECT 1 / 0;\nSELECT 2;", 2, "SELECT 1 / 0", "division by zero"),
            ("ALTER TABLE good ADD y int;\nSELEKT 1;", 2, "SELEKT 1", "syntax error"),
            ("INSERT INTO good VALUES (1);\nALTER TABLE good ADD CHECK (x > 1);", 2, "ALTER TABLE good ADD CHECK", "violated"),
            ("CREATE TABLE b (x int);\nDO $$ BEGIN RAISE EXCEPTION 'by hand'; END $$;", 2, "DO $$ BEGIN", "by hand"),
        ],
    )
    def test_ours(self, new_database: Make, tmp_path: Path, bad: str, line: int, culprit: str, reason: str) -> None:
        url = new_database()
        folder = write(
            tmp_path / "sql", **{"8001_good": "CREATE TABLE good (x int);", "8002_bad": bad, "8003_later": "SELECT 1;"}
        )
        with pytest.raises(DatabaseError) as caught:
            migrate(url, silent, our_folder=folder)
        error = caught.value
        assert error.code == "E4501"
        assert "8002_bad" in error.message
        assert culprit in error.message
        assert reason in error.message
        assert error.where == f"{folder / '8002_bad.sql'}, line {line}"
        assert error.mend
        assert rows(url, "SELECT to_regclass('good') IS NOT NULL, to_regclass('b')") == [(True, None)]
        assert rows(url, "SELECT count(*) FROM good") == [(0,)]
        assert status(url, our_folder=folder).pointsman.pending == ("8002_bad", "8003_later")
        write(folder, **{"8002_bad": "CREATE TABLE b (x int);"})  # mended, and then it goes on
        assert migrate(url, silent, our_folder=folder).applied == ("8002_bad", "8003_later")

    def test_litellms(self, fresh_database: Make, tmp_path: Path) -> None:
        url = fresh_database()
        theirs = litellm_like(
            tmp_path / "theirs", **{"1_a": "CREATE TABLE a (x int);", "2_b": "CREATE TABLE b (x int); DROP TABLE c;"}
        )
        with pytest.raises(DatabaseError, match="2_b"):
            migrate(url, silent, litellm_folder=theirs)
        assert status(url, litellm_folder=theirs).litellm.applied == ("1_a",)
        # No failed row either: the official tool would refuse to go on.
        assert rows(url, "SELECT migration_name FROM _prisma_migrations") == [("1_a",)]
        assert rows(url, "SELECT to_regclass('b')") == [(None,)]

    def test_interrupted_concurrent_index_is_built_again(self, fresh_database: Make, tmp_path: Path) -> None:
        url = fresh_database()
        run(url, "CREATE TABLE a (x int)", "INSERT INTO a VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            run(url, 'CREATE UNIQUE INDEX CONCURRENTLY "A_idx" ON a (x)')
        assert rows(url, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == [(1,)]
        theirs = litellm_like(
            tmp_path / "theirs", **{"1_i": '-- x\nCREATE INDEX CONCURRENTLY IF NOT EXISTS "A_idx"\nON a (x);'}
        )
        migrate(url, silent, litellm_folder=theirs)
        assert rows(url, "SELECT indisvalid FROM pg_index WHERE indexrelid = '\"A_idx\"'::regclass") == [(True,)]

    def test_applied_file_was_edited(self, new_database: Make, tmp_path: Path) -> None:
        url = new_database()
        folder = write(tmp_path / "sql", **{"9001_x": "CREATE TABLE x (a int);"})
        migrate(url, silent, our_folder=folder)
        write(folder, **{"9001_x": "CREATE TABLE x (a bigint);"})
        before = schema(url)
        with pytest.raises(DatabaseError, match="another content") as caught:
            migrate(url, silent, our_folder=folder)
        assert caught.value.code == "E4501"
        assert str(folder / "9001_x.sql") in str(caught.value)
        assert status(url, our_folder=folder).pointsman.changed == ("9001_x",)
        assert schema(url) == before

    def test_user_without_rights(self, fresh_database: Make) -> None:
        url = fresh_database()
        run(url, "DROP ROLE IF EXISTS weak", "CREATE ROLE weak LOGIN PASSWORD 'w'")
        parts = urlsplit(url)
        weak = url.replace(parts.netloc, f"weak:w@127.0.0.1:{parts.port}")
        with pytest.raises(DatabaseError) as caught:
            migrate(weak, silent)
        assert caught.value.code == "E4501"
        assert "owner" in str(caught.value.mend)


class TestLedgerOfOthers:
    """What other tools left in the ledger."""

    def test_newer_version_was_here(self, new_database: Make) -> None:
        url = new_database()
        run(
            url,
            "INSERT INTO _prisma_migrations (id, checksum, migration_name, finished_at) "
            "VALUES ('n', 'c', '29990101000000_new', now())",
        )
        lines: list[str] = []
        migrate(url, lines.append)
        assert "29990101000000_new" in " ".join(lines)
        assert status(url).litellm.unknown == ("29990101000000_new",)
        assert status(url).current

    def test_migration_half_done_by_another_tool(self, new_database: Make) -> None:
        url, name = new_database(), litellm_migrations()[-1].name
        undo = (
            "UPDATE _prisma_migrations SET finished_at = NULL, applied_steps_count = 0, logs = 'oh no' WHERE migration_name = "
        )
        run(url, f"{undo}'{name}'")
        with pytest.raises(DatabaseError, match="oh no") as caught:
            migrate(url, silent)
        assert name in str(caught.value)
        found = status(url)
        assert found.litellm.failed == {name: "oh no"}
        assert not found.current
        assert "oh no" in str(found)

    def test_migration_rolled_back_is_applied_again(self, new_database: Make) -> None:
        url, name = new_database(), next(one.name for one in litellm_migrations() if one.concurrent)
        run(url, f"UPDATE _prisma_migrations SET finished_at = NULL, rolled_back_at = now() WHERE migration_name = '{name}'")  # noqa: S608
        assert migrate(url, silent).applied == (name,)

    def test_migration_that_only_lacks_the_note(self, new_database: Make) -> None:
        url, name = new_database(), litellm_migrations()[-1].name
        run(url, f"UPDATE _prisma_migrations SET finished_at = NULL WHERE migration_name = '{name}'")  # noqa: S608
        assert migrate(url, silent).applied == ()
        assert status(url).current
        assert rows(url, f"SELECT count(*) FROM _prisma_migrations WHERE migration_name = '{name}'") == [(1,)]  # noqa: S608

    def test_schema_without_ledger_is_adopted(self, new_database: Make) -> None:
        url = new_database()
        run(url, "DROP TABLE _prisma_migrations")
        before = schema(url)
        report = migrate(url, silent)
        assert report.adopted == tuple(one.name for one in litellm_migrations())
        assert report.applied == ()
        assert {row[0] for row in rows(url, "SELECT applied_steps_count FROM _prisma_migrations")} == {0}
        assert [row for row in schema(url) if "_prisma_migrations" not in str(row)] == [
            row for row in before if "_prisma_migrations" not in str(row)
        ]
        assert rows(url, "SELECT datname FROM pg_database WHERE datname LIKE 'pointsman_rehearsal%'") == []
        assert status(url).current

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ('ALTER TABLE "LiteLLM_VerificationToken" DROP COLUMN "spend"', "LiteLLM_VerificationToken.spend: missing"),
            ('ALTER TABLE "LiteLLM_UserTable" ALTER COLUMN "spend" TYPE numeric', "LiteLLM_UserTable.spend: numeric"),
            ('DROP TABLE "LiteLLM_SpendLogs" CASCADE', "LiteLLM_SpendLogs.api_key: missing"),
        ],
    )
    def test_other_schema_without_ledger_is_refused(self, new_database: Make, change: str, says: str) -> None:
        url = new_database()
        run(url, "DROP TABLE _prisma_migrations", change)
        before = schema(url)
        with pytest.raises(DatabaseError) as caught:
            migrate(url, silent)
        assert says in str(caught.value)
        assert caught.value.code == "E4501"
        assert schema(url) == before
        assert rows(url, "SELECT datname FROM pg_database WHERE datname LIKE 'pointsman_rehearsal%'") == []

    def test_tables_of_others_do_not_matter(self, fresh_database: Make) -> None:
        url = fresh_database()
        run(url, "CREATE TABLE accounts (x int)", "INSERT INTO accounts VALUES (1)")
        assert len(migrate(url, silent).applied) > 200
        assert rows(url, "SELECT x FROM accounts") == [(1,)]


class TestLock:
    """Another migrator is at work."""

    @pytest.mark.parametrize("key", KEYS)
    def test_held_for_too_long(self, fresh_database: Make, key: int) -> None:
        url = fresh_database()
        with held(url, key) as pid:
            lines: list[str] = []
            with pytest.raises(DatabaseError) as caught:
                migrate(url, lines.append, patience=0.5)
        assert caught.value.code == "E4502"
        assert f"backend {pid} (somebody else" in str(caught.value)
        assert f"waiting for backend {pid}" in lines[0]
        assert rows(url, "SELECT to_regclass('_prisma_migrations')") == [(None,)]
        assert migrate(url, silent).applied

    def test_holder_dies(self, fresh_database: Make) -> None:
        url = fresh_database()
        with held(url, KEYS[0]) as pid, ThreadPoolExecutor(1) as pool:
            waiting = threading.Event()
            done = pool.submit(migrate, url, lambda _: waiting.set(), patience=30)
            assert waiting.wait(10)
            run(url, f"SELECT pg_terminate_backend({pid})")
            assert done.result(60).applied

    def test_nothing_to_do_needs_no_lock(self, new_database: Make) -> None:
        url = new_database()
        with held(url, KEYS[0]):
            assert migrate(url, silent, patience=0.0).applied == ()


class TestUrl:
    """Prisma's dialect, and messages without the password."""

    def test_prisma_parameters_and_schema(self, fresh_database: Make) -> None:
        url = fresh_database() + "?schema=Side+Room&connection_limit=5&pool_timeout=10&pgbouncer=true&sslmode=prefer"
        migrate(url, silent)
        where = rows(
            url, "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'LiteLLM%' OR tablename LIKE '%migrations'"
        )
        assert sorted(where) == [("Side Room",), ("Side Room_pointsman",)]
        assert status(url).current
        assert migrate(url, silent).applied == ()

    @given(
        st.dictionaries(
            st.sampled_from(["schema", "connection_limit", "pgbouncer", "sslaccept", "made_up"]), st.text("ab1", min_size=1)
        )
    )
    def test_only_libpq_parameters_remain(self, extra: dict[str, str]) -> None:
        query = "&".join(f"{name}={value}" for name, value in {**extra, "connect_timeout": "3"}.items())
        assert libpq_url(f"postgresql://u:p%40@h:1/d?{query}") == "postgresql://u:p%40@h:1/d?connect_timeout=3"

    def test_tls_parameters(self) -> None:
        base = "postgresql://h/d?sslmode=require&sslcert=/ca.pem"
        assert libpq_url(base) == "postgresql://h/d?sslmode=require"
        assert libpq_url(base + "&sslaccept=strict") == "postgresql://h/d?sslmode=verify-full&sslrootcert=%2Fca.pem"
        assert "sslcert=" in libpq_url(base + "&sslkey=/k.pem")

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=6))
    def test_password_never_shows(self, secret: str) -> None:
        url = f"postgresql://u:{quote(secret, safe='')}@127.0.0.1:9/d"
        # A password may be a piece of what the message says anyway.
        assume(secret not in str(unreachable("postgresql://u@127.0.0.1:9/d", OSError("cannot use *** or *** at"))))
        said = str(unreachable(url, OSError(f"cannot use {secret} or {quote(secret, safe='')} at {url}")))
        assert secret not in said.replace(address(url), "")
        assert secret not in redact(secret, url)

    @pytest.mark.parametrize(
        "url",
        ["", "mysql://u:topsecret@h/d", "postgresql://u:topsecret@h:port/d", "postgresql://u:topsecret@[::1/d", "topsecret"],
    )
    def test_malformed(self, url: str) -> None:
        with pytest.raises(DatabaseError) as caught:
            migrate(url, silent)
        assert caught.value.code == "E4504"
        assert "topsecret" not in str(caught.value)

    def test_unreachable(self, fresh_database: Make) -> None:
        good = urlsplit(fresh_database())
        cases = {
            "postgresql://u:topsecret@127.0.0.1:1/d": "127.0.0.1:1/d",
            f"postgresql://pointsman:topsecret@127.0.0.1:{good.port}/litellm": "check user and password",
            good._replace(path="/nowhere").geturl(): "create the database",
        }
        for url, words in cases.items():
            for call in (lambda: migrate(url, silent), lambda: status(url)):  # noqa: B023 - called here
                with pytest.raises(DatabaseError) as caught:
                    call()
                assert caught.value.code == "E4500"
                assert words in str(caught.value)
                assert str(urlsplit(url).password) not in str(caught.value)


def test_import_is_light() -> None:
    """The supervisor never imports LiteLLM; its migrations are found without its package being imported."""
    code = (
        "import sys, pointsman.migrations.runner as r, pointsman.decisions.store\n"
        "from pointsman.migrations.sources import litellm_migrations as f; assert len(f()) > 200\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('litellm', 'litellm_proxy_extras', 'prisma', 'boto3')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_request_log_indexes(new_database: Make) -> None:
    """Built by LiteLLM's own function beside the gateway, once a database."""
    url = new_database()
    query = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('\"LiteLLM_SpendLogs_litellm_call_id_idx\"')"
    assert rows(url, query) == []
    lines: list[str] = []
    assert build_indexes(url, lines.append)
    assert rows(url, query) == [(True,)]
    assert len(lines) == 2
    started = time.monotonic()
    assert build_indexes(url, lines.append)
    assert time.monotonic() - started < 1.0
    assert len(lines) == 2
    assert ledger_name() in {name for (name,) in rows(url, "SELECT name FROM pointsman_migrations")}
    assert status(url).pointsman.unknown == ()


def test_request_log_indexes_give_up_in_time(new_database: Make) -> None:
    lines: list[str] = []
    assert not build_indexes(new_database(), lines.append, timeout=0.2)
    assert "longer than" in lines[-1]
