"""`llm_data_path`: whose deployments LLMRouter's candidates are, told when the file is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.litellm_config import Problem, check
from pointsman.litellm_config.candidates import parse_size, read_candidates
from pointsman.process.environment import candidate_aliases
from pointsman.settings import PointsmanSettings
from pointsman.strategies.matching import Names, names_of

MODELS = ["openai/gpt-4.1", "together_ai/mistralai/Mixtral-8x7B", "openai/other"]


def found(tmp_path: Path, text: str, models: list[str] = MODELS, **routing: Any) -> list[Problem]:
    (tmp_path / "llms.json").write_text(text)
    model_list = [{"model_name": "auto", "litellm_params": {"model": model, "api_key": "k"}} for model in models]
    strategy = {"source": "s3://b/current.json", "require_signature": False, "llm_data_path": "llms.json"}
    section = {"strategies": {"s": strategy}, "routing": {"default": "s", **routing}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model_list": model_list, "pointsman": section}))
    return check(path, {})


def lines(text: str, word: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if word in line)


@pytest.mark.requirement("R-2.4")
def test_names_aliases_and_everything_that_llmrouter_writes_is_taken(tmp_path: Path) -> None:
    entry = {
        "size": "8x7B",
        "feature": "a mixture",
        "input_price": 0.6,
        "output_price": 0,
        "service": "NVIDIA",
        "embedding": [1, 2],
    }
    data = {"gpt-4.1": {"size": 1800}, "mixtral": {**entry, "model": "together_ai/mistralai/Mixtral-8x7B"}, "x": {}}
    assert found(tmp_path, json.dumps(data), candidates={"x": "openai/other"}) == []
    section = {"strategies": {"s": {"source": "s3://b/k.json", "llm_data_path": str(tmp_path / "llms.json")}}}
    assert candidate_aliases(PointsmanSettings.load(section)) == {"s": {"mixtral": "together_ai/mistralai/Mixtral-8x7B"}}


@pytest.mark.requirement("R-2.4")
def test_unknown_and_missing_candidates_are_told_with_file_line_and_key(tmp_path: Path) -> None:
    text = json.dumps(
        {"gpt-4.1": {}, "mixtral-8X7b": {"size": "47B"}, "gone": {"size": "7B", "model": "openai/gone"}}, indent=2
    )
    problems = found(tmp_path, text)
    assert {problem.severity for problem in problems} == {"warning"}
    told = {(one.path.name, one.line, one.key): one.message for one in problems}
    assert told.pop(("llms.json", lines(text, "mixtral"), "mixtral-8X7b.model")).startswith("is taken for")
    assert "no deployment is 'openai/gone'" in told.pop(("llms.json", lines(text, "openai/gone"), "gone.model"))
    ((file, line, key),) = told
    assert (file, key) == ("config.yaml", "model_list[2].litellm_params.model")
    assert line is not None
    assert "no candidate 'openai/other'" in told[file, line, key]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("a", "input_price", -1),
        ("a", "output_price", "1"),
        ("a", "output_price", True),
        ("a", "size", "big"),
        ("a", "size", "-7B"),
        ("a", "size", 0),
        ("a", "model", 7),
        ("a", "model", " "),
        ("a", "model", "openai/taken"),
        ("a", "feature", ["x"]),
        ("a", "embedding", []),
        ("a", "embedding", [1, "2"]),
        ("a", "embedding", [1.0]),
    ],
)
def test_bad_values_are_errors(tmp_path: Path, name: str, key: str, value: Any) -> None:
    data = {"first": {"model": "openai/taken", "embedding": [1, 2]}, name: {"size": "7B", key: value}}
    text = json.dumps(data, indent=1)
    errors = [one for one in found(tmp_path, text) if one.severity == "error"]
    # The line of the second mention, where the value is that of both.
    number = [n for n, line in enumerate(text.splitlines(), 1) if f'"{key}"' in line][-1]
    assert [(one.code, one.path.name, one.line, one.key) for one in errors] == [("E4203", "llms.json", number, f"a.{key}")]


def test_what_stands_twice_is_an_error(tmp_path: Path) -> None:
    text = '{"a": {},\n "b": {"size": "7B",\n "size": "8B"},\n "a": {}}'
    errors = [(one.line, one.key) for one in found(tmp_path, text) if one.severity == "error"]
    assert (4, "a") in errors
    assert (3, "b.size") in errors


words = st.text('a"\\\n\u2028{}[],:', max_size=6)
values = st.recursive(
    words | st.integers(), lambda one: st.lists(one, max_size=3) | st.dictionaries(words, one, max_size=3), max_leaves=6
)


@settings(max_examples=60)
@given(st.dictionaries(words, st.dictionaries(words, values, max_size=4), max_size=4), st.sampled_from([None, 1, 4]))
def test_lines_are_those_of_the_keys(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any], indent: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    path.write_bytes(text.encode("utf-8", "replace"))
    candidates = read_candidates(path)
    rows = path.read_text("utf-8").split("\n")
    for place, line in candidates.lines.items():
        assert json.dumps(place if isinstance(place, str) else place[1], ensure_ascii=False) in rows[line - 1]


@pytest.mark.parametrize(
    ("text", "billions"),
    [
        ("7B", 7),
        ("1.5b", 1.5),
        ("350M", 0.35),
        ("8x7B", 56),
        ("1T", 1000),
        (70, 70),
        ("7", None),
        ("", None),
        (None, None),
        (float("nan"), None),
        ("0B", None),
    ],
)
def test_sizes(text: Any, billions: float | None) -> None:
    assert parse_size(text) == (None if billions is None else pytest.approx(billions))


def test_a_name_that_could_be_two_is_nobodys() -> None:
    names = Names(("a/Model", "b/model", "One"), {})
    assert names.find(names_of("id", "c/MODEL")) is None
    assert names.find(names_of("id", "a/Model")) == "a/Model"
    assert names.find(names_of("id", "x/one")) == "One"
    assert names.find(names_of("One", "x/two")) == "One"
    assert names.find(names_of("ONE", "x/two")) is None  # an id is exact
