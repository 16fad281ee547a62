"""`mock/` models through LiteLLM's real router."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm.utils import custom_llm_setup

from pointsman.backends.mock import MockLLM, handler

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there {model}"}]


@pytest.fixture(autouse=True)
def _provider() -> Iterator[None]:
    before = litellm.custom_provider_map
    litellm.custom_provider_map = [{"provider": "mock", "custom_handler": MockLLM()}]
    custom_llm_setup()
    yield
    litellm.custom_provider_map = before


def router(*mocks: dict[str, Any] | None, retries: int = 0, **settings: Any) -> Any:
    models = [
        {
            "model_name": "m",
            "litellm_params": {"model": f"mock/x{n}", **({"mock": m} if m is not None else {})},
            "model_info": {"id": f"id-{n}"},
        }
        for n, m in enumerate(mocks)
    ]
    return litellm.Router(model_list=models, num_retries=retries, disable_cooldowns=True, **settings)


async def chat(target: Any, **more: Any) -> Any:
    return await target.acompletion(model="m", messages=MESSAGES, **more)


async def chunks(target: Any, **more: Any) -> list[Any]:
    return [chunk async for chunk in await chat(target, stream=True, **more)]


def text(parts: list[Any]) -> str:
    return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


async def test_it_answers_by_default() -> None:
    answer = await chat(router(None))
    assert answer.choices[0].message.content == "x0 says: hello there {model}"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 5, 10)
    assert answer.id.startswith("chatcmpl-")


async def test_ids_are_unique() -> None:
    target = router(None)
    answers = await asyncio.gather(*(chat(target) for _ in range(20)))
    streams = await asyncio.gather(*(chunks(target) for _ in range(5)))
    ids = [answer.id for answer in answers] + [stream[0].id for stream in streams]
    assert len(set(ids)) == 25
    assert all(len({chunk.id for chunk in stream}) == 1 for stream in streams)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{prompt}!", "hello there {model}!"),
        ("{model}: {prompt} ({model})", "x0: hello there {model} (x0)"),
        ("{", "{"),
    ],
)
async def test_the_answer_is_a_template_and_the_prompt_is_no_template(template: str, expected: str) -> None:
    target = router({"answer": template})
    assert (await chat(target)).choices[0].message.content == expected
    assert text(await chunks(target)) == expected


async def test_a_stream_has_words_a_reason_and_the_usage() -> None:
    parts = await chunks(router({"answer": "one two three"}), stream_options={"include_usage": True})
    assert [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content] == [
        "one",
        " two",
        " three",
    ]
    assert [part.choices[0].finish_reason for part in parts if part.choices and part.choices[0].finish_reason] == ["stop"]
    usage = next(part.usage for part in parts if getattr(part, "usage", None))
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 3)


async def test_max_tokens_cuts_the_answer() -> None:
    answer = await chat(router({"answer": "a b c d"}), max_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("a b", "length")


async def test_usage_may_be_dictated_and_costs_follow() -> None:
    models = [
        {
            "model_name": "m",
            "litellm_params": {
                "model": "mock/priced",
                "mock": {"usage": {"prompt_tokens": 1000, "completion_tokens": 10}},
                "input_cost_per_token": 0.001,
                "output_cost_per_token": 0.1,
            },
        }
    ]
    answer = await chat(litellm.Router(model_list=models))
    assert answer.usage.total_tokens == 1010
    assert answer._hidden_params["response_cost"] == pytest.approx(2.0)


async def test_parts_of_a_message_count_as_text() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"type": "text", "text": "here"},
    ]
    answer = await router({"answer": "{prompt}"}).acompletion(model="m", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == "look here"


async def test_delays() -> None:
    started = time.monotonic()
    await chat(router({"delay": 0.2}))
    assert time.monotonic() - started >= 0.2
    target = router({"answer": "a b c", "first_token_delay": 0.2, "chunk_delay": 0.1})
    started = time.monotonic()
    arrivals = [time.monotonic() - started async for _ in await chat(target, stream=True)]
    assert arrivals[0] >= 0.2
    assert arrivals[2] >= 0.4


async def test_it_hangs_until_the_time_out() -> None:
    for settings in ({"hang": True}, {"delay": 30}):
        for call in (chat, chunks):
            with pytest.raises(litellm.Timeout):
                await asyncio.wait_for(call(router(settings), timeout=0.2), 20)
    with pytest.raises(litellm.Timeout):
        await asyncio.wait_for(chunks(router({"answer": "a b", "chunk_delay": 30}), timeout=0.2), 20)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, litellm.BadRequestError),
        (401, litellm.AuthenticationError),
        (404, litellm.NotFoundError),
        (429, litellm.RateLimitError),
        (500, litellm.InternalServerError),
        (503, litellm.ServiceUnavailableError),
    ],
)
async def test_a_fault_has_the_status_that_was_asked_for(status: int, error: type[Exception]) -> None:
    target = router({"fail": {"status": status, "message": "as asked"}})
    for call in (chat, chunks):
        with pytest.raises(error, match="as asked") as caught:
            await call(target)
        assert getattr(caught.value, "status_code", None) == status


async def test_any_status_can_be_asked_for() -> None:
    with pytest.raises(litellm.APIError) as caught:
        await chat(router({"fail": {"status": 529}}))
    assert caught.value.status_code == 529


async def outcomes(target: Any, count: int) -> list[bool]:
    found = []
    for _ in range(count):
        try:
            await chat(target)
            found.append(True)
        except litellm.InternalServerError:
            found.append(False)
    return found


async def test_every_nth_call_fails() -> None:
    assert await outcomes(router({"fail": {"every": 3}}), 7) == [True, True, False, True, True, False, True]


async def test_a_rate_is_kept_and_can_be_repeated() -> None:
    first = await outcomes(router({"fail": {"rate": 0.3, "seed": 1}}), 60)
    litellm.custom_provider_map = [{"provider": "mock", "custom_handler": MockLLM()}]
    assert await outcomes(router({"fail": {"rate": 0.3, "seed": 1}}), 60) == first
    litellm.custom_provider_map = [{"provider": "mock", "custom_handler": MockLLM()}]
    assert await outcomes(router({"fail": {"rate": 0.3, "seed": 2}}), 60) != first
    assert 5 < first.count(False) < 35
    assert await outcomes(router({"fail": {"rate": 0}}), 5) == [True] * 5


async def test_deployments_are_counted_apart() -> None:
    target = router({"fail": {"every": 2}}, {"fail": {"every": 2}})
    by_id = [await target.acompletion(model=f"id-{n}", messages=MESSAGES) for n in (0, 1)]
    assert [answer.model for answer in by_id] == ["x0", "x1"]


async def test_a_cut_stream_gives_what_it_had_and_an_error() -> None:
    target = router({"answer": "a b c d", "cut_after": 2})
    got: list[Any] = []

    async def read() -> None:
        async for part in await chat(target, stream=True):
            got.append(part)  # noqa: PERF401 - what came before the cut must be kept

    with pytest.raises(litellm.exceptions.APIConnectionError, match="cut after 2"):
        await read()
    assert text(got) == "a b"


async def test_a_retry_reaches_the_other_deployment() -> None:
    target = router({"fail": {"status": 503}}, {"answer": "well"}, retries=8)
    answers = [(await chat(target)).choices[0].message.content for _ in range(3)]
    assert answers == ["well"] * 3


async def test_embeddings() -> None:
    target = router({"dimensions": 5})
    answer = await target.aembedding(model="m", input=["one two", "three", "one two"])
    vectors = [item["embedding"] for item in answer.data]
    assert [len(vector) for vector in vectors] == [5, 5, 5]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1)
    assert answer.usage.prompt_tokens == 5
    assert (await target.aembedding(model="m", input="one two")).data[0]["embedding"] == vectors[0]


async def test_a_caller_may_ask_for_a_fault_of_its_own() -> None:
    target = router({"answer": "fine"})
    with pytest.raises(litellm.RateLimitError):
        await chat(target, mock={"fail": {"status": 429}})
    assert (await chat(target)).choices[0].message.content == "fine"


@pytest.mark.parametrize("value", [{"delay": -1}, {"delay": 1e9}, {"nonsense": 1}, "text", {"fail": {"status": 200}}])
async def test_settings_that_make_no_sense_are_the_callers_mistake(value: Any) -> None:
    with pytest.raises(litellm.BadRequestError, match="mock"):
        await chat(router({}), mock=value)


def test_the_blocking_calls() -> None:
    target = router({"answer": "a b", "dimensions": 3})
    assert target.completion(model="m", messages=MESSAGES).choices[0].message.content == "a b"
    assert text(list(target.completion(model="m", messages=MESSAGES, stream=True))) == "a b"
    assert len(target.embedding(model="m", input=["x"]).data[0]["embedding"]) == 3


def test_counters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.backends.mock.MAX_COUNTERS", 3)
    mock = MockLLM()
    for number in range(9):
        mock._begin({"model": f"m{number}"})
    assert len(mock._calls) == 3


def test_the_named_instance() -> None:
    assert isinstance(handler, MockLLM)
