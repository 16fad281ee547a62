"""Streams: what their pieces are, and what becomes of one that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import litellm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litellm.exceptions import MidStreamFallbackError

from pointsman.custom_router.deployments import streaming
from pointsman.custom_router.failover.events import Reader
from pointsman.custom_router.failover.stop import StopError
from pointsman.custom_router.failover.streams import MAX_HELD, BrokenStreamError, FirstTokenTimeout, StreamGuard
from pointsman.custom_router.failover.trail import trail_of
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.resilience_settings import FailoverSettings

START = b'event: message_start\ndata: {"type":"message_start"}\n\n'
WORD = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"type":"text_delta","text":"hi"}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
ERROR = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'


def chunk(content: str | None = None, reason: str | None = None, **delta: Any) -> Any:
    return SimpleNamespace(choices=[SimpleNamespace(delta={"content": content, **delta}, finish_reason=reason)])


def event(kind: str) -> Any:
    return SimpleNamespace(type=kind)


def test_what_the_pieces_of_a_stream_are() -> None:
    chat, responses = Reader("acompletion"), Reader("aresponses")
    assert [chat.see(one) for one in (chunk(""), chunk("a"), chunk(tool_calls=[1]), chunk(reasoning_content="x"))] == [
        "around", "content", "content", "content",
    ]  # fmt: skip
    assert chat.see(chunk(None, "stop")) == "end"
    assert chat.see(SimpleNamespace(choices=[])) == "around"
    kinds = ["response.created", "response.output_item.added", "response.output_text.delta", "response.completed"]
    assert [responses.see(event(kind)) for kind in kinds] == ["around", "around", "content", "end"]
    assert [Reader("aresponses").see(event(kind)) for kind in ("response.failed", "error")] == ["error", "error"]
    assert [Reader("anthropic_messages").see(one) for one in (START, WORD, STOP, ERROR)] == [
        "around",
        "content",
        "end",
        "error",
    ]


@given(st.integers(1, len(WORD) - 1))
def test_an_event_that_comes_in_two_pieces_is_seen(cut: int) -> None:
    reader = Reader("anthropic_messages")
    assert "content" in [reader.see(START), reader.see(WORD[:cut]), reader.see(WORD[cut:])]


async def stream(*pieces: Any) -> AsyncIterator[Any]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        if isinstance(piece, float):
            await asyncio.sleep(piece)
        else:
            yield piece


class Stand:
    """A guard whose router gives these streams one after another."""

    def __init__(self, call: str = "anthropic_messages", **rules: Any) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failed: list[tuple[str, bool]] = []
        self.further: list[Any] = []
        self.ticket = Ticket()
        self.trail = trail_of(self.ticket)
        self.trail.call = call
        self.guard = StreamGuard(begin=self.begin)
        self.guard.bind(FailoverSettings(**rules), self.record)

    def record(self, ticket: Ticket, error: Exception, *, broken: bool) -> None:
        self.failed.append((type(error).__name__, broken))

    async def begin(self, data: dict[str, Any], call: str, caller: Any) -> Any:
        assert not self.trail.streaming  # or the hook would refuse it
        assert self.trail.again
        self.asked.append(data)
        next_ = self.further.pop(0)
        if isinstance(next_, Exception):
            raise next_
        return next_

    async def read(self, first: Any, *further: Any) -> list[Any]:
        self.further = list(further)
        token, got = CURRENT.set(self.ticket), []
        data = {"model": "g", "deployment": object(), "_litellm_x": 1, "metadata": {"a": 1}}
        try:
            async for piece in self.guard.async_post_call_streaming_iterator_hook(None, first, data):
                got.append(piece)  # noqa: PERF401 - what came before an error is kept
        except Exception as error:  # noqa: BLE001 - what a client is told, too
            got.append(error)
        finally:
            CURRENT.reset(token)
        return got


GOOD = (START, WORD, STOP)


async def test_a_whole_stream_passes_as_it_is() -> None:
    stand = Stand()
    assert await stand.read(stream(*GOOD)) == list(GOOD)
    assert (stand.failed, stand.asked) == ([], [])


@pytest.mark.requirement("L-8")
@pytest.mark.parametrize("before", [(), (START,), (START, ERROR), (b"garbage\n\n",), (START, ConnectionError("cut"))])
async def test_what_breaks_before_its_first_content_begins_anew_and_nothing_of_it_is_seen(before: tuple[Any, ...]) -> None:
    stand = Stand()
    assert await stand.read(stream(*before), stream(*GOOD)) == list(GOOD)
    assert [broken for _, broken in stand.failed] == [False]
    assert stand.asked == [{"model": "g", "metadata": {"a": 1}}]  # what LiteLLM put there of the first is gone


@pytest.mark.requirement("L-8")
async def test_what_breaks_after_it_ends_with_an_error_and_is_told() -> None:
    stand = Stand()
    got = await stand.read(stream(START, WORD, ConnectionError("cut")), stream(*GOOD))
    assert (got[:2], type(got[2])) == ([START, WORD], ConnectionError)
    assert stand.failed == [("ConnectionError", True)]
    assert stand.asked == []
    assert stand.trail.broken


async def test_a_stream_that_ends_without_its_end_is_broken_and_an_error_event_of_the_provider_passes() -> None:
    stand = Stand()
    got = await stand.read(stream(START, WORD))
    assert isinstance(got[-1], BrokenStreamError)
    assert stand.failed == [("BrokenStreamError", True)]
    stand = Stand()
    assert await stand.read(stream(START, WORD, ERROR)) == [START, WORD, ERROR]
    assert stand.failed == [("BrokenStreamError", True)]


async def test_no_content_in_time_is_a_break() -> None:
    stand = Stand(first_token=0.05)
    assert await stand.read(stream(START, 30.0, WORD), stream(*GOOD)) == list(GOOD)
    assert stand.failed == [(FirstTokenTimeout.__name__, False)]


async def test_it_is_begun_anew_as_often_as_is_allowed_and_the_last_error_is_told() -> None:
    stand = Stand(stream_tries=2)
    got = await stand.read(stream(), stream(), stream(START, ConnectionError("last")), stream(*GOOD))
    assert [str(one) for one in got] == ["last"]
    assert len(stand.failed) == 3


async def test_what_is_the_callers_fault_is_not_tried_again() -> None:
    stand = Stand()
    error = litellm.BadRequestError("too long", "m", "openai")
    assert await stand.read(stream(error), stream(*GOOD)) == [error]
    assert stand.asked == []


async def test_what_a_stream_broke_with_is_found_behind_litellms_envelope_and_our_refusal() -> None:
    cause = litellm.APIConnectionError("cut", "openai", "m")

    async def broken() -> AsyncIterator[Any]:
        yield START
        try:
            raise MidStreamFallbackError("x", "m", "openai", original_exception=cause)
        except MidStreamFallbackError:
            raise StopError("stream", None)  # noqa: B904 - as it happens in LiteLLM's handler

    stand = Stand(stream_tries=0)
    assert await stand.read(broken()) == [cause]
    assert stand.failed == [("APIConnectionError", False)]


async def test_a_stream_of_many_events_without_content_is_held_back_no_longer() -> None:
    stand = Stand()
    many = (START,) * (MAX_HELD + 1)
    assert await stand.read(stream(*many, STOP)) == [*many, STOP]


async def test_switched_off_it_lets_everything_pass() -> None:
    for rules in ({"enabled": False}, {"streams": False}):
        stand = Stand(**rules)
        assert await stand.read(stream(START, ERROR)) == [START, ERROR]


@pytest.mark.requirement("S-8")
def test_a_deployment_whose_streaming_is_off_gets_no_streamed_request() -> None:
    on, off = (
        {"model_info": {"id": name, **info}} for name, info in (("on", {}), ("off", {"pointsman": {"streaming": False}}))
    )
    assert streaming([on, off], {"stream": True}, "g") == [on]
    assert streaming([on, off], {}, "g") == [on, off]
    with pytest.raises(litellm.BadRequestError, match="E4012"):
        streaming([off], {"stream": True}, "g")


@pytest.mark.requirement("P-19")
async def test_who_is_told_that_the_upstream_hangs_gives_up_and_begins_anew() -> None:
    stand = Stand()

    async def hangs() -> AsyncIterator[Any]:
        yield START
        for _ in range(2):
            stand.trail.give_up()  # while the next piece is waited for
        await asyncio.sleep(30)

    read = stand.read(hangs(), stream(START, WORD, STOP))
    assert await asyncio.wait_for(read, 10) == [START, WORD, STOP]
    assert stand.failed == [("FirstTokenTimeout", False)]
    assert stand.trail.waits is None
    stand.trail.give_up()  # too late: nobody waits


@pytest.mark.requirement("P-19")
async def test_streams_that_are_not_guarded_have_to_begin_before_the_deadline() -> None:
    stand = Stand(call="atext_completion")
    stand.trail.deadline = stand.guard.now() + 0.05
    got = await asyncio.wait_for(stand.read(stream(10.0, START)), 5)
    assert [(type(one), getattr(one, "limit", None)) for one in got] == [(StopError, "deadline")]
    stand.trail.deadline = stand.guard.now() + 0.1
    assert await stand.read(stream(START, 0.2, WORD, STOP)) == [START, WORD, STOP], "it has begun, and goes on"
    assert await stand.read(stream()) == []
