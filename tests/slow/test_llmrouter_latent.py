"""mf, hybrid, graph, personalized and routerdc against LLMRouter itself: trained by its own trainers, imported by ours.

The bundle is loaded here, where there is no torch, and must choose what LLMRouter's `route_single` chose, with its scores.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pointsman.strategies.bundle import load_bundle
from support.llmrouter import run_module

pytestmark = [pytest.mark.slow("llmrouter"), pytest.mark.timeout(900)]

ORDERS = ("alphabetical", "cheap", "best")
HELD = 240
KINDS = ("routerdc", "graph", "personalized", "mf", "hybrid")
"""The one that takes longest first."""

Side = Mapping[str, tuple[Path, Future[subprocess.CompletedProcess[str]]]]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """Each kind's directory and LLMRouter's side of it, two at a time: they use one processor each."""
    with ThreadPoolExecutor(2) as pool:
        started = {}
        for kind in KINDS:
            directory = tmp_path_factory.mktemp(kind)
            started[kind] = (directory, pool.submit(run_module, "support.llmrouter_latent", kind, directory, cwd=directory))
        yield started


@pytest.mark.strategy("parity", "mf", "hybrid", "graph", "routerdc", "personalized")
@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_chooses_what_llmrouter_chooses(kind: str, sides: Side) -> None:
    """In three orders of rows: every choice the same, scores within 1e-5, on 240 queries that it never saw."""
    directory, side = sides[kind]
    done = side.result()
    assert done.returncode == 0, done.stderr[-4000:]
    assert importlib.util.find_spec("torch") is None, "the gateway's environment has no torch"
    distinct = []
    for order in ORDERS:
        result = json.loads((directory / order / "result.json").read_text())
        bundle = load_bundle(Path(result["bundle"]), expect_name=f"llmrouter-{kind}")
        queries, users = [row["query"] for row in result["queries"]], [row["user"] for row in result["queries"]]
        assert len(queries) == HELD
        got = bundle.score_batch(queries, users)
        wanted = np.array([[row[model] for model in bundle.models] for row in result["scores"]])
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)
        assert [bundle.models[column] for column in got.argmax(axis=1)] == result["choices"]
        one_by_one = [bundle.score(query, user) for query, user in zip(queries, users, strict=True)]
        assert [max(scores, key=scores.__getitem__) for scores in one_by_one] == result["choices"]
        assert set(result["scores"][0]) == set(bundle.models)
        proof = bundle.manifest.provenance.settings["imported"]["proof"]
        assert (proof["agreement"], proof["queries"]) == (1.0, HELD)
        assert proof["largest_difference"] <= proof["allowed"]
        distinct.append(len(set(result["choices"])))
    # A router that always chooses the same would agree with anything that does.
    assert min(distinct) >= 2, distinct
