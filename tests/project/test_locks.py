"""What is installed is what was reviewed: pinned, hashed, without surprises."""

from __future__ import annotations

import re
import site
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from support.marks import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
# What may run whenever Python starts: our editable install (it only adds paths), and what setuptools brings along.
PTH_ALLOWED = re.compile(r"_?pointsman\.pth|__editable__\.pointsman-.*\.pth|distutils-precedence\.pth")


def _requirements(lock: Path) -> list[str]:
    """The logical lines of a lock: one a package, its hashes included."""
    return [line for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines() if line and line[0] not in "# "]


def test_there_are_locks() -> None:
    assert {lock.stem for lock in LOCKS} == {"gateway", "dev", "bootstrap", "lint"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_by_hash_and_nothing_says_where_from(lock: Path) -> None:
    for line in _requirements(lock):
        assert re.match(r"[a-z0-9._-]+==\S+ ", line), line[:80]
        assert "--hash=sha256:" in line, line[:80]
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links", lock.read_text(encoding="utf-8"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_what_must_not_be_installed_is_in_no_lock(lock: Path) -> None:
    """Commercially licensed, or too heavy for a gateway: training has an image of its own."""
    names = {re.split(r"[=\[ ]", line)[0] for line in _requirements(lock)}
    assert not names & {"litellm-enterprise", "torch", "transformers", "llmrouter-lib"}


def test_one_package_has_one_version_in_all_locks_of_an_environment() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        if lock.stem != "lint":
            for line in _requirements(lock):
                name, version, *_ = re.split(r"==| ", line)
                marker = line.partition(";")[2].partition("--hash")[0].strip()
                versions.setdefault(f"{name} {marker}".strip(), set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_locks_fit_pyproject() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "requirements.locks", "check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_changed_requirement_is_noticed(tmp_path: Path) -> None:
    for name in ["pyproject.toml", "requirements/locks.py", *(f"requirements/{lock.name}" for lock in LOCKS)]:
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8").replace('"click>=8.1,<9"', '"click>=8.2,<9"'), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "requirements.locks", "check"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "requirements/gateway.txt was made from other inputs" in result.stderr
    assert "make lock" in result.stderr
    assert "lint.txt" not in result.stderr


def test_nothing_runs_at_the_start_of_python_that_is_not_on_the_list() -> None:
    """A `.pth` file in a tampered package runs in every Python process; LiteLLM's malicious releases came with one."""
    found = [path.name for folder in site.getsitepackages() for path in Path(folder).glob("*.pth")]
    assert [name for name in found if not PTH_ALLOWED.fullmatch(name)] == []
    assert not any(
        Path(folder, name).exists() for folder in site.getsitepackages() for name in ("sitecustomize.py", "usercustomize.py")
    )


def test_the_licensed_package_is_not_installed() -> None:
    assert "litellm-enterprise" not in {distribution.name for distribution in distributions()}
