"""`.ci/run`: which shards a change calls for, and that nothing which failed or did not run is called a pass."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.marks import ROOT

SHARDS = "# a comment\nreload  strategies/* tests/reload/*\nstart  core/*\nreload  Makefile\n"
PASSES = (
    'case "$*" in test) echo "== 3 passed, 1 skipped in 0.10s ==";; *) echo "ran $*"; echo "=== 1 passed in 1.00s ===";; esac'
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with .ci/run, two shards, one commit, and a stand-in for make that `_run` puts first on the path."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / ".ci" / "shards").write_text(SHARDS, encoding="utf-8")
    _git(tmp_path, "init", "--quiet", "--initial-branch=main")
    return _commit(tmp_path, "README.md")


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()


def _commit(checkout: Path, *names: str) -> Path:
    for name in names:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(os.urandom(8).hex(), encoding="utf-8")
    _git(checkout, "add", "--all")
    _git(checkout, "commit", "--quiet", "--message", "a")
    return checkout


def _run(checkout: Path, make: str = PASSES, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = checkout.parent / f"{checkout.name}-tools"
    tools.mkdir(exist_ok=True)
    (tools / "make").write_text(f"#!/bin/sh\n{make}\n", encoding="utf-8")
    (tools / "make").chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CI_", "GIT_"))}
    return subprocess.run(
        [str(checkout / ".ci" / "run")],
        cwd="/",
        env={**inherited, "PATH": f"{tools}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_with_an_unknown_base_every_shard_runs_once(checkout: Path) -> None:
    result = _run(checkout)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("ran test-slow SHARD=reload") == 1
    assert result.stdout.count("ran test-slow SHARD=start") == 1
    assert "base commit unknown" in result.stderr


@pytest.mark.parametrize(
    ("changed", "shards"),
    [
        (["docs/a.md"], []),
        (["strategies/pointsman/strategies/knn.py"], ["reload"]),
        (["Makefile"], ["reload"]),
        (["core/a.py", "tests/reload/test_a.py"], ["reload", "start"]),
    ],
)
def test_a_change_calls_for_the_shards_that_it_touches(checkout: Path, changed: list[str], shards: list[str]) -> None:
    base = _git(checkout, "rev-parse", "HEAD")
    _commit(checkout, *changed)
    result = _run(checkout, CI_BASE=base)
    assert result.returncode == 0, result.stdout
    assert [shard for shard in ("reload", "start") if f"SHARD={shard}" in result.stdout] == shards


def test_on_main_the_base_is_the_last_commit_that_was_judged(checkout: Path) -> None:
    (checkout / ".ci" / "base").write_text(_git(checkout, "rev-parse", "HEAD") + "\n", encoding="utf-8")
    _commit(checkout, "core/a.py")
    _git(checkout, "update-ref", "refs/remotes/origin/main", "HEAD")
    result = _run(checkout)
    assert "SHARD=start" in result.stdout
    assert "SHARD=reload" not in result.stdout


def test_a_pin_that_moved_touches_the_shards_that_name_it(checkout: Path) -> None:
    lock = checkout / "requirements" / "gateway.txt"
    lock.parent.mkdir()
    lock.write_text("# inputs\nlitellm==1.0 \\\n    --hash=sha256:0\npsycopg[binary]==3.1 \\\n", encoding="utf-8")
    (checkout / ".ci" / "shards").write_text("reload  lock/litellm\nstart  lock/psycopg*\n", encoding="utf-8")
    base = _git(_commit(checkout, "a"), "rev-parse", "HEAD")
    lock.write_text("# inputs\nlitellm==1.0 \\\n    --hash=sha256:0\npsycopg[binary]==3.2 \\\n", encoding="utf-8")
    _commit(checkout, "b")
    result = _run(checkout, CI_BASE=base)
    assert "SHARD=start" in result.stdout
    assert "SHARD=reload" not in result.stdout


def test_a_branch_is_compared_with_where_it_left_main(checkout: Path) -> None:
    _git(checkout, "update-ref", "refs/remotes/origin/main", "HEAD")
    _commit(checkout, "core/a.py")
    _commit(checkout, "docs/a.md")
    result = _run(checkout)
    assert "SHARD=start" in result.stdout
    assert "SHARD=reload" not in result.stdout


def test_a_base_that_is_not_in_the_clone_is_an_unknown_base(checkout: Path) -> None:
    result = _run(checkout, CI_BASE="0" * 40)
    assert "SHARD=reload" in result.stdout
    assert "SHARD=start" in result.stdout


def test_a_failure_is_the_verdict_and_the_rest_still_runs(checkout: Path) -> None:
    result = _run(
        checkout, 'case "$*" in test) echo "= 1 failed, 2 passed in 0.10s ="; exit 2;; *) echo "= 1 passed in 1.00s =";; esac'
    )
    assert result.returncode == 1
    assert "make test: FAILED with status 2. = 1 failed, 2 passed in 0.10s =" in result.stdout
    assert "slow shard start: passed" in result.stdout
    assert result.stdout.rstrip().endswith("NOT passed")


def test_a_shard_that_ran_nothing_is_no_pass_and_says_why(checkout: Path) -> None:
    skipped = 'echo "SKIPPED [1] tests/a.py:1: no S3 server to be had"; echo "== 1 skipped, 9 deselected in 0.02s =="'
    result = _run(checkout, f'case "$*" in test) echo "= 1 passed in 0.10s =";; *) {skipped};; esac')
    assert result.returncode == 1
    assert "RAN NOTHING" in result.stdout
    assert "no S3 server to be had" in result.stdout.partition("verdict")[2]


def test_set_up_that_fails_is_told_from_tests_that_fail(checkout: Path) -> None:
    result = _run(checkout, "echo 'set-up stopped at: Python'; exit 2")
    assert result.returncode == 1
    assert "did not get as far as pytest" in result.stdout


def test_time_that_is_used_up_is_a_failure(checkout: Path) -> None:
    result = _run(checkout, CI_MINUTES="0")
    assert result.returncode == 1
    assert "make test: DID NOT RUN" in result.stdout


def test_nothing_waits_for_an_answer(checkout: Path) -> None:
    result = _run(checkout, 'read -r answer || answer=none; echo "answer: $answer, CI=$CI"; echo "= 1 passed in 0.10s ="')
    assert "answer: none, CI=true" in result.stdout
