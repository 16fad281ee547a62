"""`make test` runs files side by side, and tests marked `alone` beside nothing: runs of pytest over tests that say when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.marks import TESTS

# Each file waits for the other one's first test, so that the run can only end where both ran at once.
MEET = """
import json, os, time
from pathlib import Path
import pytest
HERE = Path(__file__).parent

@pytest.fixture(autouse=True)
def told(request):
    begun = time.monotonic()
    yield
    with (HERE / "told").open("a") as file:
        file.write(json.dumps([request.node.name, os.getpid(), begun, time.monotonic()]) + chr(10))

def test_meet():
    (HERE / f"{__name__}.here").touch()
    while len(list(HERE.glob("*.here"))) < 2:
        time.sleep(0.01)
"""
BUSY = """
@pytest.mark.parametrize("number", range(40))
def test_busy(number):
    time.sleep(0.02)
"""
ALONE = """
@pytest.mark.alone
@pytest.mark.parametrize("number", range(8))
def test_alone(number):
    time.sleep(0.02)
"""

PLUGINS = ("-p", "xdist", "-p", "pytest_timeout", "-p", "support.parallel")


def _suite(folder: Path, files: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = alone\n", encoding="utf-8")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {
        name: value for name, value in os.environ.items() if name != "CI"
    }  # there Hypothesis knows no deadline anyway
    return subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, "--timeout=60", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_files_run_side_by_side_and_who_is_marked_alone_runs_alone(tmp_path: Path) -> None:
    result = _suite(tmp_path, {"test_a.py": MEET + BUSY, "test_b.py": MEET + ALONE}, "-n", "2", "--dist=loadfile")
    assert result.returncode == 0, result.stdout
    ran = [tuple(json.loads(line)) for line in (tmp_path / "told").read_text(encoding="utf-8").splitlines()]
    assert len({pid for _, pid, _, _ in ran}) == 2
    alone = [one for one in ran if one[0].startswith("test_alone")]
    assert len(alone) == 8
    for name, pid, begun, ended in alone:
        assert [one for one in ran if one[1] != pid and one[2] < ended and one[3] > begun] == [], name


def test_the_example_of_a_property_may_take_its_time_beside_others(tmp_path: Path) -> None:
    slow = (
        "import time\nfrom hypothesis import given, settings, strategies as st\n"
        "@settings(max_examples=2)\n@given(st.integers())\ndef test_slow(number):\n    time.sleep(0.3)\n"
    )
    assert _suite(tmp_path, {"test_a.py": slow}, "-n", "1").returncode == 0


def test_a_process_that_dies_while_alone_keeps_nobody_out(tmp_path: Path) -> None:
    dies = ALONE.replace(
        "time.sleep(0.02)", "number != 3 or (HERE / 'died').exists() or ((HERE / 'died').touch(), os._exit(1))"
    )
    result = _suite(tmp_path, {"test_a.py": MEET + BUSY, "test_b.py": MEET + dies}, "-n", "2", "--dist=loadfile")
    assert "1 failed" in result.stdout, result.stdout
    assert "crashed" in result.stdout
    assert (tmp_path / "told").read_text(encoding="utf-8").count("test_busy") == 40
