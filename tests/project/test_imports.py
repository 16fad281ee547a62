"""Imports point one way: the contracts of [tool.importlinter] hold, over all portions of the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.files import package_modules
from support.marks import ROOT

LINTER = Path(sys.prefix) / "lint" / "bin" / "lint-imports"


def _lint(config: Path) -> subprocess.CompletedProcess[str]:
    assert LINTER.is_file(), f"{LINTER} is missing: run `make setup`"
    rooms = sorted({str(ROOT / path.relative_to(ROOT).parts[0]) for path in package_modules()})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(rooms)}
    command = [str(LINTER), "--no-cache", "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_contracts_hold() -> None:
    result = _lint(ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_the_linter_sees_all_portions_and_can_fail(tmp_path: Path) -> None:
    """Turned upside down, the contract breaks on an import that crosses two rooms' portions."""
    config = tmp_path / "importlinter.toml"
    config.write_text(
        '[tool.importlinter]\nroot_packages = ["pointsman"]\n\n[[tool.importlinter.contracts]]\nname = "upside down"\n'
        'type = "layers"\ncontainers = ["pointsman"]\nlayers = ["errors", "litellm_config"]\n',
        encoding="utf-8",
    )
    result = _lint(config)
    assert result.returncode == 1
    assert "pointsman.litellm_config" in result.stdout
