"""LLMRouter's own routers, trained by LLMRouter, imported and compared with LLMRouter's own choices.

In each of three orders of rows, because LLMRouter's labels are the first of equal models, and so different routers come out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointsman.mlops.lsa import fit_tfidf
from pointsman.strategies.bundle import build_bundle, load_bundle, save_bundle
from pointsman.strategies.elo import EloStrategy
from pointsman.strategies.manifest import Provenance
from support.llmrouter import run_jobs, run_module

ORDERS = ("alphabetical", "cheap", "best")
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "knn": [
        {"n_neighbors": 5},
        {"n_neighbors": 7, "weights": "distance", "metric": "cosine"},
        {"n_neighbors": 6, "metric": "manhattan"},
        {"n_neighbors": 9, "algorithm": "kd_tree", "weights": "distance"},
    ],
    "svm": [
        {"C": 10.0},
        {"kernel": "linear", "C": 10.0},
        {"kernel": "poly", "degree": 2, "C": 10.0},
        {"kernel": "sigmoid", "C": 5.0},
        {"probability": True, "C": 3.0, "break_ties": True},
    ],
    "mlp": [
        {"hidden_layer_sizes": [32, 16], "epochs": 60},
        {"hidden_layer_sizes": [16], "activation": "tanh", "epochs": 60},
    ],
    "elo": [{}],
    "smallest": [{}],
    "largest": [{}],
}
CONSTANT = {"elo", "smallest", "largest"}
CASES = [(kind, number, order) for kind, settings in SETTINGS.items() for number in range(len(settings)) for order in ORDERS]

pytestmark = [pytest.mark.slow("llmrouter"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, str], dict[str, Any]]:
    """All of them, trained and imported in one process: importing LLMRouter takes seven seconds."""
    base = tmp_path_factory.mktemp("llmrouter")
    jobs = [
        {
            "kind": kind,
            "order": order,
            "hparam": SETTINGS[kind][number],
            "encoder": "hashing:64",
            "directory": str(base / f"{kind}-{number}-{order}"),
        }
        for kind, number, order in CASES
    ]
    return dict(zip(CASES, run_jobs(base, jobs), strict=True))


@pytest.mark.strategy("parity", "knn", "svm", "mlp", "elo", "smallest", "largest")
@pytest.mark.requirement("R-5.3")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_choice_is_llmrouters(results: dict[tuple[str, int, str], dict[str, Any]], case: tuple[str, int, str]) -> None:
    """Scored here, in the gateway's environment, which has neither torch nor scikit-learn's pickles."""
    result = results[case]
    assert "bundle" in result, result.get("message")
    bundle = load_bundle(Path(result["bundle"]), expect_name=f"llmrouter-{case[0]}")
    got = []
    for query in result["queries"]:
        scores = bundle.score(query)
        got.append(max(scores, key=scores.__getitem__))
        assert sorted(scores.values())[-1] > sorted(scores.values())[-2], "no tie is left for others to break"
    assert got == result["choices"], "agreement 1.000"
    proof = bundle.manifest.provenance.settings["imported"]["proof"]
    assert proof["agreement"] == 1.0
    assert proof["largest_difference"] <= proof["allowed"]
    assert proof["queries"] == len(got)
    assert proof["distinct_choices"] == len(set(got))
    if case[0] not in CONSTANT:
        assert len(set(got)) > 1, "agreement on a constant says nothing"
        assert proof["embedding_difference"] < 1e-6


def test_the_order_of_rows_decides_what_llmrouter_learns(results: dict[tuple[str, int, str], dict[str, Any]]) -> None:
    """Why our own trainers learn from scores: the same data, three orders, three different routers."""
    for kind in ("knn", "svm", "mlp", "elo"):
        assert len({tuple(results[kind, 0, order]["choices"]) for order in ORDERS}) == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One more, for the command line: its directory."""
    base = tmp_path_factory.mktemp("command")
    job = {"kind": "knn", "order": "cheap", "hparam": {"n_neighbors": 5}, "encoder": "hashing:64", "directory": str(base)}
    run_jobs(base, [job])
    return base


def command(base: Path, out: str, *more: str) -> tuple[str, ...]:
    return (
        *("strategies", "import", "--kind", "knn", "--llmrouter-config", str(base / "router.yaml")),
        *("--data", str(base / "held.jsonl"), "--out", str(base / out), *more),
    )


def test_the_command(trained: Path) -> None:
    done = run_module("pointsman.cli", *command(trained, "new", "--encoder", "hashing:64", "--trust-artifact"), cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "executing the code" in done.stderr
    assert load_bundle(Path(done.stdout.strip())).kind == "knn"


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--encoder", "hashing:64"), "E4205", "--trust-artifact"),
        (("--trust-artifact",), "E4204", "needs the encoder"),
        (("--encoder", "hashing:32", "--trust-artifact"), "E4321", "64 dimensions"),
        (("--encoder", "WRONG.zip", "--trust-artifact"), "E4321", "least cosine"),
    ],
    ids=["not-trusted", "no-encoder", "dimensions", "another-encoder"],
)
def test_what_cannot_be_proved_is_refused(trained: Path, more: tuple[str, ...], code: str, words: str) -> None:
    if "WRONG.zip" in more:
        texts = [json.loads(line)["query"] for line in (trained / "held.jsonl").read_text().splitlines()]
        content = build_bundle(
            name="elo",
            version="1",
            encoder=fit_tfidf(texts, 64),
            strategy=EloStrategy(("a", "b"), np.array([1.0, 2.0])),
            provenance=Provenance(code_version="0", seed=0, rows=0),
            probe_texts=["text"],
        )
        save_bundle(trained / "WRONG.zip", content)
        more = tuple(str(trained / part) if part == "WRONG.zip" else part for part in more)
    done = run_module("pointsman.cli", *command(trained, "refused", *more), cwd=trained)
    assert done.returncode == 1
    assert code in done.stderr, done.stderr
    assert words in done.stderr
    assert not (trained / "refused").exists()


def test_an_import_that_changes_one_choice_is_refused(tmp_path: Path) -> None:
    """An importer that gets a single label of the training set wrong, as a changed release of LLMRouter might make ours."""
    job = {"kind": "knn", "order": "cheap", "hparam": {"n_neighbors": 1}, "encoder": "hashing:64", "directory": str(tmp_path)}
    (result,) = run_jobs(tmp_path, [{**job, "tamper": True}])
    assert result["error"] == "E4321"
    assert "nothing was written" in result["message"]
    assert not (tmp_path / "out").exists()
