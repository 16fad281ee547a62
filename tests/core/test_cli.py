"""The command line as a process: exit statuses, `.env`, help."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

POINTSMAN = str(Path(sysconfig.get_path("scripts")) / "pointsman")


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), **env}
    return subprocess.run(
        [POINTSMAN, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["up", "--config", "a.yaml", "--profile", "local"],
        ["up", "--port", "0"],
        ["up", "--port", "x"],
        ["serve"],
        ["serve", "--config", "a.yaml", "--workers", "0"],
        ["check"],
        ["mlops", "train"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], tmp_path: Path) -> None:
    result = run(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(
    "command", ["", "up", "serve", "init", "check", "doctor", "db migrate", "mlops train", "mlops publish"]
)
def test_help_says_something_of_each_option(command: str, tmp_path: Path) -> None:
    result = run(*command.split(), "--help", cwd=tmp_path)
    assert result.returncode == 0
    lines = [line for line in result.stdout.splitlines() if line.strip().startswith("--")]
    assert all(len(line.split()) > 2 for line in lines if "--help" not in line), result.stdout


def test_a_failure_is_1_and_says_how_to_mend_it(tmp_path: Path) -> None:
    result = run("db", "status", cwd=tmp_path)
    assert result.returncode == 1
    assert "E4204" in result.stderr
    assert "DATABASE_URL" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_profile_that_is_none_is_named(tmp_path: Path) -> None:
    result = run("up", "--profile", "locl", "--data-dir", str(tmp_path / "data"), cwd=tmp_path)
    assert result.returncode == 1
    assert "local" in result.stderr


def test_init_writes_what_check_accepts_and_overwrites_nothing(tmp_path: Path) -> None:
    assert run("init", cwd=tmp_path).returncode == 0
    written = (tmp_path / "pointsman.yaml").read_bytes()
    assert run("check", "pointsman.yaml", cwd=tmp_path).returncode == 0
    again = run("init", cwd=tmp_path)
    assert (again.returncode, "--force" in again.stderr) == (1, True)
    assert (tmp_path / "pointsman.yaml").read_bytes() == written


def test_dotenv_is_read_where_asked_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FROM_FILE=file\nBOTH=file\n")
    code = (
        "from pathlib import Path; from pointsman.settings import environment; "
        "print(environment().get('FROM_FILE')); e = environment(dotenv=Path('.env')); "
        "import os; print(e['FROM_FILE'], e['BOTH'], os.environ['FROM_FILE'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"BOTH": "set"}, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == ["None", "file", "set", "file"]


def test_the_import_command_is_honest(tmp_path: Path) -> None:
    """Without LLMRouter, which no gateway has, it says so; and it executes no artifact that nobody vouched for."""
    (tmp_path / "router.yaml").write_text("model_path: {load_model_path: /nowhere/knn.pkl}")
    (tmp_path / "queries.jsonl").write_text("".join(f'{{"query": "question {number}"}}\n' for number in range(30)))
    command = ("strategies", "import", "--kind", "elo", "--llmrouter-config", "router.yaml", "--data", "queries.jsonl")
    result = run(*command, "--out", "x", cwd=tmp_path)
    assert (result.returncode, "E4205" in result.stderr) == (1, True)
    result = run(*command, "--out", "x", "--trust-artifact", cwd=tmp_path)
    assert (result.returncode, "E4207" in result.stderr) == (1, True)
    assert "pointsman[llmrouter]" in result.stderr
    assert "executing the code" in result.stderr
    assert not (tmp_path / "x").exists()
