"""Answers that are none, as far as they are seen at a glance."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.custom_router.flaws import EMPTY, NO_TOOL_CALL, NOT_JSON, flaw_of, malformed

pytestmark = pytest.mark.requirement("F-6")

CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
JSON = {"response_format": {"type": "json_object"}}


def chat(finish: str = "stop", **message: Any) -> litellm.ModelResponse:
    body = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": None, **message}}
    return litellm.ModelResponse(choices=[body])


@pytest.mark.parametrize(
    ("answer", "asked", "flaw"),
    [
        (chat(content="hello"), {}, None),
        (chat(), {}, EMPTY),
        (chat(content=""), {}, EMPTY),
        (chat("length", content=""), {}, None),
        (chat("tool_calls", tool_calls=CALL), {}, None),
        (chat(content="hello"), {"tool_choice": "required"}, NO_TOOL_CALL),
        (chat(content="hello"), {"tool_choice": {"type": "function", "function": {"name": "f"}}}, NO_TOOL_CALL),
        (chat(content="hello"), {"tool_choice": "auto"}, None),
        (chat("tool_calls", tool_calls=CALL), {"tool_choice": "required"}, None),
        (chat(content="hello"), JSON, NOT_JSON),
        (chat(content='{"a": 1}'), JSON, None),
        (chat("length", content='{"a": '), JSON, None),
        (chat("tool_calls", tool_calls=CALL), JSON, None),
        (chat(content="x" * 70_000), JSON, None),
        (litellm.TextCompletionResponse(choices=[{"text": "hello", "finish_reason": "stop", "index": 0}]), {}, None),
        (litellm.TextCompletionResponse(choices=[{"text": "", "finish_reason": "stop", "index": 0}]), {}, EMPTY),
        (litellm.EmbeddingResponse(data=[{"embedding": [0.1], "index": 0, "object": "embedding"}]), {}, None),
        (litellm.EmbeddingResponse(data=[]), {}, EMPTY),
        ({"object": "response", "status": "completed", "output": []}, {}, EMPTY),
        ({"object": "response", "status": "in_progress", "output": []}, {}, None),
        ({"object": "response", "status": "completed", "output": [{"type": "message"}]}, {}, None),
        ({"choices": []}, {}, EMPTY),
        ({"type": "message", "content": []}, {}, None),
        (None, {}, None),
        ("text", {}, None),
    ],
)
def test_what_is_wrong_with_an_answer(answer: object, asked: dict[str, Any], flaw: str | None) -> None:
    assert flaw_of(answer, asked) == flaw


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "object", "output", "data", "text"]), inner)
    ),
    max_leaves=8,
)


@given(JSONS, st.dictionaries(st.sampled_from(["response_format", "tool_choice"]), JSONS))
def test_no_shape_makes_it_raise(answer: object, asked: dict[str, Any]) -> None:
    assert flaw_of(answer, asked) in (None, EMPTY, NOT_JSON, NO_TOOL_CALL)


def test_what_cannot_be_read_is_known_by_what_the_error_came_of() -> None:
    def read() -> None:
        try:
            json.loads("<html>")
        except ValueError as error:
            raise RuntimeError("no answer") from error

    with pytest.raises(RuntimeError) as raised:
        read()
    assert malformed(raised.value)
    assert not malformed(RuntimeError("no answer"))
