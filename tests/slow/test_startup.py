"""The second start takes at most 0.45 times what stock LiteLLM takes, with the same configuration and database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.marks import ROOT

LIMIT = 0.45


@pytest.mark.slow("startup")
@pytest.mark.timeout(900)
def test_second_start_beside_stock_litellm(tmp_path: Path) -> None:
    log = tmp_path / "progress.log"
    with log.open("w", encoding="utf-8") as progress:
        result = subprocess.run(
            [sys.executable, "-m", "bench.startup", "--runs", "3", "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=progress,
            text=True,
            check=False,
        )
    print(log.read_text(encoding="utf-8"), result.stdout)
    assert result.returncode == 0, log.read_text(encoding="utf-8")
    report = json.loads(result.stdout)
    assert len(report["stock"]) == len(report["pointsman"]) == 3
    assert report["ratio"] <= LIMIT, report
