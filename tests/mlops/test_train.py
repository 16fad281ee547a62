"""Training: from a file to an evaluated bundle, the same each time, better than chance where there is something to learn."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointsman.errors import BundleError, SourceError
from pointsman.mlops.blas import threads
from pointsman.mlops.data import read_dataset
from pointsman.mlops.evaluate import Prices, evaluate
from pointsman.mlops.lsa import fit_tfidf
from pointsman.mlops.train import read_prices, train
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.encoders.hashing import HashingEncoder

SUBJECTS = {
    "strong": ["integral", "theorem", "proof", "lemma", "manifold", "derivative", "tensor", "prime", "matrix", "vector"],
    "cheap": ["bread", "butter", "apple", "recipe", "kitchen", "sugar", "coffee", "lemon", "salad", "dinner"],
}
FILLER = [
    "please",
    "tell",
    "me",
    "about",
    "the",
    "and",
    "of",
    "how",
    "what",
    "when",
    "which",
    "explain",
    "give",
    "some",
    "more",
]
PRICES = {"strong": Prices(10, 30), "cheap": Prices(0.5, 0.5)}


def rows(count: int, seed: int = 0, noise: float = 0.1) -> list[dict[str, Any]]:
    """Prompts of two subjects, each answered well by the model of its name; a tenth of the labels are wrong."""
    chance = random.Random(seed)
    result = []
    for number in range(count):
        subject = chance.choice(list(SUBJECTS))
        words = [*chance.choices(SUBJECTS[subject], k=4), *chance.choices(FILLER, k=8), f"nr{number}"]
        chance.shuffle(words)
        right = subject if chance.random() > noise else next(name for name in SUBJECTS if name != subject)
        scores = {name: float(name == right) for name in SUBJECTS}
        result.append({"id": f"q{number}", "query": " ".join(words), "task": subject, "scores": scores})
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows(600)).encode()))
    return path


@pytest.mark.requirement("R-5.3", "R-5.4", "R-5.5", "P-14")
@pytest.mark.parametrize("encoder", ["tfidf", "hashing"])
def test_it_learns_what_there_is_to_learn(data: Path, tmp_path: Path, encoder: str) -> None:
    path = train("knn", data, tmp_path, name="knn", encoder=encoder, prices=PRICES)
    bundle = load_bundle(path, expect_name="knn")
    assert path.name == f"knn-{bundle.version}.zip"
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    table = {line.name: line for line in evaluation.table}
    assert set(table) == {"strategy", "best_single", "cheapest", "random", "oracle", "knn"}
    assert table["strategy"].quality > table["best_single"].high, "clearly better than always the same"
    assert table["strategy"].quality > table["random"].high
    assert table["oracle"].quality == 1.0
    assert abs(table["random"].quality - 0.5) < 0.06
    assert all(line.low <= line.quality <= line.high for line in evaluation.table)
    assert table["cheapest"].model == "cheap"
    assert table["cheapest"].cost is not None
    assert table["strategy"].cost is not None
    assert table["cheapest"].cost < table["strategy"].cost
    assert evaluation.difference[1] > 0, "the interval of the gain over best single"
    assert evaluation.brier[0] < evaluation.brier[1]
    assert evaluation.rows == pytest.approx(120, abs=30)
    right = wrong = 0
    for row in rows(200, seed=99, noise=0):
        scores = bundle.score(row["query"])
        right += max(scores, key=scores.__getitem__) == row["task"]
        wrong += max(scores, key=scores.__getitem__) != row["task"]
    assert right > 9 * wrong, "and so on prompts that were never in the file"


@pytest.mark.requirement("R-5.4")
def test_the_card_says_the_same(data: Path, tmp_path: Path) -> None:
    bundle = load_bundle(train("knn", data, tmp_path, name="knn", prices=PRICES))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["sha256"] == bundle.sha256
    assert card["evaluation"]["rows"] == bundle.manifest.evaluation.rows  # type: ignore[union-attr]
    assert 1 < card["decision_us"]["p50"] <= card["decision_us"]["p99"] < 1e6, "microseconds, on this machine"
    costs = [point["cost"] for point in card["cost_weights"]]
    assert costs[-1] < costs[0], "the heavier cost weighs, the cheaper it gets"
    origin = bundle.manifest.provenance
    assert (origin.rows, origin.seed) == (600, 0)
    assert origin.data_sha256 == read_dataset(data).sha256


TRAIN = """
import sys
from pathlib import Path
from pointsman.mlops.train import train
print(train("knn", Path(sys.argv[1]), Path(sys.argv[2]), name="knn", seed=3))
"""


@pytest.mark.requirement("P-14")
def test_the_same_seed_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """In this process and in others with other hash seeds, and with one thread and several for linear algebra."""
    here = train("knn", data, tmp_path / "here", name="knn", seed=3)
    assert train("knn", data, tmp_path / "other-seed", name="knn", seed=4).name != here.name
    for seed, count in (("1", "1"), ("2", "2")):
        env = {**os.environ, "PYTHONHASHSEED": seed, "OPENBLAS_NUM_THREADS": count}
        out = subprocess.run(
            [sys.executable, "-c", TRAIN, str(data), str(tmp_path / seed)], env=env, capture_output=True, text=True, check=True
        )
        assert Path(out.stdout.strip()).read_bytes() == here.read_bytes()


def test_training_leaves_the_threads_of_linear_algebra_as_they_were(data: Path, tmp_path: Path) -> None:
    before, during = threads(), set()
    train("knn", data, tmp_path, name="knn", progress=lambda _: during.add(threads()))
    assert threads() == before
    assert during <= {1, None}, "None: NumPy is linked with another library"
    assert during


def test_no_prompt_stands_in_the_bundle(data: Path, tmp_path: Path) -> None:
    content = train("knn", data, tmp_path, name="knn").read_bytes()
    for row in rows(600):
        assert row["query"].encode() not in content
    assert b"manifold" not in content, "nor a word of them"


def test_little_data_is_not_evaluated_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows(30)))
    bundle = load_bundle(train("knn", path, tmp_path, name="knn"))
    assert bundle.manifest.evaluation is None
    assert "not evaluated" in json.loads((tmp_path / "card.json").read_text())["note"]


def test_scores_may_be_missing(tmp_path: Path) -> None:
    lines = rows(400)
    for number, row in enumerate(lines):
        if number % 3 == 0:
            del row["scores"]["strong" if number % 2 else "cheap"]
    path = tmp_path / "holes.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in lines))
    bundle = load_bundle(train("knn", path, tmp_path, name="knn"))
    assert bundle.manifest.evaluation is not None
    assert bundle.manifest.evaluation.rows < 80, "only rows with all scores judge"
    scores = bundle.score("prove the theorem about a matrix integral")
    assert scores["strong"] > scores["cheap"]


def test_rows_are_thinned_out(data: Path, tmp_path: Path) -> None:
    bundle = load_bundle(train("knn", data, tmp_path, name="knn", max_rows=200))
    assert bundle.manifest.provenance.rows == 200


@pytest.mark.parametrize("bad", [{"encoder": "unheard-of"}, {"holdout": 0.0}, {"holdout": 0.9}])
def test_bad_arguments(data: Path, tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as caught:
        train("knn", data, tmp_path, name="knn", **bad)
    assert caught.value.code == "E4320"


def test_a_directory_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SourceError) as caught:
        train("knn", data, tmp_path / "out", name="knn", settings={"k": 5})
    assert caught.value.code == "E4410"


@pytest.mark.requirement("R-2.4")
def test_prices_from_llmrouters_metadata(tmp_path: Path) -> None:
    path = tmp_path / "llm.json"
    path.write_text(json.dumps({"a": {"size": "7B", "input_price": 0.2, "output_price": "0.3"}, "b": {"size": "8B"}}))
    assert read_prices(path) == {"a": Prices(0.2, 0.3)}
    path.write_text("[]")
    with pytest.raises(BundleError):
        read_prices(path)


def test_the_projection_is_that_of_an_exact_decomposition() -> None:
    """The randomised decomposition against NumPy's: the same subspace and the same order, on what matters of it."""
    texts = [row["query"] for row in rows(900, seed=5)]
    encoder = fit_tfidf(texts, 16)
    assert encoder.dimensions == 16
    parts = encoder.arrays()
    dense = np.zeros((len(texts), len(parts["vocabulary"])), np.float32)
    for number, text in enumerate(texts):
        index, values = encoder.weights(text)
        dense[number, index] = values
    exact = np.linalg.svd(dense, full_matrices=False)[2][:12].T
    overlap = np.linalg.norm(parts["projection"].astype(np.float32).T @ exact, axis=0)
    assert overlap.min() > 0.95


def test_apgr_of_chance_and_of_an_oracle(data: Path) -> None:
    dataset = read_dataset(data)
    truth = dataset.scores
    groups = np.arange(len(dataset))
    arguments: dict[str, Any] = {"prices": PRICES, "split": "none", "refit": False, "seed": 0}
    skewed = dataset.scores.copy()
    skewed[:, 1] = np.maximum(skewed[:, 1], np.random.default_rng(0).random(len(dataset)) < 0.5)
    train_data = type(dataset)(dataset.queries, dataset.tasks, dataset.models, skewed, dataset.known, None, dataset.sha256)
    judged = evaluate(truth, train_data, groups, train_data, **arguments)
    chance = evaluate(
        np.random.default_rng(1).random(truth.shape).astype(np.float32), train_data, groups, train_data, **arguments
    )
    constant = evaluate(np.full(truth.shape, 0.5, np.float32), train_data, groups, train_data, **arguments)
    assert judged is not None
    assert chance is not None
    assert constant is not None
    assert judged.apgr is not None
    assert chance.apgr is not None
    assert judged.apgr > 0.8
    assert chance.apgr == pytest.approx(0.5, abs=0.08)
    assert constant.apgr == pytest.approx(0.5, abs=1e-6), "ties are one step, whatever their order"


@pytest.mark.slow("training")
def test_a_decision_is_quick(tmp_path: Path) -> None:
    """A hundred words against 6,500 rows, without the threads of a busy machine's BLAS deciding: a tenth of the deadline."""
    chance = random.Random(7)
    vocabulary = [f"w{number}" for number in range(4000)]
    texts = [" ".join(chance.choices(vocabulary, k=60)) for _ in range(800)]
    code = (
        "import sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "from pointsman.strategies.bundle import load_bundle\n"
        "bundle = load_bundle(Path(sys.argv[1]))\n"
        "times = []\n"
        "for _ in range(200):\n"
        "    start = time.perf_counter(); bundle.score(sys.argv[2]); times.append(time.perf_counter() - start)\n"
        "print(np.median(times) * 1e3)\n"
    )
    path = tmp_path / "data.jsonl"
    with path.open("w") as stream:
        for number in range(6500):
            query = texts[number % 800] + f" x{number} y{number} z{number % 97} " + " ".join(chance.choices(vocabulary, k=40))
            scores = {"a": chance.random(), "b": chance.random()}
            stream.write(json.dumps({"query": query, "scores": scores}) + "\n")
    bundle = train("knn", path, tmp_path, name="knn", settings={"k": 50}, refit=False)
    out = subprocess.run(
        [sys.executable, "-c", code, str(bundle), " ".join(chance.choices(vocabulary, k=100))],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(out.stdout) < 5.0, "milliseconds, median"


def shared(request: pytest.FixtureRequest) -> Path:
    """Real routing data beside the checkout, which are no part of the project."""
    named = os.environ.get("POINTSMAN_SHARED_DATA")
    path = (Path(named) if named else request.config.rootpath / ".." / "shared" / "data") / "routing_train.jsonl.gz"
    if not path.exists():
        pytest.skip(f"REAL DATA ABSENT, quality on them is NOT checked: {path.resolve()} (set POINTSMAN_SHARED_DATA)")
    return path


@pytest.mark.requirement("R-5.4")
@pytest.mark.slow("training")
def test_on_real_data_it_beats_chance_and_pretends_nothing(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = shared(request)
    started = time.process_time()
    prices = {"gpt-4-1106-preview": Prices(10, 30), "mixtral-8x7b-instruct": Prices(0.6, 0.6)}
    bundle = load_bundle(train("knn", path, tmp_path, name="knn", settings={"k": 100}, prices=prices))
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None
    table = {line.name: line for line in evaluation.table}
    assert table["strategy"].quality > table["random"].high
    assert table["strategy"].quality > table["cheapest"].high
    assert evaluation.apgr is not None
    assert evaluation.apgr > 0.58, "chance has 0.5"
    assert evaluation.brier[0] < 0.95 * evaluation.brier[1]
    low, high = evaluation.difference[1:]
    assert low < 0 < high, "within noise of always the best, as an honest table on these data says"
    assert bundle.size < 12 * 2**20
    assert time.process_time() - started < 120, "on one thread, whatever else the machine does"


def test_hashing_keeps_inner_products() -> None:
    texts = [row["query"] for row in rows(60, seed=8)]
    wide, narrow = HashingEncoder(65_536).encode(texts), HashingEncoder(2048).encode(texts)
    error = np.abs(wide @ wide.T - narrow @ narrow.T)
    assert error.mean() < 0.03
