"""A large database is hardly slower than a small one in what every request needs; and the engine beside psycopg.

The bounds are ratios, with room for a machine that does other things; the figures are printed and stand in docs/database.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.marks import ROOT


def bench(module: str, log: Path, *arguments: str) -> dict[str, Any]:
    """The report of a measurement."""
    with log.open("w", encoding="utf-8") as progress:
        result = subprocess.run(
            [sys.executable, "-m", module, "--json", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=progress,
            text=True,
            check=False,
        )
    print(log.read_text(encoding="utf-8"), result.stdout)
    assert result.returncode == 0, log.read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.slow("databasescale")
@pytest.mark.timeout(600)
def test_the_engine_beside_psycopg(tmp_path: Path) -> None:
    """It costs what a process in between, HTTP, WASM and validation cost: several times the floor, not dozens of times."""
    report = bench("bench.database", tmp_path / "progress.log", "--rounds", "1")
    rows = {(row["operation"], row["callers"]): row for row in report["rows"]}
    assert len(rows) == 9
    assert rows["lookup", 1]["ratio"]["p50"] < 15
    assert rows["page", 1]["ratio"]["p50"] < 15
    assert rows["flush", 1]["ratio"]["p50"] < 12
    # More callers must not make it slower altogether.
    assert rows["lookup", 50]["engine"]["rate"] > rows["lookup", 1]["engine"]["rate"] * 0.6


@pytest.mark.slow("databasescale")
@pytest.mark.timeout(1800)
def test_a_large_database(tmp_path: Path) -> None:
    """A tenth of the log that the docs' figures are of (`python -m bench.database_scale`), which takes a quarter of an hour."""
    report = bench("bench.database_scale", tmp_path / "progress.log", "--rows", "1000000", "--decisions", "1000000")
    assert (report["rows"], report["keys"], report["decisions"]) == (1_000_000, 100_000, 1_000_000)
    small, large = report["engine"]["small"], report["engine"]["large"]
    assert large["lookup"]["p99"] <= 3 * small["lookup"]["p99"]
    assert large["flush"]["p50"] <= 3 * small["flush"]["p50"]
    small, large = report["gateway"]["small"], report["gateway"]["large"]
    assert large["unseen keys"]["p99"] <= 3 * small["unseen keys"]["p99"]
    assert large["ready seconds"] <= 2 * small["ready seconds"]
    assert large["spend written seconds"] <= 3 * small["spend written seconds"] + 2
    own = report["own tables"]
    assert own["by decision_id"]["p50"] < 100
    assert own["drop ten days"]["longest wait of a writer"] < 3000
    # 100,000 keys with 10 decisions each; the user has fifty of them.
    assert own["erase a key"]["rows"] >= 10
    assert own["erase a user"]["rows"] >= 300
    assert own["erase a user"]["seconds"] < 60
