"""The server's pure parts, by Node's own test runner: see `translation.test.mjs`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pointsman.migrations.install import Layout, node_binary

HERE = Path(__file__).resolve().parent


def test_translation() -> None:
    modules = str(Layout.current().engine_modules)
    done = subprocess.run(
        [str(node_binary()), str(HERE / "translation.test.mjs"), modules],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout or "fail 0" in done.stdout
