"""Interpreters with a stand-in for LLMRouter, and its configuration files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.strategy import STRONG, WEAK

__all__ = ["router_file", "stand_in_python"]

STAND_IN = Path(__file__).with_name("stand_in_llmrouter")


def stand_in_python(directory: Path) -> str:
    """An environment of its own that has the stand-in and nothing else; the path of its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    (site,) = directory.glob("lib/python*/site-packages")
    (site / "stand-in.pth").write_text(f"{STAND_IN}\n")
    return str(directory / "bin" / "python")


def router_file(directory: Path, **hparam: Any) -> Path:
    """LLMRouter's YAML with the tests' two candidates, the strong one first; its data lie beside it, paths are relative."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "llm.json").write_text(json.dumps({name: {"size": "1B", "model": name} for name in (STRONG, WEAK)}))
    (directory / "routing.jsonl").write_text(json.dumps({"query": "q", "model_name": WEAK, "performance": 1.0}) + "\n")
    path = directory / "router.yaml"
    path.write_text(
        json.dumps({"data_path": {"llm_data": "llm.json", "routing_data_train": "routing.jsonl"}, "hparam": hparam})
    )
    return path
