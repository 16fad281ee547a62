"""mf, hybrid, graph, personalized and routerdc against LLMRouter itself: trained by its own trainers, imported by ours.

The bundle is loaded here, where there is no torch, and must choose what LLMRouter's `route_single` chose, with its scores.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from pointsman.strategies.bundle import load_bundle
from support.llmrouter import run_module

pytestmark = [pytest.mark.slow("llmrouter"), pytest.mark.timeout(900)]

ORDERS = ("alphabetical", "cheap", "best")
HELD = 240


@pytest.mark.strategy("parity", "mf", "hybrid", "graph", "routerdc", "personalized")
@pytest.mark.parametrize("kind", ["mf", "hybrid", "graph", "personalized", "routerdc"])
def test_a_bundle_chooses_what_llmrouter_chooses(kind: str, tmp_path: Path) -> None:
    """In three orders of rows: every choice the same, scores within 1e-5, on 240 queries that it never saw."""
    done = run_module("support.llmrouter_latent", kind, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert importlib.util.find_spec("torch") is None, "the gateway's environment has no torch"
    distinct = []
    for order in ORDERS:
        result = json.loads((tmp_path / order / "result.json").read_text())
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
