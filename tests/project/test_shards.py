"""`--shard NAME` runs the tests of one shard, all of them, and imports no file that has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.marks import TESTS
from support.shards import shards

SHARD = next(iter(shards()))
SLOW = f"""
import pytest
@pytest.mark.slow("{SHARD}")
def test_slow(): ...
def test_fast(): ...
"""


def _suite(folder: Path, files: dict[str, str], *arguments: str) -> str:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n", encoding="utf-8")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "support.shards", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return result.stdout + result.stderr


def test_a_shard_is_what_is_marked_and_a_plain_run_the_rest(tmp_path: Path) -> None:
    assert "1 passed, 1 deselected" in _suite(tmp_path, {"test_a.py": SLOW}, "-v")
    said = _suite(tmp_path, {}, "-v", f"--shard={SHARD}")
    assert "1 passed, 1 deselected" in said
    assert "test_slow PASSED" in said


def test_a_file_without_the_shards_name_is_not_imported(tmp_path: Path) -> None:
    files = {"test_a.py": SLOW, "test_b.py": "raise RuntimeError('imported')"}
    assert "1 passed, 1 deselected" in _suite(tmp_path, files, f"--shard={SHARD}")
    assert "RuntimeError: imported" in _suite(tmp_path, files)


def test_a_test_that_would_be_passed_by_is_an_error_of_a_plain_run(tmp_path: Path) -> None:
    aside = f"import pytest\nSLOW = pytest.mark.slow('{SHARD}')\n"
    said = _suite(tmp_path, {"aside.py": aside, "test_a.py": "from aside import SLOW\n@SLOW\ndef test_slow(): ...\n"})
    assert "test_a.py::test_slow: the shard's name must stand in the file itself" in said


def test_a_shard_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    assert "there is no shard 'nosuch'" in _suite(tmp_path, {"test_a.py": SLOW}, "--shard=nosuch")
