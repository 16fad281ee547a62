"""Training data: both shapes, and every bad line with its number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.mlops.data import read_dataset
from pointsman.mlops.duplicates import group, split


def write(path: Path, lines: list[Any]) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "query": f"question {number}", "task": "t", "scores": {"a": 1, "b": 0.5}, **changes}


def refused(path: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        read_dataset(path)
    assert caught.value.code == "E4320"
    return caught.value


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_our_shape(tmp_path: Path, name: str) -> None:
    rows = [row(number) for number in range(12)]
    rows[3]["scores"] = {"b": 0.25, "c": 1}
    rows[4]["costs"] = {"a": 0.01}
    data = read_dataset(write(tmp_path / name, rows))
    assert (len(data), data.models, data.queries[3], data.tasks[3]) == (12, ("a", "b", "c"), "question 3", "t")
    assert data.known[3].tolist() == [False, True, True]
    assert data.scores[3].tolist() == [0.0, 0.25, 1.0]
    assert data.costs is not None
    assert data.costs[4, 0] == 0.01
    assert np.isnan(data.costs[4, 1])
    assert data.take(np.array([3, 4])).queries == ("question 3", "question 4")


@pytest.mark.requirement("R-5.3")
@pytest.mark.parametrize("indent", [None, 2])
def test_llmrouters_array_for_routerdc(tmp_path: Path, indent: int | None) -> None:
    items = [{"question": f"q{number}", "scores": {"b": 0.5, "a": 1.0}, "cluster_id": number % 3} for number in range(12)]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(items, indent=indent))
    data = read_dataset(path)
    assert (data.models, data.queries[4], data.scores[4].tolist()) == (("a", "b"), "q4", [1.0, 0.5])
    path.write_text(json.dumps([*items, {"scores": {"a": 1}}, 5, {"question": "q", "scores": {"a": 2}}]))
    message = str(refused(path))
    assert "line 13" in message
    assert "line 14" in message
    assert "line 15" in message
    path.write_text("[1, 2")
    assert "not JSON" in str(refused(path))


def test_users(tmp_path: Path) -> None:
    """Told by either shape; the same prompt of two users is two observations."""
    data = read_dataset(write(tmp_path / "a.jsonl", [row(number, user="ann" if number else None) for number in range(12)]))
    assert data.users == (None, *["ann"] * 11)
    assert data.take(np.array([0, 3])).users == (None, "ann")
    assert read_dataset(write(tmp_path / "b.jsonl", [row(number) for number in range(12)])).users is None
    pairs = [
        {"query": f"q{number}", "user_id": user, "model_name": model, "performance": 1.0}
        for number in range(8)
        for user in (0, 1)
        for model in ("a", "b")
    ]
    data = read_dataset(write(tmp_path / "c.jsonl", pairs))
    assert len(data) == 16
    assert data.users is not None
    assert set(data.users) == {"0", "1"}
    assert "user" in str(refused(write(tmp_path / "d.jsonl", [row(number, user=["x"]) for number in range(12)])))


@pytest.mark.requirement("R-5.3")
def test_llmrouters_shape(tmp_path: Path) -> None:
    rows = [
        {"task_name": "t", "query": f"q{number}", "model_name": model, "performance": score, "embedding_id": 1, "token_num": 9}
        for number in range(10)
        for model, score in (("a", 1.0), ("b", 0.0), ("b", 1.0))
    ]
    data = read_dataset(write(tmp_path / "routing.jsonl", rows))
    assert (len(data), data.models) == (10, ("a", "b"))
    assert data.scores[0].tolist() == [1.0, 0.5], "several of one model count with their mean"
    assert data.known.all()


BAD: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ('{"query": "x", "query": "y", "scores": {"a": 1}}', "twice"),
    ('{"query": "x", "scores": {"a": NaN}}', "NaN"),
    ({"scores": {"a": 1}}, "`query`"),
    (row(1, query=""), "`query`"),
    (row(1, query=7), "`query`"),
    (row(1, scores={}), "`scores`"),
    (row(1, scores=[1]), "`scores`"),
    (row(1, scores={"a": 1.5}), "'a'"),
    (row(1, scores={"a": -0.1}), "'a'"),
    (row(1, scores={"a": True}), "'a'"),
    (row(1, scores={"a": "1"}), "'a'"),
    (row(1, scores={"": 1}), "name"),
    (row(1, costs={"a": -1}), "cost"),
    (row(1, costs=3), "`costs`"),
    ({"query": "x", "model_name": "a", "performance": 1}, "shape"),
]


@pytest.mark.parametrize(("bad", "says"), BAD)
def test_a_bad_line_is_named(tmp_path: Path, bad: Any, says: str) -> None:
    lines: list[Any] = [row(number) for number in range(12)]
    lines.insert(5, bad)
    error = refused(write(tmp_path / "data.jsonl", lines))
    assert "line 6" in error.message
    assert says in error.message


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    lines: list[Any] = [row(number) for number in range(40)]
    for number in range(2, 32):
        lines[number] = "{"
    error = refused(write(tmp_path / "data.jsonl", lines))
    assert "30 bad lines" in error.message
    assert "line 3:" in error.message
    assert "and 10 more" in error.message


def test_what_is_no_use(tmp_path: Path) -> None:
    assert "too few" in refused(write(tmp_path / "few.jsonl", [row(1)])).message
    assert "too few" in refused(write(tmp_path / "empty.jsonl", [])).message
    one = [row(number, scores={"a": 1}) for number in range(20)]
    assert "only one model" in refused(write(tmp_path / "one.jsonl", one)).message
    assert "cannot be read" in refused(tmp_path / "none.jsonl").message
    cut = write(tmp_path / "cut.jsonl.gz", [row(number) for number in range(500)])
    cut.write_bytes(cut.read_bytes()[:-200])
    assert "gzip" in refused(cut).message
    (tmp_path / "latin.jsonl").write_bytes('{"query": "é", "scores": {"a": 1}}\n'.encode("latin-1"))
    assert "line 1" in refused(tmp_path / "latin.jsonl").message


BASE = (
    "A train leaves the station at nine in the morning and travels sixty miles per hour to the north until it has covered {} "
    "miles, then it stops for lunch and goes on to the coast where the passengers get off"
)


def test_near_duplicates_are_found() -> None:
    texts = [BASE.format(number) for number in range(5)] + [
        "What is the capital of France?",
        "WHAT is the capital of france",
        "Why?",
    ]
    groups = group(texts)
    assert len(set(groups[:5].tolist())) == 1
    assert groups[5] == groups[6]
    assert len({groups[0], groups[5], groups[7]}) == 3


def test_prompts_that_share_a_template_only_are_not_duplicates() -> None:
    words = [f"word{number}" for number in range(400)]
    texts = ["Answer the following question: " + " ".join(words[20 * number : 20 * number + 20]) for number in range(20)]
    assert len(set(group(texts).tolist())) == 20


@given(st.lists(st.integers(0, 8), min_size=1, max_size=200), st.floats(0.05, 0.5), st.integers(0, 1000))
def test_a_group_is_never_on_both_sides(labels: list[int], share: float, seed: int) -> None:
    groups = np.array(labels)
    learn, held = split(groups, share, seed)
    assert not set(groups[learn]) & set(groups[held])
    assert sorted([*learn, *held]) == list(range(len(groups)))
    assert len(held) <= 1.25 * share * len(groups) + 1e-9
