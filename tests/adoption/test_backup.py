"""Backups and their restore, with PostgreSQL's own programs, through the command line that people use."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pointsman.errors import DatabaseError, ProcessError
from pointsman.migrations.backup import backup, manifest_path, read_manifest, restore
from support.gateway import pointsman
from support.old_litellm import count, dump, execute, fill, litellm_schema, rows
from support.postgres import PostgresServer

Make = Callable[[], str]


def silent(_: str) -> None:
    """No progress."""


@pytest.mark.requirement("R-17")
def test_everything_comes_back(new_database: Make, fresh_database: Make, tmp_path: Path) -> None:
    """Partitions, views, sequences, functions and our schema, with the rows as they were in one snapshot."""
    url, file = new_database(), tmp_path / "all.dump"
    filled = fill(url)
    made = pointsman("db", "backup", "--out", file, env={"DATABASE_URL": url})
    assert made.returncode == 0, made.stderr
    manifest = read_manifest(file)
    assert manifest is not None
    assert manifest.sha256 in made.stdout
    assert {name: manifest.rows[f"public.{name}"] for name in filled.rows} == filled.rows
    assert file.stat().st_mode & 0o777 == manifest_path(file).stat().st_mode & 0o777 == 0o600
    password = str(psycopg.conninfo.conninfo_to_dict(url)["password"])
    assert password not in made.stdout + made.stderr + manifest_path(file).read_text()

    target = fresh_database()
    put = pointsman("db", "restore", file, "--to", target, "--yes")
    assert put.returncode == 0, put.stderr
    assert "as the manifest says" in put.stdout
    assert dump(target) == dump(url)
    # Into what is not empty it never goes, nor without being told so.
    again = pointsman("db", "restore", file, "--to", target, "--yes")
    assert (again.returncode, "E4507" in again.stderr) == (1, True)
    assert pointsman("db", "restore", file, "--to", target).returncode == 2
    existing = pointsman("db", "backup", "--out", file, env={"DATABASE_URL": url})
    assert (existing.returncode, "exists already" in existing.stderr) == (1, True)


def test_the_manifest_counts_what_is_in_the_file_while_others_write(
    new_database: Make, fresh_database: Make, tmp_path: Path
) -> None:
    url = new_database()
    stop = threading.Event()

    def write() -> None:
        number = 0
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.is_set():
                number += 1
                # Two tables in one transaction: one snapshot has both or neither.
                with connection.transaction():
                    for table, column in (("LiteLLM_Config", "param_name"), ("LiteLLM_UserTable", "user_id")):
                        connection.execute(f'INSERT INTO "{table}" ({column}) VALUES (%s)', [f"n{number}"])  # noqa: S608

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = backup(url, tmp_path / "busy.dump", silent)
    finally:
        stop.set()
        writer.join()
    assert made.manifest.rows["public.LiteLLM_Config"] == made.manifest.rows["public.LiteLLM_UserTable"] > 0
    assert count(url, "LiteLLM_Config") > made.manifest.rows["public.LiteLLM_Config"]
    assert restore(fresh_database(), tmp_path / "busy.dump", silent).rows == made.manifest.rows


def test_a_damaged_backup_leaves_the_target_empty(new_database: Make, fresh_database: Make, tmp_path: Path) -> None:
    file, target = tmp_path / "whole.dump", fresh_database()
    url = new_database()
    fill(url)
    backup(url, file, silent)
    cut = tmp_path / "cut.dump"
    cut.write_bytes(file.read_bytes()[:-2000])
    before = dump(target)
    with pytest.raises(DatabaseError, match="nothing was changed"):  # without a manifest it is tried, and undone
        restore(target, cut, silent)
    assert dump(target) == before
    manifest_path(cut).write_text(manifest_path(file).read_text())
    with pytest.raises(DatabaseError, match="not the file that was made"):
        restore(target, cut, silent)
    manifest = json.loads(manifest_path(file).read_text())
    manifest_path(file).write_text(json.dumps(manifest | {"rows": {**manifest["rows"], "public.LiteLLM_Config": 77}}))
    with pytest.raises(DatabaseError, match=r"LiteLLM_Config has \d, should have 77"):
        restore(target, file, silent)
    manifest_path(file).write_text("{}")
    with pytest.raises(DatabaseError, match="manifest cannot be read"):
        restore(target, file, silent)


def test_a_backup_that_fails_leaves_nothing(fresh_database: Make, tmp_path: Path) -> None:
    url, folder = fresh_database(), tmp_path / "out"
    folder.mkdir()
    litellm_schema(url, [])
    execute(url, "DROP ROLE IF EXISTS blind", "CREATE ROLE blind LOGIN PASSWORD 'blind'", "CREATE TABLE secret (x int)")
    with pytest.raises(DatabaseError, match=r"permission denied.*pg_read_all_data"):
        backup(f"postgresql://blind:blind@{url.rpartition('@')[2]}", folder / "no.dump", silent)
    with pytest.raises(DatabaseError, match="not there"):
        backup(url, tmp_path / "nowhere" / "no.dump", silent)
    assert list(folder.iterdir()) == []


@pytest.mark.requirement("R-17")
def test_the_embedded_postgres_of_up(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """Of a gateway that runs (its port is asked for), and of one that does not (the server is started for it)."""
    execute(postgres_server.url(), "CREATE TABLE IF NOT EXISTS of_up (x int)", "TRUNCATE of_up", "INSERT INTO of_up VALUES (7)")
    running = pointsman("db", "backup", "--data-dir", postgres_server.data_dir, "--out", tmp_path / "running.dump")
    assert running.returncode == 0, running.stderr
    new = tmp_path / "new"
    assert pointsman("db", "restore", tmp_path / "running.dump", "--data-dir", new, "--yes").returncode == 0
    resting = pointsman("db", "backup", "--data-dir", new, "--out", tmp_path / "resting.dump")
    assert resting.returncode == 0, resting.stderr
    manifest = read_manifest(tmp_path / "resting.dump")
    assert manifest is not None
    assert manifest.rows == {"public.of_up": 1}
    assert rows(postgres_server.url(), "SELECT x FROM of_up") == [(7,)]
    nothing = pointsman("db", "backup", "--data-dir", tmp_path / "nothing", "--out", tmp_path / "nothing.dump")
    assert (nothing.returncode, "E4602" in nothing.stderr) == (1, True)
    assert not (tmp_path / "nothing").exists()


def test_the_password_is_on_no_command_line(new_database: Make, tmp_path: Path) -> None:
    """A stand-in for pg_dump tells how it was called; the real one is not asked."""
    from pointsman.migrations.backup.tools import way_to

    url = new_database()
    with way_to(url + "?application_name=mine&sslpassword=hidden", "pointsman backup") as (name, environment):
        told = subprocess.run(
            ["/bin/sh", "-c", 'echo "$0"; cat "$PGSERVICEFILE"', name], env=environment, capture_output=True, check=True
        )
        mode = Path(environment["PGSERVICEFILE"]).stat().st_mode & 0o777
    password = str(psycopg.conninfo.conninfo_to_dict(url)["password"])
    assert name == "service=pointsman"
    assert mode == 0o600
    assert password not in told.stdout.decode()
    assert environment["PGPASSWORD"] == password
    assert not Path(environment["PGSERVICEFILE"]).exists()


def test_a_data_directory_that_nobody_owns_is_not_running(tmp_path: Path) -> None:
    from pointsman.embedded_postgres import running_url

    assert running_url(tmp_path) is None
    (tmp_path / "lock").touch()
    assert running_url(tmp_path) is None
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with pytest.raises(ProcessError, match="cannot be reached"):
        running_url(tmp_path)
