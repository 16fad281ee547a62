"""A tenant who brings a key, a region or headers of its own cannot take an upstream from the others by having them refused."""

from __future__ import annotations

from typing import Any

import pytest

from pointsman.custom_router.breakers import Breakers
from pointsman.custom_router.kwargs import callers_connection
from pointsman.custom_router.request import Candidate
from pointsman.custom_router.verdicts import sink, verdict_on
from pointsman.decisions import Attempt
from pointsman.resilience_settings import BreakerSettings


@pytest.mark.parametrize(
    "data",
    [
        {"api_key": "sk-mine"},
        {"api_version": "1999"},
        {"aws_region_name": "nowhere-1"},
        {"vertex_location": "nowhere"},
        {"organization": "x"},
        {"extra_headers": {"Authorization": "nope"}},
        {"headers": {"HOST": "nowhere"}},
        {"extra_headers": {"X-Api-Key": "nope"}},
        {"extra_headers": {"x-trace": "1", "Transfer-Encoding": "chunked"}},
        {"provider_specific_header": {"custom_llm_provider": "openai", "extra_headers": {"authorization": "nope"}}},
    ],
)
def test_what_a_request_brings_for_the_connection(data: dict[str, Any]) -> None:
    assert callers_connection(data)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"model": "m", "messages": [], "temperature": 1, "api_key": None, "metadata": {"api_key": "x"}},
        {"extra_headers": {"traceparent": "00-1-2-01", "X-Request-Id": "1", "anthropic-beta": "b"}, "headers": {}},
        {"provider_specific_header": {"custom_llm_provider": "anthropic", "extra_headers": {"anthropic-beta": "b"}}},
        {"headers": None, "extra_headers": "no mapping"},
    ],
)
def test_what_is_no_matter_of_the_connection(data: dict[str, Any]) -> None:
    assert not callers_connection(data)


def attempt(status: int, *, own: bool, outcome: str = "error") -> Attempt:
    return Attempt("dec", 1, "a", "m", outcome, error="AuthenticationError", status=status, callers_connection=own)


@pytest.mark.requirement("F-3")
@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_its_failures_open_no_breaker(status: int) -> None:
    for own in (True, False):
        breakers = Breakers(BreakerSettings(), lambda: 0.0, lambda: 0.0)
        breakers.admit([Candidate("a", "m", ("a",), None, upstream="u")], [], "")
        for _ in range(5):
            sink(breakers)(attempt(status, own=own))
        assert breakers.states() == {"u": "closed" if own else "open"}
    assert verdict_on(attempt(200, own=True, outcome="ok")) == "good"
