"""The order of preference: a function of the scores, never of the file's order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.pick import match, order
from pointsman.custom_router.request import Candidate, candidate_of, text_of


def candidate(name: str, cost: float | None = None) -> Candidate:
    return Candidate(name, f"openai/{name}", (name, f"openai/{name}"), cost)


names = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


@given(names, st.data())
def test_order_is_a_permutation_sorted_by_score_and_independent_of_input_order(ids: list[str], data: st.DataObject) -> None:
    candidates = [candidate(name, data.draw(st.sampled_from([None, 1.0, 2.0]))) for name in ids]
    scores = {name: data.draw(st.sampled_from([0.0, 0.5, 1.0])) for name in ids if data.draw(st.booleans())}
    ranked = order(candidates, scores)
    assert sorted(ranked) == sorted(ids)
    values = [scores.get(name, float("-inf")) for name in ranked]
    assert values == sorted(values, reverse=True)
    assert order(data.draw(st.permutations(candidates)), scores) == ranked


def test_ties_go_to_the_cheaper() -> None:
    candidates = [candidate("dear", 30.0), candidate("cheap", 0.6), candidate("unknown", None)]
    assert order(candidates, {"dear": 0.5, "cheap": 0.5, "unknown": 0.5}) == ("cheap", "dear", "unknown")


def test_match_knows_ids_models_bare_names_and_aliases() -> None:
    one = candidate_of({"model_info": {"id": "d1"}, "litellm_params": {"model": "openai/gpt-4-1106-preview"}})
    two = candidate_of({"model_info": {"id": "d2"}, "litellm_params": {"model": "together_ai/mistralai/Mixtral-8x7B"}})
    three = candidate_of({"model_info": {"id": "d3"}, "litellm_params": {"model": "ollama/phi"}})
    matched, unmatched = match(
        [one, two, three], ["gpt-4-1106-preview", "mixtral"], {"mixtral": "together_ai/mistralai/Mixtral-8x7B", "none": "x"}
    )
    assert matched == {"d1": "gpt-4-1106-preview", "d2": "mixtral"}
    assert unmatched == ("d3",)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (None, ""),
        ([], ""),
        ([{"role": "system", "content": "s"}], ""),
        ([{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}], "hi"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}], "a"),
        ([{"role": "user", "content": "first"}, {"role": "user", "content": [{"type": "image_url"}]}], "first"),
        ([{"role": "user", "content": 3}], ""),
    ],
)
def test_text_of_takes_the_last_user_text(messages: list[dict[str, object]] | None, text: str) -> None:
    assert text_of(messages) == text
