"""Wrong input to the command line: a clear error on standard error, the right exit status, nothing half done."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.gateway import Gateway, free_port, pointsman
from support.processes import MARK, marked, wait_for

GOOD: dict[str, Any] = {
    "model_list": [
        {"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": "http://127.0.0.1:9/v1", "api_key": "sk-x"}}
    ],
    "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
}
KEYS = {"LITELLM_MASTER_KEY": "sk-0123456789abcdef0123456789abcdef", "LITELLM_SALT_KEY": "sk-salt-0123456789abcdef"}


def written(path: Path, config: object) -> Path:
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return path


class Refusal:
    """How a `pointsman serve` that cannot start ended."""

    def __init__(
        self, directory: Path, config: Path, *arguments: str, env: dict[str, str] | None = None, port: int | None = None
    ):
        mark = uuid.uuid4().hex
        options: list[str | Path] = [
            "--config",
            config,
            "--port",
            str(port or free_port()),
            "--data-dir",
            directory / "data",
            *arguments,
        ]
        done = pointsman("serve", *options, env={**(KEYS if env is None else env), MARK: mark}, cwd=directory)
        self.status, self.said, self.left = done.returncode, done.stderr, marked(mark)
        assert "Traceback" not in self.said, self.said
        assert not self.left, "nothing is left running"


@pytest.mark.requirement("R-1.5")
@pytest.mark.parametrize(
    ("config", "code", "words"),
    [
        ("model_list: [\n  - x: {", "E4201", ["config.yaml"]),
        ("just text", "E42", ["config.yaml"]),
        ({**GOOD, "pointsman": {"stratgies": {}}}, "E4202", ["stratgies", "strategies"]),
        ({**GOOD, "pointsman": {"shutdown": {"grace": "soon"}}}, "E4203", ["grace"]),
        ({**GOOD, "router_settings": {"routing_strategy": "llmrouter-knnn"}}, "E4206", ["llmrouter-knn"]),
        ({**GOOD, "router_settings": {"routing_strategy": "llmrouter-knn"}}, "E4204", ["model_path"]),
        (
            {
                **GOOD,
                "router_settings": {
                    "routing_strategy": "llmrouter-knn",
                    "routing_strategy_args": {"model_path": "knn.pkl"},
                },
            },
            "E4205",
            ["pickle", "import"],
        ),
        ({**GOOD, "model_list": [{"model_name": "m"}]}, "E42", ["litellm_params"]),
    ],
    ids=["not-yaml", "not-a-mapping", "unknown-key", "wrong-type", "unknown-strategy", "no-model", "pickle", "no-params"],
)
def test_a_bad_configuration(tmp_path: Path, config: object, code: str, words: list[str]) -> None:
    path = written(tmp_path / "config.yaml", config)
    before = path.read_bytes()
    refusal = Refusal(tmp_path, path)
    assert refusal.status == 1
    assert code in refusal.said
    for word in [*words, "config.yaml"]:
        assert word in refusal.said, refusal.said
    assert path.read_bytes() == before
    assert not (tmp_path / "data").exists(), "nothing half done"
    checked = pointsman("check", path, env=KEYS)
    assert checked.returncode == 1
    assert code in checked.stderr


def test_check_tells_every_problem_at_once_with_its_line(tmp_path: Path) -> None:
    text = yaml.safe_dump(
        {**GOOD, "pointsman": {"shutdwn": {}, "routing": {"deadline_ms": -1}, "decisions": {"batch_size": "x"}}}
    )
    checked = pointsman("check", written(tmp_path / "config.yaml", text), env=KEYS)
    assert checked.returncode == 1
    for key in ("shutdwn", "deadline_ms", "batch_size"):
        line = next(number for number, content in enumerate(text.splitlines(), 1) if key in content)
        told = [said for said in checked.stderr.splitlines() if key in said]
        assert told, checked.stderr
        assert any(f":{line}" in said or f"line {line}" in said for said in told), checked.stderr


def test_check_accepts_what_is_right(tmp_path: Path) -> None:
    checked = pointsman("check", written(tmp_path / "config.yaml", GOOD), env=KEYS)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "ok" in checked.stdout


def test_a_missing_configuration(tmp_path: Path) -> None:
    refusal = Refusal(tmp_path, tmp_path / "nowhere.yaml")
    assert refusal.status == 1
    assert "E4201" in refusal.said
    assert "nowhere.yaml" in refusal.said


def test_a_busy_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refusal = Refusal(tmp_path, written(tmp_path / "config.yaml", GOOD), port=port)
    assert refusal.status == 1
    assert "E4601" in refusal.said
    assert str(port) in refusal.said
    assert "--port" in refusal.said


@pytest.mark.requirement("R-1.3")
def test_no_master_key(tmp_path: Path) -> None:
    refusal = Refusal(tmp_path, written(tmp_path / "config.yaml", GOOD), env={})
    assert refusal.status == 1
    assert "LITELLM_MASTER_KEY" in refusal.said


def test_a_database_that_is_down_at_the_start(tmp_path: Path) -> None:
    env = {**KEYS, "DATABASE_URL": f"postgresql://nobody:secretword@127.0.0.1:{free_port()}/none"}
    refusal = Refusal(tmp_path, written(tmp_path / "config.yaml", GOOD), "--database-wait", "0.5", env=env)
    assert refusal.status == 1
    assert "E4500" in refusal.said
    assert "127.0.0.1" in refusal.said
    assert "secretword" not in refusal.said, "no password in a message"


def test_a_malformed_database_url(tmp_path: Path) -> None:
    refusal = Refusal(tmp_path, written(tmp_path / "config.yaml", GOOD), env={**KEYS, "DATABASE_URL": "mysql://x/y"})
    assert refusal.status == 1
    assert "E4504" in refusal.said


def test_a_data_directory_that_cannot_be_made(own_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    config = {**GOOD, "pointsman": {"strategies": {"s": {"source": str(tmp_path / "current.json")}}}}
    instance = own_gateway(config, database_url=None, workers=1)
    instance.data_dir.write_text("a file")
    process = instance.spawn()
    wait_for(lambda: process.poll() is not None or instance.ready(), 60, "it ends, or serves", interval=0.2)
    assert process.poll() == 1, "it serves"
    assert "E4602" in instance.log()
    assert "--data-dir" in instance.log()


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["serve", "--config", "x.yaml", "--workers", "0"],
        ["serve", "--config", "x.yaml", "--port", "70000"],
        ["serve", "--config", "x.yaml", "--wrokers", "2"],
        ["srve"],
        ["up", "--config", "x.yaml", "--profile", "local"],
    ],
)
def test_wrong_usage_is_status_2(tmp_path: Path, arguments: list[str]) -> None:
    done = pointsman(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["serve"], ["up"], ["check"], ["doctor"], ["init"], ["db"], ["mlops"]])
def test_help_is_there(tmp_path: Path, arguments: list[str]) -> None:
    done = pointsman(*arguments, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout) > 100
