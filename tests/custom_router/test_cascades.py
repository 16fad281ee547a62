"""Cascades without a gateway: what they ask, what they believe, and that no limit is passed, whatever models say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.cascade_settings import CascadeSettings
from pointsman.custom_router.cascades.automix import Automix
from pointsman.custom_router.cascades.limits import Limits, Step
from pointsman.custom_router.cascades.models import best_of, levels_of, named
from pointsman.custom_router.cascades.money import Purse, purses_of, spent_out
from pointsman.custom_router.cascades.multiround import MultiRound
from pointsman.custom_router.cascades.parse import Part, read_plan, read_verdict
from pointsman.custom_router.cascades.prompts import MAX_CONVERSATION, composing, part_question, planning, verification
from pointsman.custom_router.cascades.rules import unfit
from pointsman.custom_router.cascades.types import Ending, FailedCallError, Level, Messages, Role, Said, StopError
from pointsman.custom_router.request import Candidate, Prices

ID = "0123456789abcdef"
ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is two and two"}]
LEVELS = tuple(Level(f"openai/{name}", (name,), (name, f"openai/{name}")) for name in ("cheap", "middle", "strong"))


def grade(score: object, question: str = ID) -> str:
    return json.dumps({"id": question, "score": score})


# Verdicts and plans


@pytest.mark.parametrize(
    ("reply", "confidence"),
    [
        (grade(10), 1.0),
        (grade(0), 0.0),
        (grade(7.5), 0.75),
        (f"Let me think.\n```json\n{grade(3)}\n```", 0.3),
        (f"{grade(3)} so, again: {grade(3)}", 0.3),
        (f"{grade(3)} or rather {grade(9)}", None),
        (grade(10, "ffffffffffffffff"), None),
        (f"{grade(10, 'ffffffffffffffff')} {grade(2)}", 0.2),
        (grade(11), None),
        (grade(-1), None),
        (grade(True), None),
        (grade("10"), None),
        (f'{{"id": "{ID}", "score": NaN}}', None),
        (f'{{"id": "{ID}", "score": 5, "why": "good"}}', None),
        ('{"score": 10}', None),
        (f'{{"a": {grade(10)}}}', None),
        ("10", None),
        ("", None),
        ("{" * 100_000, None),
        ('{"a":' * 5_000, None),
    ],
)
def test_a_verdict_is_exactly_what_was_asked_for(reply: str, confidence: float | None) -> None:
    assert read_verdict(reply, ID) == confidence


@given(
    st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(json.dumps)
)
def test_whatever_is_said_is_read_without_an_error(reply: str) -> None:
    assert read_verdict(reply, ID) is None
    assert read_plan(reply, ID, max_parts=4, models=None) is None


def plan(parts: object, question: str = ID, **more: object) -> str:
    return json.dumps({"id": question, "parts": parts, **more})


@pytest.mark.parametrize(
    ("reply", "tasks"),
    [
        (plan([{"task": " a ", "model": "x"}]), [Part("a", "x")]),
        (f"Here: {plan([{'task': 'a', 'model': 'x'}, {'task': 'b', 'model': 'y'}])}", [Part("a", "x"), Part("b", "y")]),
        (plan([{"task": "a", "model": "z"}]), None),
        (plan([{"task": "a"}]), None),
        (plan([{"task": "", "model": "x"}]), None),
        (plan([{"task": "a", "model": "x", "note": 1}]), None),
        (plan([]), None),
        (plan([{"task": "a", "model": "x"}] * 3), None),
        (plan([{"task": "a", "model": "x"}], "ffffffffffffffff"), None),
        (plan([{"task": "a", "model": "x"}], extra=1), None),
        (plan([{"task": "a", "model": "x"}]) * 2, None),
        (plan("a"), None),
    ],
)
def test_a_plan_is_exactly_what_was_asked_for(reply: str, tasks: list[Part] | None) -> None:
    assert read_plan(reply, ID, max_parts=2, models=("x", "y")) == (tuple(tasks) if tasks is not None else None)


def test_where_a_bundle_chooses_parts_name_nobody() -> None:
    assert read_plan(plan([{"task": "a"}]), ID, max_parts=2, models=None) == (Part("a"),)
    assert read_plan(plan([{"task": "a", "model": "x"}]), ID, max_parts=2, models=None) is None


# What is asked


@given(st.text(), st.text())
def test_no_text_ends_its_own_quotation(question: str, answer: str) -> None:
    system, user = verification([{"role": "user", "content": question}], answer, ID)
    assert ID in system["content"]
    assert answer not in system["content"] or len(answer) < 20
    assert json.loads(user["content"]) == {"conversation": [{"role": "user", "text": question}], "answer": answer}


def test_long_conversations_are_shown_from_their_end() -> None:
    messages = [
        {"role": "user", "content": "a" * MAX_CONVERSATION},
        {"role": "user", "content": [{"type": "text", "text": "bb"}]},
    ]
    shown = json.loads(planning(messages, ID, 3, ("x",))[1]["content"])["conversation"]
    assert shown[1] == {"role": "user", "text": "bb"}
    assert shown[0]["text"] == "a" * (MAX_CONVERSATION - 2)


def test_parts_and_notes_keep_what_stands_before_the_request() -> None:
    for asked in (part_question(ASKED, Part("count")), composing(ASKED, [Part("count")], ["four"])):
        assert asked[0] == ASKED[0]
        assert asked[-1]["role"] == "user"
    assert '"four"' in asked[-1]["content"]
    assert '"what is two and two"' in asked[-1]["content"]


# Which requests


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, None),
        ({"temperature": 0, "stream": True, "tools": [], "tool_choice": "none", "n": 1, "logprobs": False}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"litellm_trace_id": "x", "user": "u"}, None),
        ({"stream": True, "stream_options": {"include_usage": True}, "_litellm_strip_stream_usage": True}, None),
        ({"success_callback": ["x"], "failure_callback": [], "litellm_disabled_callbacks": ["y"]}, None),
        ({"router_settings_override": {"num_retries": 1}, "_router_weights": None, "stream_timeout": 5.0}, None),
        ({"tools": [{}]}, "tools"),
        ({"tool_choice": "required"}, "tools"),
        ({"functions": [{}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "format"),
        ({"n": 2}, "parameter"),
        ({"logprobs": True}, "parameter"),
        ({"modalities": ["audio"]}, "parameter"),
        ({"api_base": "http://elsewhere"}, "parameter"),
        ({"mock": {}}, None),
    ],
)
def test_what_is_sent_along(body: dict[str, Any], reason: str | None) -> None:
    assert unfit("/v1/chat/completions", body, ASKED) == reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "not_chat"),
        ([{"role": "user", "content": " "}], "not_text"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], None),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], "not_text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "not_text"),
        ([{"role": "assistant", "tool_calls": [{}], "content": "a"}, {"role": "user", "content": "a"}], "tools"),
        ([{"role": "tool", "content": "a"}, {"role": "user", "content": "a"}], "tools"),
        ([{"role": "robot", "content": "a"}], "not_text"),
        (["a"], "not_text"),
    ],
)
def test_what_is_said(messages: list[Any], reason: str | None) -> None:
    assert unfit("/v1/chat/completions", {}, messages) == reason


@pytest.mark.parametrize("route", [None, "", "/v1/messages", "/v1/responses", "/v1/completions"])
def test_other_endpoints(route: str | None) -> None:
    assert unfit(route, {}, ASKED) == "not_chat"


# Models


def candidate(name: str, model: str, price: float | None) -> Candidate:
    prices = Prices(price, price) if price is not None else None
    return Candidate(name, model, (name, model), None, prices)


def test_models_are_ordered_by_price_or_as_told() -> None:
    candidates = [
        candidate("a", "dear", 3.0),
        candidate("b", "cheap", 1.0),
        candidate("c", "cheap", 2.0),
        candidate("d", "new", None),
    ]
    levels = levels_of(candidates, ())
    assert [(level.model, level.deployments) for level in levels] == [("cheap", ("b", "c")), ("dear", ("a",)), ("new", ("d",))]
    assert [level.model for level in levels_of(candidates, ("new", "nobody", "b", "c"))] == ["new", "cheap"]
    assert named(levels, "c") == levels[0]
    assert named(levels, None) is None


def test_a_bundle_chooses_among_those_it_knows_and_ties_go_to_the_cheaper() -> None:
    candidates = [candidate("a", "dear", 3.0), candidate("b", "cheap", 1.0), candidate("c", "new", 0.5)]
    assert best_of(candidates, {"dear": 0.5, "small": 0.5}, {"small": "cheap"}) == "cheap"
    assert best_of(candidates, {"dear": 0.6, "small": 0.5}, {"small": "cheap"}) == "dear"
    assert best_of(candidates, {"other": 1.0}, {}) is None


# Money


class Auth:
    token, max_budget, spend = "k", 1.0, 0.2
    team_id, team_max_budget, team_spend = "t", 5.0, 1.0
    user_id, user_max_budget, org_id, organization_max_budget = "u", 0.5, None, None


async def test_what_litellm_reserved_is_not_spent() -> None:
    entries = [{"counter_key": "spend:key:k", "reserved_cost": 0.7}]
    purses = purses_of({"user_api_key_auth": Auth(), "user_api_key_budget_reservation": {"entries": entries}})
    assert [(purse.counter, purse.budget, purse.reserved) for purse in purses] == [
        ("spend:key:k", 1.0, 0.7),
        ("spend:team:t", 5.0, 0.0),
    ]
    spend = {"spend:key:k": 0.9, "spend:team:t": 1.0}

    async def read(counter: str, known: float, **_: Any) -> float:
        return spend[counter]

    assert not await spent_out(purses, 0.0, read)
    assert not await spent_out(purses, 0.7, read)  # 0.2 before, 0.7 of its own, which LiteLLM has not counted yet
    assert await spent_out(purses, 0.8, read)
    spend["spend:key:k"] = 1.8  # counted by now, and others spend as well
    assert await spent_out(purses, 0.0, read)


async def test_a_budget_that_cannot_be_read_counts_as_spent() -> None:
    async def read(*_: Any, **__: Any) -> float:
        raise ConnectionError("redis")

    assert await spent_out((Purse("spend:key:k", 1.0),), 0.0, read)
    assert not await spent_out((), 0.0, read)
    assert purses_of({}) == ()


# The cascades themselves, over models that say what a function says


@dataclass
class Models:
    """An `Ask`: `say` gives the text, or None for a model that is down."""

    say: Callable[[str, Role, Messages], str | None]
    limits: Limits
    asked: list[tuple[str, Role]] = field(default_factory=list)
    cost: float = 0.0
    hangs: frozenset[tuple[str, Role]] = frozenset()
    running: int = 0

    async def __call__(
        self, level: Level, messages: Messages, role: Role, *, max_tokens: int | None = None, temperature: float | None = None
    ) -> Said:
        self.limits.begin()
        name = level.names[0]
        self.asked.append((name, role))
        self.running += 1
        try:
            await (asyncio.Event().wait() if (name, role) in self.hangs else asyncio.sleep(0))
        finally:
            self.running -= 1
        text = self.say(name, role, messages)
        if text is None:
            raise FailedCallError("Down")
        said = Said(text, level, name, cost=self.cost)
        self.limits.steps.append(Step(role, level.model, 1.0, said=said))
        return said


def question_of(messages: Messages) -> str:
    text = str(messages[0]["content"])
    return text[text.index('"id": "') + 7 :][:16]


def graded(*scores: object) -> Callable[[str, Role, Messages], str | None]:
    """Answers, and one grade after the other."""
    left = list(scores)

    def say(name: str, role: Role, messages: Messages) -> str | None:
        if role != "verify":
            return f"by {name}"
        score = left.pop(0)
        return None if score is None else grade(score, question_of(messages))

    return say


async def automix(say: Callable[[str, Role, Messages], str | None], **settings: Any) -> tuple[Ending, Models]:
    chosen = CascadeSettings(**settings)
    limits = Limits(chosen)
    models = Models(say, limits, cost=settings.pop("cost", 0.0))
    run = Automix(models, LEVELS, chosen, limits, named(LEVELS, chosen.verifier))
    try:
        return await run.run(ASKED), models
    except StopError as stop:
        return run.stopped(stop.reason), models


async def test_the_first_that_is_believed_answers() -> None:
    ending, models = await automix(graded(2, 8))
    assert ending.said is not None
    assert ending.said.text == "by middle"
    assert models.asked == [("cheap", "answer"), ("cheap", "verify"), ("middle", "answer"), ("middle", "verify")]


async def test_the_mean_of_the_samples_counts_and_nonsense_does_not() -> None:
    ending, _ = await automix(graded(10, "x", 5, 5, 5, 5), samples=3, threshold=0.75)
    assert ending.said is not None
    assert ending.said.text == "by cheap"
    ending, models = await automix(graded(10, None, 4, 7, 7, 7), samples=3, threshold=0.75)
    assert (ending.level, ending.fallback) == (LEVELS[-1], None)
    assert ending.detail["trials"][0]["confidence"] == pytest.approx(0.7)
    assert len(models.asked) == 8


async def test_another_verifier() -> None:
    _, models = await automix(graded(9), verifier="middle")
    assert models.asked == [("cheap", "answer"), ("middle", "verify")]


async def test_a_verifier_that_cannot_be_read_leaves_it_to_the_strongest() -> None:
    ending, _ = await automix(graded("?", "?"))
    assert (ending.level, ending.said, ending.fallback) == (LEVELS[-1], None, "verifier")


async def test_models_that_are_down_are_passed_over() -> None:
    ending, models = await automix(lambda name, role, _: None)
    assert (ending.level, ending.fallback) == (LEVELS[-1], "answer")
    assert models.asked == [("cheap", "answer"), ("middle", "answer")]


def test_the_end_when_something_runs_out() -> None:
    limits = Limits(CascadeSettings())
    run = Automix(Models(graded(), limits), LEVELS, CascadeSettings(), limits)
    assert run.stopped("deadline").level == LEVELS[-1]
    assert run.stopped("budget") == Ending(fallback="budget", detail=run.stopped("budget").detail)  # nobody may be asked


@given(
    st.lists(st.integers(0, 10) | st.sampled_from([None, "x", -3]), min_size=40, max_size=40),
    st.integers(1, 12),
    st.integers(1, 8),
    st.sampled_from([None, 0.5, 2.5]),
)
def test_no_limit_is_passed_and_there_is_always_an_end(
    scores: list[Any], max_calls: int, samples: int, max_cost: float | None
) -> None:
    async def run() -> None:
        ending, models = await automix(graded(*scores), max_calls=max_calls, samples=samples, max_cost=max_cost, threshold=0.6)
        assert len(models.asked) <= max_calls
        assert (ending.said is None) != (ending.level is None)

    asyncio.run(run())


def test_limits() -> None:
    now = [0.0]
    limits = Limits(CascadeSettings(max_calls=3, max_cost=1.0, deadline_ms=1000), clock=lambda: now[0])
    limits.begin()
    limits.steps.append(Step("answer", "m", 5.0, said=Said("x", LEVELS[0], "cheap", "stop", 10, 5, 0.4)))
    limits.begin()
    now[0] = 1.0
    with pytest.raises(StopError, match="deadline"):
        limits.begin()
    now[0] = 0.5
    limits.begin()
    with pytest.raises(StopError, match="max_calls"):
        limits.begin()
    limits.steps.append(Step("answer", "m", 5.0, said=Said("x", LEVELS[0], cost=0.6)))
    with pytest.raises(StopError, match="max_cost"):
        limits.begin()
    assert limits.summary() == "calls=3, prompt_tokens=10, completion_tokens=5, cost=1"
    assert limits.steps[0].as_json()["deployment"] == "cheap"


def rounds(say: Callable[[str, Role, Messages], str | None], **settings: Any) -> tuple[MultiRound, Models]:
    choose = settings.pop("choose", None)
    hangs = settings.pop("hangs", frozenset())
    chosen = CascadeSettings(**settings)
    limits = Limits(chosen)
    models = Models(say, limits, hangs=hangs)
    return MultiRound(
        models, LEVELS, chosen, limits, choose, named(LEVELS, chosen.planner), named(LEVELS, chosen.composer)
    ), models


def planned(*parts: tuple[str, str | None], down: Sequence[str] = ()) -> Callable[[str, Role, Messages], str | None]:
    def say(name: str, role: Role, messages: Messages) -> str | None:
        if role == "plan":
            items = [{"task": task} | ({"model": model} if model else {}) for task, model in parts]
            return plan(items, question_of(messages))
        asked = str(messages[-1]["content"])
        return None if name in down else f"{name} on {json.loads(asked[asked.index('{') :])['part']}"

    return say


async def test_each_part_goes_to_whom_the_planner_names() -> None:
    run, models = rounds(planned(("a", "openai/cheap"), ("b", "openai/middle")), planner="middle", composer="cheap")
    ending = await run.run(ASKED)
    assert (ending.level, ending.fallback) == (LEVELS[0], None)
    assert models.asked == [("middle", "plan"), ("cheap", "part"), ("middle", "part")]
    assert ending.messages is not None
    assert "cheap on a" in ending.messages[-1]["content"]
    assert "middle on b" in ending.messages[-1]["content"]


async def test_each_part_goes_to_whom_the_bundle_chooses() -> None:
    async def choose(task: str) -> Level | None:
        return {"a": LEVELS[1], "b": LEVELS[0]}.get(task)

    run, models = rounds(planned(("a", None), ("b", None)), choose=choose)
    assert (await run.run(ASKED)).fallback is None
    assert models.asked == [("strong", "plan"), ("middle", "part"), ("cheap", "part")]
    run, _ = rounds(planned(("a", None), ("c", None)), choose=choose)
    assert (await run.run(ASKED)).fallback == "no_candidate"


async def test_a_part_that_fails_ends_the_others() -> None:
    parts = (("a", "openai/cheap"), ("b", "openai/middle"))
    run, models = rounds(planned(*parts, down=["cheap"]), hangs=frozenset({("middle", "part")}))
    ending = await asyncio.wait_for(run.run(ASKED), 5)
    assert (ending.level, ending.messages, ending.fallback) == (LEVELS[-1], None, "part")
    assert models.running == 0


async def test_a_plan_for_which_there_are_no_calls_is_not_begun() -> None:
    run, models = rounds(planned(("a", "openai/cheap"), ("b", "openai/middle")), max_calls=2)
    with pytest.raises(StopError, match="max_calls"):
        await run.run(ASKED)
    assert models.asked == [("strong", "plan")]


async def test_when_the_budget_is_spent_the_parts_are_the_answer() -> None:
    run, _ = rounds(planned(("a", "openai/cheap"), ("b", "openai/middle")))
    await run.run(ASKED)
    ending = run.stopped("budget")
    assert ending.said is not None
    assert ending.said.text == "cheap on a\n\nmiddle on b"
    assert run.stopped("deadline").level == LEVELS[-1]
    fresh, _ = rounds(planned())
    assert fresh.stopped("budget").said is None
    assert fresh.stopped("budget").level is None
