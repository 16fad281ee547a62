"""Whatever a file holds, `check` answers; whatever is accepted is written so that it reads back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pointsman.litellm_config import InvalidConfigError, check, load, write_effective
from pointsman.litellm_config.tables import LLMROUTER_ARGUMENTS, ROUTER_SETTINGS, SECTIONS

pytestmark = pytest.mark.requirement("P-3")

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.binary(max_size=20)
OURS = """pointsman strategies routing default groups source shutdown grace model_name litellm_params model model_info id
    mock"""
WORDS = st.sampled_from(sorted({*SECTIONS, *LLMROUTER_ARGUMENTS, *ROUTER_SETTINGS, *OURS.split()}))
KEYS = WORDS | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["llmrouter-knn", "os.environ/X", "mock/a", "s3://b/k.json", "x.pkl", "llmrouter-svm"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("[]{}:,-#&*!|>'\"%@` \n\tab01?<", max_size=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


def answers(path: Path, env: dict[str, str]) -> None:
    problems = check(path, env)
    assert all(problem.message and problem.mend and str(problem) for problem in problems)
    if any(problem.severity == "error" for problem in problems):
        with pytest.raises(InvalidConfigError) as caught:
            load(path, env)
        assert list(caught.value.problems) == problems
        return
    config = load(path, env)
    written = write_effective(config, path.parent / "run")
    again = load(written, {name: value for name, value in env.items() if not name.startswith("POINTSMAN")})
    assert repr(again.effective) == repr(config.effective)  # repr: a NaN is not equal to itself
    assert write_effective(again, path.parent / "run").read_text().split("\n", 2)[2] == written.read_text().split("\n", 2)[2]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=6))
@example({"model_list": [{"model_name": "a", "litellm_params": {"model": "mock/a", "x": float("nan")}}]})
def test_any_structure(folder: Path, config: dict[str, Any]) -> None:
    path = folder / "structure.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    answers(path, {})


@settings(max_examples=200, deadline=None)
@given(TEXTS)
@example("a: &a\n  b: *a\n")
@example("<<: 5\n")
@example("? [a, b]\n: c\n")
@example("? {a: b}\n")
@example("a: !!python/name:os.system\n")
@example("!!map 5\n")
@example("include: ['.', 'c', '', 5, null, {}]\n")
def test_any_text(folder: Path, text: str) -> None:
    path = folder / "text.yaml"
    path.write_text(text, encoding="utf-8")
    answers(path, {})


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(folder: Path, content: bytes) -> None:
    path = folder / "bytes.yaml"
    path.write_bytes(content)
    answers(path, {})


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.lists(
            st.sampled_from(["STRATEGIES", "ROUTING", "SHUTDOWN", "GRACE", "GROUPS", "S3", "SOURCE", "KNN", "", "x"]),
            max_size=5,
        ).map(lambda parts: "POINTSMAN__" + "__".join(parts)),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
        | st.sampled_from(["{}", "null", "5"]),
        max_size=4,
    )
)
def test_any_environment(folder: Path, env: dict[str, str]) -> None:
    path = folder / "environment.yaml"
    path.write_text("model_list: [{model_name: a, litellm_params: {model: mock/a}}]\n")
    answers(path, env)


DEPLOYMENTS = st.lists(
    st.fixed_dictionaries(
        {
            "model_name": st.sampled_from(["a", "b"]),
            "litellm_params": st.fixed_dictionaries(
                {"model": st.sampled_from(["openai/x", "openai/y"]), "api_key": st.just("k")},
                optional={"timeout": st.integers(1, 3), "tags": st.lists(st.text(max_size=3), max_size=2)},
            ),
        }
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(DEPLOYMENTS, st.randoms(use_true_random=False))
def test_ids_are_unique_and_do_not_depend_on_the_order(folder: Path, entries: list[dict[str, Any]], order: Any) -> None:
    path = folder / "ids.yaml"

    def ids(items: list[dict[str, Any]]) -> list[str]:
        path.write_text(yaml.safe_dump({"model_list": items}), encoding="utf-8")
        return [entry["model_info"]["id"] for entry in load(path, {}).effective["model_list"]]

    first = ids(entries)
    assert len(set(first)) == len(first)
    shuffled = list(entries)
    order.shuffle(shuffled)
    assert sorted(ids(shuffled)) == sorted(first)
    for index in range(len(entries)):
        rest = entries[:index] + entries[index + 1 :]
        if entries[index] not in rest:  # the last of equal entries gives its id up, whichever is removed
            assert ids(rest) == first[:index] + first[index + 1 :]
