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


BROKEN = """
import json, os, runpy, sys, types
import torch, transformers

class LLM:
    made = 0
    def __init__(self, **options):
        LLM.made += 1
    def generate(self, prompt, sampling_params):
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text="<answer>four")])]

tokenizer = types.SimpleNamespace(chat_template=None, encode=list)
transformers.AutoTokenizer.from_pretrained = lambda *_, **__: tokenizer
torch.cuda.is_available = lambda: True
sys.modules["vllm"] = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **_: None)
import llmrouter.models as models

told = {}
router = models.RouterR1(sys.argv[1])
told["RouterR1"] = [router.route_single({"query": "2 + 2"}) for _ in range(2)] + [LLM.made]
for name in ("GMTRouter", "TSRouter"):
    try:
        getattr(models, name)(sys.argv[1])
    except Exception as error:
        told[name] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"""


@pytest.mark.strategy("seen in LLMRouter", "router-r1", "gmt", "tsrouter")
def test_what_is_called_broken_is_broken(python: str, tmp_path: Path) -> None:
    """The reasons in the catalogue, seen in LLMRouter itself; vLLM and weights are not at hand: only their outside."""
    (tmp_path / "broken.py").write_text(BROKEN)
    config = tmp_path / "router.yaml"
    config.write_text(json.dumps({"hparam": {"model_id": "qwen", "api_base": "http://127.0.0.1:9", "api_key": "none"}}))
    done = subprocess.run(
        [python, str(tmp_path / "broken.py"), str(config)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["RouterR1"] == ["<answer>four</answer>", "<answer>four</answer>", 2], "text, and weights loaded for each query"
    assert "missing 1 required positional argument: 'model'" in told["GMTRouter"]
    assert "TSRouter" in told["TSRouter"]
    assert {entry.llmrouter for entry in CATALOGUE.values() if entry.broken} == told.keys()


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
