"""Encoders beside what they were made from: MiniLM in sentence-transformers, LLMRouter's Longformer function, mDeBERTa."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from support.llmrouter import run_module

pytestmark = [pytest.mark.slow("llmrouter"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    directory = tmp_path_factory.mktemp("encoders")
    done = run_module("support.encoders_side", directory, cwd=directory)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    print(json.dumps(result, indent=1))
    return result


def test_minilm_gives_what_sentence_transformers_gives(measured: Mapping[str, Any]) -> None:
    assert measured["minilm"]["fp32"]["least"] > 0.9999
    assert measured["minilm"]["int8"]["least"] > 0.99
    assert measured["minilm"]["int8"]["bytes"] < measured["minilm"]["fp32"]["bytes"] / 3
    assert measured["minilm"]["int8"]["alone"] <= 1e-6
    assert measured["minilm"]["fp32"]["alone"] <= 1e-6


def test_the_table_keeps_what_is_alike(measured: Mapping[str, Any]) -> None:
    assert measured["minilm"]["static"]["correlation"] > 0.7


def test_longformer_gives_what_llmrouter_gives(measured: Mapping[str, Any]) -> None:
    assert measured["longformer"]["difference"] < 1e-5


def test_mdeberta_gives_what_routerdc_sees(measured: Mapping[str, Any]) -> None:
    assert measured["deberta"]["difference"] < 1e-5


def test_the_table_is_quick(measured: Mapping[str, Any]) -> None:
    """Against the network on the same machine: a ratio, since machines differ."""
    for words in ("12", "60", "700"):
        assert measured["latency"]["static"][words][0] < measured["latency"]["minilm int8"][words][0] / 5
