"""Prisma's official command line agrees with a database that we made, and would leave our tables alone.

It runs without its native engine (which comes from a host that not everybody reaches): its schema engine is there as WASM too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pointsman.migrations.install.layout import node_binary, package_dir
from pointsman.migrations.install.npm import install_locked, tool_environment
from pointsman.migrations.runner import build_indexes, migrate
from pointsman.migrations.sources import litellm_migrations, our_migrations
from support.marks import ROOT

pytestmark = [pytest.mark.slow("migrations"), pytest.mark.timeout(300)]

Make = Callable[[], str]
Prisma = Callable[..., "subprocess.CompletedProcess[str]"]
HERE = ROOT / "tests" / "slow" / "prisma"
SCHEMA = package_dir("litellm") / "proxy" / "schema.prisma"


@pytest.fixture(scope="module")
def prisma(tmp_path_factory: pytest.TempPathFactory) -> Prisma:
    """`prisma(database_url, *arguments)`: the command line, as npm has it."""
    home = tmp_path_factory.mktemp("prisma") / "cli"
    install_locked(HERE, home, os.environ)
    shutil.copy(HERE / "prisma.config.mjs", home)
    native = home / "native"
    native.write_text("#!/bin/sh\necho 'no native engine here' >&2\nexit 9\n")
    native.chmod(0o755)

    def run(url: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(node_binary()), "node_modules/prisma/build/index.js", *arguments, "--config", "prisma.config.mjs"]
        environment = tool_environment(os.environ) | {
            "DATABASE_URL": url,
            "SCHEMA_FILE": str(SCHEMA),
            "MIGRATIONS": str(litellm_migrations()[0].path.parent.parent),
            "CHECKPOINT_DISABLE": "1",
            "NO_COLOR": "1",
            **dict.fromkeys(("PRISMA_QUERY_ENGINE_LIBRARY", "PRISMA_SCHEMA_ENGINE_BINARY"), str(native)),
        }
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def catalog(url: str) -> list[tuple[Any, ...]]:
    """LiteLLM's tables, to the last detail."""
    return rows(
        url,
        """
        SELECT 'column', relname, attname, format_type(atttypid, atttypmod), attnotnull::text, pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
        UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid), '', '', ''
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT 'index', indexname, indexdef, '', '', '' FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT 'function', proname, prosrc, '', '', '' FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT 'ledger', migration_name, checksum, (finished_at IS NOT NULL)::text, applied_steps_count::text, logs
        FROM _prisma_migrations ORDER BY 1, 2, 3, 4, 5, 6
        """,
    )


def drift(prisma: Prisma, url: str, scratch: Path) -> list[str]:
    """The statements by which Prisma would make the database what LiteLLM's schema says; LiteLLM's own repair runs them."""
    pulled = prisma(url, "db", "pull", "--print").stdout
    scratch.write_text(pulled[re.search(r"^generator", pulled, re.MULTILINE).start() :])  # type: ignore[union-attr]
    done = prisma(
        url, "migrate", "diff", "--from-schema-datamodel", str(scratch), "--to-schema-datamodel", str(SCHEMA), "--script"
    )
    lines = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith(("--", "Loaded Prisma config"))]
    return " ".join(lines).rstrip(";").split("; ") if lines and lines != ["-- This is an empty migration."] else []


@pytest.mark.requirement("R-4.1")
def test_it_finds_our_database_up_to_date(prisma: Prisma, new_database: Make) -> None:
    url = new_database()
    assert "Database schema is up to date!" in prisma(url, "migrate", "status").stdout
    before = catalog(url)
    assert "No pending migrations to apply." in prisma(url, "migrate", "deploy").stdout
    assert catalog(url) == before


def test_it_would_make_what_we_made(prisma: Prisma, new_database: Make, fresh_database: Make) -> None:
    """`prisma migrate deploy` on an empty database: the same tables, and the same ledger. And ours goes on from there."""
    url = fresh_database()
    prisma(url, "migrate", "deploy")
    assert catalog(url) == catalog(new_database())
    assert migrate(url, lambda _: None).applied == tuple(one.name for one in our_migrations())


def test_it_can_fail(prisma: Prisma, new_database: Make) -> None:
    """It sees a missing entry, and a failed one."""
    url, name = new_database(), litellm_migrations()[-1].name
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM _prisma_migrations WHERE migration_name = %s", (name,))
        assert name in prisma(url, "migrate", "status", code=1).stdout
        connection.execute(
            "INSERT INTO _prisma_migrations (id, checksum, migration_name, logs) VALUES ('x', 'x', %s, 'oh no')", (name,)
        )
        assert "failed" in prisma(url, "migrate", "status", code=1).stdout + prisma(url, "migrate", "status", code=1).stderr


@pytest.mark.requirement("R-16")
def test_drift_repair_leaves_our_tables_alone(prisma: Prisma, new_database: Make, fresh_database: Make, tmp_path: Path) -> None:
    """Nothing differs but the two indexes that LiteLLM builds afterwards; with those, nothing at all."""
    url = new_database()
    found = drift(prisma, url, tmp_path / "pulled.prisma")
    assert len(found) == 2
    assert all(one.startswith('CREATE INDEX "LiteLLM_SpendLogs_') for one in found), found
    assert build_indexes(url)
    assert drift(prisma, url, tmp_path / "pulled.prisma") == []
    # Where they stood before, it would have dropped them: the test would notice.
    folder = tmp_path / "before"
    folder.mkdir()
    for one in our_migrations()[:2]:
        shutil.copy(one.path, folder)
    earlier = fresh_database()
    migrate(earlier, lambda _: None, our_folder=folder)
    assert 'DROP TABLE "pointsman_rollout"' in drift(prisma, earlier, tmp_path / "pulled.prisma")
