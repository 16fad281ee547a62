"""Waiting for a turn, on a real event loop: cancelled, hung up on, late or freed at any point, no place is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.custom_router.queue import Priority
from pointsman.custom_router.turns import QueueRefusedError, Turn, Turns
from pointsman.resilience_settings import LimitSettings, QueueSettings

HIGH, NORMAL, LOW = Priority


class Seen:
    """Remembers what it is told, and looks at the queues then."""

    def __init__(self) -> None:
        self.left: list[tuple[str, str, str]] = []
        self.most = 0
        self.turns: Turns | None = None

    def watch(self, settings: QueueSettings) -> Turns:
        self.turns = Turns(settings, self)
        return self.turns

    def queue_left(self, group: str, priority: str, result: str, seconds: float) -> None:
        assert seconds >= 0
        assert self.turns is not None
        self.left.append((group, priority, result))
        self.most = max(self.most, *(one["running"] for one in self.turns.status()["queues"]))


def running_and_waiting(turns: Turns, group: str | None = None) -> tuple[int, int]:
    found = next(one for one in turns.status()["queues"] if one["group"] == group)
    return found["running"], sum(of_class["waiting"] for of_class in found["classes"])


def queue(limit: int = 1, **changes: Any) -> QueueSettings:
    return QueueSettings(enabled=True, limit=LimitSettings(limit=limit), **changes)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def idle(turns: Turns) -> bool:
    return all(
        one["running"] == 0 and not any(of_class["waiting"] for of_class in one["classes"]) for one in turns.status()["queues"]
    )


def leaver() -> tuple[asyncio.Event, Callable[[], Awaitable[Any]]]:
    event = asyncio.Event()
    return event, event.wait


def test_classes_go_before_each_other_and_first_come_first_served() -> None:
    async def work() -> None:
        turns, order = Turns(queue()), []

        async def client(name: str, priority: Priority) -> None:
            turn = turns.turn("g", priority)
            try:
                await turn.take()
                order.append(name)
                await asyncio.sleep(0)
            finally:
                turn.free()

        await asyncio.gather(
            *(
                client(name, Priority[word])
                for name, word in zip("abcdef", ("LOW", "LOW", "NORMAL", "HIGH", "NORMAL", "HIGH"), strict=True)
            )
        )
        assert "".join(order) == "adfceb"
        assert idle(turns)

    run(work())


@pytest.mark.requirement("L-7")
@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("how", ["cancel", "free", "gone", "cancel and free", "cancel twice"])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("watched", [True, False])
def test_no_place_is_lost_wherever_a_request_ends(after: int, how: str, released: bool, watched: bool) -> None:
    """One runs, two wait; the first of them ends after so many rounds of the loop, at the time of the place or not."""
    if how == "gone" and not watched:
        return  # nobody would notice

    async def work() -> None:
        seen = Seen()
        turns = seen.watch(queue())
        holder, ending, next_one = (turns.turn("g", NORMAL) for _ in range(3))
        await holder.take()
        (left, gone), late = leaver(), False
        task = asyncio.create_task(ending.take(gone if watched else None))
        waits = asyncio.create_task(next_one.take(leaver()[1]))
        for _ in range(after):
            await asyncio.sleep(0)
        if released:
            holder.free()
        if "cancel" in how:
            task.cancel()
        if how == "cancel twice":
            await asyncio.sleep(0)
            task.cancel()
        if "free" in how:
            late = task.done()
            ending.free()
        if how == "gone":
            left.set()
        await asyncio.gather(task, return_exceptions=True)
        if how == "free" and not late:
            assert isinstance(task.exception(), QueueRefusedError), "it runs without a place"
        if task.cancelled() or task.exception() is not None:
            assert running_and_waiting(turns)[1] <= 1, "it still stands in the queue"
        ending.free()  # as the ASGI layer does, whatever became of it
        holder.free()
        await waits
        assert running_and_waiting(turns) == (1, 0)
        next_one.free()
        assert idle(turns)
        assert seen.most == 1
        assert len(asyncio.all_tasks()) <= 2, "a watch for the client's leaving is still there"

    run(work())


@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from(("join", "join", "cancel", "free", "gone", "round")), st.integers(0, 7), st.sampled_from(Priority)
        ),
        max_size=40,
    ),
)
@settings(max_examples=150, deadline=None)
def test_any_order_of_things_loses_no_place_and_leaves_nobody_waiting(
    limit: int, actions: list[tuple[str, int, Priority]]
) -> None:
    async def work() -> None:
        seen = Seen()
        turns = seen.watch(queue(limit, size=3))
        clients: list[tuple[Turn, asyncio.Event, asyncio.Task[None]]] = []
        for what, which, priority in actions:
            if what == "join":
                turn, (left, gone) = turns.turn("g", priority), leaver()
                clients.append((turn, left, asyncio.create_task(turn.take(gone))))
            elif what == "round":
                await asyncio.sleep(0)
            elif which < len(clients):
                turn, left, task = clients[which]
                if what == "cancel":
                    task.cancel()
                elif what == "free":
                    turn.free()
                else:
                    left.set()
        while any(not task.done() for _, _, task in clients):
            await settle()
            for turn, _, task in clients:
                if task.done():
                    turn.free()
        for turn, _, task in clients:
            turn.free()
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, QueueRefusedError)
        assert idle(turns)
        assert seen.most <= limit
        for result in ("admitted", "full", "late", "closing", "gone"):
            counted = sum(of_class["counts"].get(result, 0) for one in turns.status()["queues"] for of_class in one["classes"])
            assert counted == sum(one[2] == result for one in seen.left)

    asyncio.run(asyncio.wait_for(work(), 10))


def test_full_and_late_are_told_with_the_time_to_come_again() -> None:
    async def work() -> None:
        turns = Turns(queue(size=1, max_wait=0.05))
        holder, waiting, third = (turns.turn("g", LOW) for _ in range(3))
        await holder.take()
        task = asyncio.create_task(waiting.take())
        await settle()
        with pytest.raises(QueueRefusedError) as full:
            await third.take()
        assert (full.value.error.code, full.value.error.status, full.value.retry_after) == ("E4720", 429, 1)
        with pytest.raises(QueueRefusedError) as late:
            await task
        assert (late.value.error.code, late.value.error.status, late.value.retry_after) == ("E4721", 503, 1)
        holder.free()
        assert idle(turns)

    run(work())


def test_a_client_may_wait_shorter_and_not_longer_than_is_configured() -> None:
    async def work() -> None:
        turns = Turns(queue(max_wait=0.03))
        holder = turns.turn("g", NORMAL)
        await holder.take()
        for patience in (0.0, -5.0, 0.01, 3600.0):
            with pytest.raises(QueueRefusedError, match="E4721"):
                await turns.turn("g", HIGH, patience).take()
        holder.free()
        assert idle(turns)

    run(work())


def test_a_drain_tells_those_who_wait_and_those_who_come() -> None:
    async def work() -> None:
        turns = Turns(queue())
        holder, waiting = turns.turn("g", NORMAL), turns.turn("g", NORMAL)
        await holder.take()
        task = asyncio.create_task(waiting.take())
        await settle()
        turns.drain(0.03)
        assert not task.done(), "it still may have its turn until then"
        with pytest.raises(QueueRefusedError) as closing:
            await task
        assert (closing.value.error.code, closing.value.retry_after) == ("E4722", 1)
        with pytest.raises(QueueRefusedError, match="E4722"):
            await turns.turn("g", HIGH).take()
        holder.free()
        assert idle(turns)

    run(work())


def test_a_group_of_its_own_is_not_held_up_by_others() -> None:
    async def work() -> None:
        turns = Turns(queue(groups={"gpu": LimitSettings(limit=1)}))
        for group in ("gpu", "other"):
            await turns.turn(group, NORMAL).take()
        waits = asyncio.create_task(turns.turn("third", NORMAL).take())
        await settle()
        assert not waits.done()
        assert running_and_waiting(turns, "gpu") == (1, 0)
        assert running_and_waiting(turns) == (1, 1)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)

    run(work())


def test_an_adaptive_limit_falls_when_answers_take_longer_and_lets_more_run_when_it_grows() -> None:
    async def work() -> None:
        now = 0.0
        limit = LimitSettings(kind="adaptive", limit=8, least=2, most=64)
        turns = Turns(QueueSettings(enabled=True, limit=limit), clock=lambda: now)

        async def rounds(count: int, latency: float) -> int:
            nonlocal now
            for _ in range(count):
                places = []
                for _ in range(turns.status()["queues"][0]["limit"]):
                    places.append(turns.turn("g", NORMAL))
                    await places[-1].take()
                now += latency
                for place in places:
                    place.answered()
                    place.answered()
                for place in places:
                    place.free()
            found: int = turns.status()["queues"][0]["limit"]
            return found

        grown = await rounds(60, 0.6)
        assert grown > 16
        assert await rounds(60, 4.0) < grown
        assert idle(turns)

    run(work())


@pytest.mark.requirement("L-7")
@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 12))
def test_workers_share_what_an_instance_may(size: int, limit: int, workers: int) -> None:
    whole = QueueSettings(size=size, limit=LimitSettings(limit=limit), groups={"gpu": LimitSettings(limit=limit)})
    shares = [whole.share(worker, workers) for worker in range(workers)]
    for numbers, all_in_all, least in (
        ([one.limit.limit for one in shares], limit, 1),
        ([one.groups["gpu"].limit for one in shares], limit, 1),
        ([one.size for one in shares], size, min(1, size)),
    ):
        assert sum(numbers) == max(all_in_all, least * workers)
        assert max(numbers) - min(numbers) <= 1


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
def test_the_share_of_an_adaptive_limit_is_one(workers: int) -> None:
    whole = LimitSettings(kind="adaptive", limit=10, least=10, most=12)
    for worker in range(workers):
        share = whole.share(worker, workers)
        assert LimitSettings.model_validate(share.model_dump()) == share
