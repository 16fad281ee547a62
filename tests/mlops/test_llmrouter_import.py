"""The importer without LLMRouter: what is refused before it is needed. The rest is in the slow shard `llmrouter`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pointsman.cli import cli
from pointsman.errors import BundleError, ConfigError
from pointsman.mlops.data import read_queries
from pointsman.mlops.llmrouter import IMPORTERS
from pointsman.mlops.llmrouter.run import import_strategy
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.catalogue import CATALOGUE
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.kinds import STRATEGIES


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps({"query": f"question {n % 30}", "user_id": n % 2}) + "\n" for n in range(90)))
    return path


def test_every_strategy_that_llmrouter_trains_and_a_bundle_serves_can_be_imported() -> None:
    served = {kind for kind, entry in CATALOGUE.items() if entry.serving == "bundle" and entry.llmrouter is not None}
    assert set(IMPORTERS) == served
    assert served <= set(STRATEGIES)
    for kind, importer in IMPORTERS.items():
        assert importer.name == CATALOGUE[kind].llmrouter


def test_queries_are_read_once_each(queries: Path) -> None:
    texts, users, digest = read_queries(queries, 500)
    assert (len(texts), len(set(texts)), set(users), len(digest)) == (30, 30, {"0", "1"}, 64)
    assert len(read_queries(queries, 7)[0]) == 7
    queries.write_text('{"query": "a"}\n{"question": "b"}\n')
    with pytest.raises(BundleError, match="line 2"):
        read_queries(queries, 5)


@pytest.mark.parametrize(
    ("kind", "yaml", "trust", "code"),
    [
        ("nothing", "{}", True, "E4206"),
        ("knn", "a: [", True, "E4201"),
        ("knn", "just text", True, "E4201"),
        ("knn", "{model_path: {load_model_path: /nowhere.pkl}}", False, "E4205"),
        ("knn", "{model_path: {load_model_path: /nowhere.pkl}}", True, "E4207"),
        ("smallest", "{}", False, "E4207"),
    ],
)
def test_what_is_refused(kind: str, yaml: str, trust: bool, code: str, queries: Path, tmp_path: Path) -> None:
    """E4207: there is no LLMRouter in the environment of these tests, as there is none in a gateway."""
    config = tmp_path / "router.yaml"
    config.write_text(yaml)
    with pytest.raises(ConfigError) as caught:
        import_strategy(kind, config, queries, tmp_path / "out", encoder=HashingEncoder(8), trust_artifact=trust)
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_few_queries_prove_nothing(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text("{}")
    (tmp_path / "held.jsonl").write_text('{"query": "one"}\n')
    with pytest.raises(BundleError, match="too few"):
        import_strategy("elo", tmp_path / "router.yaml", tmp_path / "held.jsonl", tmp_path, encoder=HashingEncoder(8))


def run(*arguments: str | Path) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout.strip(), result.exception


@pytest.mark.requirement("R-5.2")
def test_the_command_trains_each_kind_by_name(tmp_path: Path) -> None:
    """Settings as JSON or text, the encoder of an earlier bundle, and the kinds that learn from sizes alone."""
    rows = [{"query": f"text {n} about {'math' if n % 2 else 'cats'}", "scores": {"a": n % 2, "b": 0.5}} for n in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ("mlops", "train", "--data", tmp_path / "data.jsonl", "--out", tmp_path / "out")
    code, first, _ = run(*train, "--strategy", "knn", "--neighbours", "7")
    assert (code, load_bundle(Path(first)).manifest.params) == (0, {"k": 7})
    code, second, _ = run(*train, "--strategy", "linear", "--set", "link=logistic", "--set", "penalty=3", "--encoder", first)
    bundle = load_bundle(Path(second), expect_name="linear")
    assert (code, bundle.manifest.params) == (0, {"link": "logistic"})
    assert bundle.manifest.provenance.settings["penalty"] == 3.0
    assert bundle.manifest.encoder.sha256 == load_bundle(Path(first)).manifest.encoder.sha256
    (tmp_path / "llm.json").write_text('{"a": {"size": "7B"}, "b": {"size": "3B"}}')
    code, third, _ = run(
        "mlops", "train", "--strategy", "smallest", "--llm-data", tmp_path / "llm.json", "--out", tmp_path / "out"
    )
    assert (code, load_bundle(Path(third)).name) == (0, "llmrouter-smallest")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--strategy", "nothing", "--data", "x.jsonl"), "E4206"),
        (("--strategy", "knn"), "E4204"),
        (("--strategy", "knn", "--data", "x.jsonl", "--set", "k"), "E4203"),
        (("--strategy", "knn", "--data", "x.jsonl", "--set", "k=1", "--set", "k=2"), "E4203"),
        (("--strategy", "knn", "--data", "x.jsonl", "--set", "q=1"), "E4320"),
        (("--strategy", "knn", "--data", "x.jsonl", "--encoder", "missing.zip"), "E4404"),
        (("--strategy", "smallest"), "E4204"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: tuple[str, ...], code: str, tmp_path: Path) -> None:
    status, _, error = run("mlops", "train", *arguments, "--out", tmp_path / "out")
    assert status == 1
    assert getattr(error, "code", None) == code, error
    assert not (tmp_path / "out").exists()
