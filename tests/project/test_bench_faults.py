"""The arithmetic of `bench.faults`, its table, and its upstreams: each fault is what it is called."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from bench.faults import Report, failed_goals
from bench.faults_figures import Line, Run, back, ejected, line, quantile, settled, verdicts
from bench.faults_load import Answer, Attempt, Load, upstreams
from bench.faults_scenarios import SCENARIOS, Scenario
from bench.faults_subjects import SUBJECTS, configuration
from bench.faults_tables import write

RATE = 20
PORTS = {"a": 1, "b": 2, "c": 3, "spare": 4}


def answer(number: int, asked: float, failure: str = "", seconds: float = 0.05, clear: bool = True) -> Answer:
    return Answer(number, 0, False, asked, seconds, failure, clear, f"id-{number}", 0.2, False, 0.0)


def attempts(begin: float, end: float, faulty: bool, door: str = "a") -> list[Attempt]:
    """`RATE` a second."""
    count = round((end - begin) * RATE)
    return [Attempt(begin + place / RATE, door, faulty, 0, False, f"{door}-{begin}-{place}") for place in range(count)]


def run(
    answers: Sequence[Answer], seen: Sequence[Attempt], scenario: Scenario = SCENARIOS["error"], subject: str = "pointsman"
) -> Run:
    """Healthy from 0, faulty from 10 to 16, watched to 26."""
    return Run(scenario, subject, 0.0, [(10.0, 16.0)], 26.0, answers, seen, True)


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(100)), 0.99) == 98
    assert quantile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([], 0.0),
        ([10.1, 10.2, 10.4], pytest.approx(0.4)),
        ([10.1, 10.2, 14.0], pytest.approx(0.2)),  # a probe, later
        ([10 + place / 2 for place in range(12)], None),
        ([9.0, 10.5, 16.5], 0.5),  # what lies outside is no matter
    ],
)
def test_who_is_left_alone_for_a_second_was_ejected(times: list[float], seconds: float | None) -> None:
    assert ejected(times, 10.0, 16.0) == seconds


def test_who_has_half_of_its_requests_is_back() -> None:
    probes = [16.2, 18.0]
    regular = [20 + place / RATE for place in range(60)]
    assert back([*probes, *regular], 16.0, 26.0, RATE) == pytest.approx(4.0)
    assert back(probes, 16.0, 26.0, RATE) is None
    assert back(regular, 16.0, 20.5, RATE) is None, "there was no whole second to see it in"


def test_a_line_says_what_happened() -> None:
    usual = [answer(number, number / RATE) for number in range(RATE * 10)]
    slower = [answer(1000 + number, 10 + number / RATE, seconds=0.07) for number in range(RATE * 6)]
    slower[3] = answer(1003, 10.2, "status 500")
    slower[119] = answer(1119, 15.9, "no answer in 30 s", clear=False)
    seen = attempts(0, 10, False) + attempts(10, 10.5, True) + attempts(18, 26, False) + attempts(10, 26, False, "b")
    found = line(run([*usual, *slower, answer(5000, -0.5, "status 500")], seen))
    assert (found.requests, found.asked_while, found.failed, found.outside, found.dead) == (320, 120, 2, 1, 10)
    assert (found.usual, found.p50, found.eject, found.returned) == (50.0, 20.0, pytest.approx(0.45), pytest.approx(2.0))
    assert found.reasons == {"status 500": 1, "no answer in 30 s": 1}
    assert not found.clear


def test_refused_connections_that_nobody_saw_are_not_said_to_be_none() -> None:
    unseen = run([], [], SCENARIOS["refuse"])
    unseen = Run(unseen.scenario, unseen.subject, 0.0, unseen.spans, 26.0, [], [], False)
    assert line(unseen).dead is None
    assert line(unseen).eject is None


def test_books_are_held_against_what_clients_got() -> None:
    answers = [answer(1, 11), answer(2, 11), answer(3, 11), answer(4, 11, "error event")]
    seen = [Attempt(11, "a", False, number, False, name) for number, name in [(1, "id-1"), (2, "id-2"), (2, "more"), (4, "x")]]
    one = run(answers, seen)
    found = settled(line(one), one, {"id-1": 1, "id-2": 1, "more": 1, "x": 1})
    assert found.lost == 1, "the third answer is in no row"
    assert found.twice == 1, "the second question has two; the fourth's client got nothing, so its row is no second one"


def made(scenario: str = "error", subject: str = "pointsman", **changes: Any) -> Line:
    figures: dict[str, Any] = {"requests": 900, "asked_while": 400, "failed": 0, "outside": 0, "dead": 6, "usual": 60.0}
    figures |= {"p50": 1.0, "p99": 2.0, "eject": 0.4, "returned": 5.0, "watched": 12.0}
    return Line(scenario, subject, **{**figures, **changes})


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"failed": 4}, set()),
        ({"failed": 5}, {"failed"}),
        ({"failed": 1, "outside": 1}, {"outside"}),
        ({"dead": 11}, {"dead"}),
        ({"lost": 1}, {"books"}),
        ({"twice": 1}, {"books"}),
        ({"notes": ("VOID: the clock did not go",)}, {"measured"}),
    ],
)
def test_goals(changes: dict[str, Any], missed: set[str]) -> None:
    goals = verdicts(made(**changes), SCENARIOS["error"], made(subject="tuned", dead=50))
    assert {goal for goal, reached in goals.items() if not reached} == missed


def test_where_nothing_remains_errors_have_to_be_clear() -> None:
    everything = made("everything", failed=400, outside=200, clear=True)
    assert all(verdicts(everything, SCENARIOS["everything"], None).values())
    goals = verdicts(made("everything", failed=400, clear=False), SCENARIOS["everything"], None)
    assert [goal for goal, reached in goals.items() if not reached] == ["clear"]


def test_the_table_marks_what_was_missed() -> None:
    report = Report(
        [made(dead=40), made(subject="tuned", dead=50), made(subject="stock", p50=None, eject=None)], {"pointsman": 0.2}
    )
    missed = failed_goals(report)
    assert missed == ["pointsman, error: dead", "pointsman: spend differs by 0.2 $"]
    text = write(report, missed, page=False)
    assert "| **Pointsman** | 900 | 0 (0.0%) | 0 | 40 ✗ |" in text
    assert "| LiteLLM, tuned | 900 | 0 (0.0%) | 0 | 50 |" in text
    assert "none answered" in text
    assert "never" in text


def test_every_subject_has_the_same_models_and_only_tuned_ones_are_tuned() -> None:
    files = {name: configuration(name, ["error"], PORTS) for name in SUBJECTS}
    assert all(file["model_list"] == files["stock"]["model_list"] for file in files.values())
    timed = files["pointsman-timed"]
    assert timed["router_settings"]["stream_timeout"] == files["tuned"]["router_settings"]["stream_timeout"]
    assert timed["pointsman"]["resilience"].keys() == {"failover"}
    assert {name for name, file in files.items() if "num_retries" in file["router_settings"]} == {"tuned", "tuned-2"}
    assert files["pointsman"].keys() - files["stock"].keys() == {"pointsman"}
    assert files["pointsman"]["pointsman"].keys() == {"shutdown"}, "resilience is as it comes"
    assert files["pointsman-2"]["general_settings"] == files["tuned-2"]["general_settings"]


FAULTS: dict[str | None, tuple[set[str], set[str]]] = {
    None: ({""}, {""}),
    "refuse": ({"connection: ClientConnectorError"}, {"connection: ClientConnectorError"}),
    "error": ({"status 500"}, {"status 500"}),
    "busy": ({"status 429"}, {"status 429"}),
    "garbage": ({"no chat completion"}, {"no event"}),
    "cut-first": ({"broken off: ClientPayloadError"}, {"broken off: ClientPayloadError"}),
    "cut-middle": ({"broken off: ClientPayloadError"}, {"broken off: ClientPayloadError"}),
}


async def test_upstreams_break_as_they_are_told() -> None:
    """Asked directly, without a gateway: clients tell every fault from an answer, and every attempt is counted once."""
    async with upstreams() as doors:
        for number, (fault, (plain, streamed)) in enumerate(FAULTS.items()):
            await doors.switch(["a"], fault)
            load = Load([f"http://127.0.0.1:{doors.ports['a']}/group{number}"], ["sk-none"], f"group{number}", rate=320.0)
            load.begin()
            await asyncio.sleep(0.15)
            await load.end()
            seen = await doors.take(f"group{number}")
            assert {one.failure for one in load.answers if not one.stream} == plain, fault
            assert {one.failure for one in load.answers if one.stream} == streamed, fault
            assert {one.faulty for one in seen} == {fault is not None}
            if fault == "refuse":
                # Each is asked twice; without the right to look at packets there is nothing to count.
                assert len(seen) in ({2 * len(load.answers)} if doors.sees_refused else {0})
            else:
                assert sorted(one.number for one in seen) == sorted(one.number for one in load.answers)
        await doors.switch(["a"], None)


async def test_one_that_hangs_takes_the_request_and_says_nothing() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "question 7"}]}
    async with upstreams() as doors, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as http:
        await doors.switch(["b"], "hang")
        with pytest.raises(TimeoutError):
            await http.post(f"http://127.0.0.1:{doors.ports['b']}/group/v1/chat/completions", json=body)
        assert [(one.door, one.faulty, one.number) for one in await doors.take("group")] == [("b", True, 7)]
