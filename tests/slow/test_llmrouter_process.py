"""LLMRouter itself, the real one, in a process of its own: it names what it names when it is called directly.

Longformer's weights are not at hand, so its embedding is replaced in both, by the vectors that the router was trained with.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pointsman.settings import ProcessSettings
from pointsman.strategies.base import UnavailableError
from pointsman.strategies.catalogue import CATALOGUE
from pointsman.strategies.remote.owner import Owner
from pointsman.strategies.remote.prepare import llmrouter_spec
from support.llmrouter import environment, run_jobs
from support.llmrouter_side import queries
from support.marks import ROOT

pytestmark = [pytest.mark.slow("llmrouter"), pytest.mark.timeout(600)]

KINDS: dict[str, dict[str, Any]] = {"knn": {"n_neighbors": 5}, "elo": {}, "smallest": {}}
PATCH = """
import torch
import llmrouter.utils
from pointsman.mlops.vectors import ready_encoder

encoder = ready_encoder("hashing:64")
llmrouter.utils.get_longformer_embedding = lambda text: torch.from_numpy(encoder.encode([text])[0])
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that sees the environment's packages, and another embedding."""
    directory = tmp_path_factory.mktemp("layered")
    base = environment()
    subprocess.run([str(base), "-m", "venv", "--without-pip", str(directory)], check=True)
    (site,) = directory.glob("lib/python*/site-packages")
    (below,) = base.parents[1].glob("lib/python*/site-packages")
    rooms = [str(ROOT / room) for room in ("core", "strategies", "mlops", "litellm_config")]
    (site / "patched_embedding.py").write_text(PATCH)
    (site / "layered.pth").write_text("\n".join([str(below), *rooms, "import patched_embedding"]) + "\n")
    return str(directory / "bin" / "python")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LLMRouter's routers, trained by LLMRouter; what each of them chose when called directly lies in its `result.json`."""
    base = tmp_path_factory.mktemp("trained")
    jobs = [
        {"kind": kind, "order": "cheap", "hparam": hparam, "encoder": "hashing:64", "directory": str(base / kind)}
        for kind, hparam in KINDS.items()
    ]
    run_jobs(base, jobs)
    return {kind: base / kind for kind in KINDS}


async def until_ready(owner: Owner) -> None:
    async with asyncio.timeout(240):
        while not owner.ready:
            assert not owner.status()["last_error"], owner.status()
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("kind", KINDS)
async def test_it_names_what_llmrouter_names(trained: dict[str, Path], python: str, tmp_path: Path, kind: str) -> None:
    result = json.loads((trained[kind] / "result.json").read_text())
    assert "choices" in result, result.get("message")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in trained[kind].iterdir())
    load = partial(asyncio.to_thread, llmrouter_spec, CATALOGUE[kind], trained[kind] / "router.yaml", tmp_path)
    owner = Owner(kind, ProcessSettings(python=python, deadline_ms=20_000, memory_mb=4_096), {}, tmp_path, load)
    began = time.monotonic()
    owner.start()
    try:
        await until_ready(owner)
        loaded = time.monotonic() - began
        named, took = [], []
        for _, text in queries(120, 3):
            started = time.perf_counter()
            (name,) = await owner.ask(text, None)
            took.append(time.perf_counter() - started)
            named.append(name)
        assert named == result["choices"], "agreement 1.000"
        assert kind != "knn" or len(set(named)) > 3, "agreement on a constant says nothing"
        status = owner.status()
        print(
            f"{kind}: loaded in {loaded:.1f} s, {status['rss_mb']} MiB resident, "
            f"p50 {sorted(took)[len(took) // 2] * 1000:.2f} ms of {len(took)} queries, LLMRouter {owner.about.version}"
        )
        assert (owner.about.version, status["restarts"]) == ("0.4.0", 0)
        assert set(named) <= set(owner.about.models)
        # What LLMRouter's constructor writes beside its data is in the process's own directory.
        assert sorted((path.name, path.stat().st_mtime_ns) for path in trained[kind].iterdir()) == before
        assert kind == "smallest" or list(tmp_path.rglob("*.csv"))
    finally:
        await owner.stop()


@pytest.mark.strategy("says what is missing", "causallm")
async def test_causallm_says_what_is_missing(trained: dict[str, Path], python: str, tmp_path: Path) -> None:
    """No GPU and no vLLM here: it is said at the start, and nothing is pretended."""
    load = partial(asyncio.to_thread, llmrouter_spec, CATALOGUE["causallm"], trained["elo"] / "router.yaml", tmp_path)
    owner = Owner("causallm", ProcessSettings(python=python), {}, tmp_path, load)
    owner.start()
    try:
        async with asyncio.timeout(240):
            while not owner.status()["last_error"]:  # noqa: ASYNC110 - a state of another process
                await asyncio.sleep(0.1)
        assert "No module named 'vllm', which CausalLMRouter needs" in owner.status()["last_error"]
        with pytest.raises(UnavailableError, match="vllm") as caught:
            await owner.ask("anything", None)
        assert caught.value.reason == "worker_broken"
    finally:
        await owner.stop()
