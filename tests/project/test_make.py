"""`make` as a newcomer meets it: what it says, what it does on a machine that lacks something, what a second run costs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support.marks import ROOT, scan
from support.shards import shards


def _make(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a fresh shell: this run may itself be the child of a make, whose flags must not reach it."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV"}
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What set-up reads, without an environment."""
    for name in ["Makefile", "pyproject.toml", "requirements"]:
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    return tmp_path


def _interpreter(folder: Path, body: str) -> Path:
    """A stand-in for a Python that this machine does not have."""
    path = folder / "python-stand-in"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_make_alone_explains_every_target() -> None:
    result = _make()
    assert result.returncode == 0
    for target in ("up", "setup", "test", "test-slow", "check", "lock", "clean"):
        assert re.search(rf"^  {target} +\S", result.stdout, re.MULTILINE), target


@pytest.mark.alone
def test_a_second_set_up_does_nothing_within_a_second(tmp_path: Path) -> None:
    """With every stamp in place, make must find nothing to do."""
    venv = tmp_path / "venv"
    (venv / ".stamps").mkdir(parents=True)
    for stamp in ("python", "gateway", "dev", "lint", "package", "database"):
        (venv / ".stamps" / stamp).touch()
    begun = time.monotonic()
    result = _make("setup", f"VENV={venv}")
    assert result.returncode == 0, result.stderr
    assert "set-up:" not in result.stdout
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    ("touched", "steps"),
    [
        ("requirements/bootstrap.txt", ["python", "lock dev", "lint", "package", "database"]),
        ("requirements/dev.txt", ["lock dev", "database"]),
        ("requirements/lint.txt", ["lint"]),
        ("pyproject.toml", ["package", "database"]),
    ],
)
def test_a_changed_input_redoes_what_depends_on_it_and_no_more(copy: Path, touched: str, steps: list[str]) -> None:
    stamps = copy / ".venv" / ".stamps"
    stamps.mkdir(parents=True)
    for age, stamp in enumerate(("python", "gateway", "dev", "lint", "package", "database"), start=-10):
        (stamps / stamp).touch()
        os.utime(stamps / stamp, (time.time() + age, time.time() + age))
    for file in [*copy.glob("requirements/*"), copy / "pyproject.toml"]:
        os.utime(file, (time.time() - 60, time.time() - 60))
    os.utime(copy / touched)
    (copy / "requirements" / "setup.sh").write_text('shift; echo "step $*"\n', encoding="utf-8")
    result = _make("setup", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^step (.*)$", result.stdout, re.MULTILINE) == steps


def test_too_old_a_python_is_named_and_so_is_the_way_out(copy: Path) -> None:
    old = _interpreter(copy, 'case "$*" in *version_info*) exit 1;; -V) echo "Python 3.9.2";; esac')
    result = _make("setup", f"PYTHON={old}", cwd=copy)
    assert result.returncode != 0
    assert "Python 3.9.2; Pointsman wants 3.11" in result.stderr
    assert "what to do:" in result.stderr
    assert not (copy / ".venv" / ".stamps" / "python").exists()


def test_a_missing_python_is_named(copy: Path) -> None:
    result = _make("setup", "PYTHON=no-such-python", cwd=copy)
    assert result.returncode != 0
    assert "PYTHON=no-such-python cannot be found" in result.stderr


def test_a_debian_without_python3_venv_is_told_to_install_it(copy: Path) -> None:
    bare = _interpreter(copy, 'case "$*" in *ensurepip*) exit 1;; *) exit 0;; esac')
    result = _make("setup", f"PYTHON={bare}", cwd=copy)
    assert result.returncode != 0
    assert "apt-get install python3-venv" in result.stderr


def test_a_step_that_fails_says_which_why_and_what_to_do(copy: Path) -> None:
    """A hash that does not match is the worst that can happen here; nothing may be stamped after it."""
    venv = copy / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / ".stamps").mkdir()
    (venv / ".stamps" / "python").touch()
    uv = venv / "bin" / "uv"
    uv.write_text("#!/bin/sh\necho 'Hash mismatch for click' >&2\nexit 2\n", encoding="utf-8")
    uv.chmod(0o755)
    result = _make("setup-gateway", cwd=copy)
    assert result.returncode != 0
    assert "set-up: packages of requirements/gateway.txt" in result.stdout
    for part in ("Hash mismatch for click", "set-up stopped at: packages of", "status 2", "what to do:", "do not go on"):
        assert part in result.stderr, part
    assert not (venv / ".stamps" / "gateway").exists()


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """An environment whose set-up is done, with stand-ins for python and uv that say how they were called."""
    venv = tmp_path / "venv"
    (venv / ".stamps").mkdir(parents=True)
    for stamp in ("python", "gateway", "dev", "lint", "package", "database"):
        (venv / ".stamps" / stamp).touch()
    (venv / "bin").mkdir()
    for name, body in (("python", 'echo "ran: $*"'), ("uv", 'case "$*" in *3.12*) echo /opt/python3.12;; *) exit 1;; esac')):
        (venv / "bin" / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (venv / "bin" / name).chmod(0o755)
    return venv


def test_without_a_shard_the_shards_are_listed(done: Path) -> None:
    result = _make("test-slow", f"VENV={done}")
    assert result.returncode != 0
    assert "Which shard?" in result.stderr
    assert "ran: -m support.shards" in result.stderr
    # With `=`: pytest would take the name of a shard that is also a directory for a path.
    assert "ran: -m pytest --shard=startup" in _make("test-slow", f"VENV={done}", "SHARD=startup").stdout


def test_arguments_reach_the_command(done: Path) -> None:
    assert re.search("^ran: -m pytest -n 2 .*-k knn -x$", _make("test", f"VENV={done}", "ARGS=-k knn -x").stdout, re.MULTILINE)
    assert "ran: -m pytest -n 0 " in _make("test", f"VENV={done}", "PROCESSES=0").stdout


def test_bench_startup_runs_the_module(done: Path) -> None:
    assert "ran: -m bench.startup" in _make("bench-startup", f"VENV={done}").stdout


def test_bench_database_runs_the_module(done: Path) -> None:
    assert "ran: -m bench.database" in _make("bench-database", f"VENV={done}").stdout


def test_bench_telemetry_runs_the_module(done: Path) -> None:
    assert "ran: -m bench.telemetry" in _make("bench-telemetry", f"VENV={done}").stdout


def test_bench_strategies_runs_the_module(done: Path) -> None:
    assert "ran: -m bench.strategies" in _make("bench-strategies", f"VENV={done}").stdout


def test_bench_faults_runs_the_module(done: Path) -> None:
    assert "ran: -m bench.faults --seconds 4" in _make("bench-faults", f"VENV={done}", "ARGS=--seconds 4").stdout


def test_other_pythons_are_used_where_they_are_and_named_where_not(done: Path, tmp_path: Path) -> None:
    """The second environment is stubbed as well: what counts is which interpreter it would be made with."""
    other = ROOT / "build" / "python-3.12"
    if other.exists():
        pytest.skip("this checkout has an environment for Python 3.12 already; the test must not touch it")
    log = tmp_path / "log"
    result = _make(
        "test-all-pythons", f"VENV={done}", f"SETUP=echo setup VENV=$(VENV) PYTHON=$(PYTHON) >> {log} && false; true"
    )
    assert "ran: -m pytest" in result.stdout
    assert "== Python 3.12: /opt/python3.12 ==" in result.stdout
    assert "VENV=build/python-3.12 PYTHON=/opt/python3.12" in log.read_text(encoding="utf-8")


def test_every_slow_test_is_in_a_shard_that_ci_knows() -> None:
    lines = [line.split() for line in (ROOT / ".ci" / "shards").read_text(encoding="utf-8").splitlines()]
    known = {line[0] for line in lines if line and line[0] != "#"}
    assert set(shards()) == known
    assert {mark.arguments[0] for mark in scan() if mark.name == "slow"} == known
