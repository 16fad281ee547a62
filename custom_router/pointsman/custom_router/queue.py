"""Who may run now, who waits, who is refused: the priority queue as a pure function of its state and an event.

No clock, no asyncio, no I/O: `step` is told what time it is (monotonic seconds) and what happened, and returns the next state
and whom to tell what. `custom_router.turns` is the part that waits.

What holds after every step, whatever happened before:

- While anyone waits, everything that may run does (`len(running) >= limit`); nobody is admitted beyond `limit`.
- Within a class keys take turns, and requests of one key go in the order of arrival (`pointsman.custom_router.line`): one that
  has `j` of its own key before it goes after at most `j + 1` of each other key. Between classes HIGH goes before NORMAL before
  LOW, but nobody starves: the first of LOW is passed over at most `patience` times in a row, the first of NORMAL
  `patience + 1`, the first of HIGH twice (`bound`). So one that goes after `k` of its class is at the latest the
  `(k + 1) * (bound + 1)`th that is admitted.
- Each class has room of its own for `size` that wait, so that a flood of one class takes no room of another. Where there is
  none left, the newest of the key that has most gives way to one of a key that has fewer, by two or more.
- Whoever joined is told exactly one thing: that it may run, or why it may not; unless it leaves first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from pointsman.custom_router.line import Line, Priority, Waiting

__all__ = [
    "MIN_PATIENCE",
    "Admit",
    "Drain",
    "Effect",
    "Event",
    "Join",
    "Leave",
    "Priority",
    "QueueState",
    "Reason",
    "Refuse",
    "Resize",
    "Tick",
    "Waiting",
    "bound",
    "step",
]

MIN_PATIENCE = 2
"""With less, LOW and NORMAL would take turns for ever and HIGH would starve."""

HOLD_WEIGHT = 0.1
"""Of the newest request in the mean time that one holds its place."""

Reason: TypeAlias = Literal["full", "late", "closing"]


def bound(priority: Priority, patience: int) -> int:
    """How often in a row the first of a class may be passed over by others."""
    return {Priority.HIGH: 2, Priority.NORMAL: patience + 1, Priority.LOW: patience}[priority]


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue.

    Attributes:
        limit: how many may run at once.
        size: how many of each class may wait.
        patience: how often the first of LOW may be passed over; `MIN_PATIENCE` or more.
        running: id -> when it was admitted.
        waiting: by class.
        passed: by class, how often in a row its first was passed over.
        soonest: no deadline of those that wait is before it.
        hold: mean seconds for which a place is held (exponentially weighted), None before the first was given back.
        newest: id of the last that joined.
        closing: from then on nobody may wait or run, None while open.
    """

    limit: int
    size: int
    patience: int
    running: Mapping[int, float] = field(default_factory=dict)
    waiting: tuple[Line, ...] = (Line(),) * len(Priority)
    passed: tuple[int, ...] = (0,) * len(Priority)
    soonest: float = math.inf
    hold: float | None = None
    newest: int = -1
    closing: float | None = None

    def retry_after(self, priority: Priority) -> float:
        """Seconds until one more of a class might run, by Little's law: it and those before it, times mean hold, by limit."""
        before = sum(len(of_class) for of_class in self.waiting[: priority + 1])
        return (before + 1) * (self.hold or 0.0) / max(1, self.limit)


@dataclass(frozen=True, slots=True)
class Join:
    """A request arrives. Its id is higher than that of any before it, so that none can be there twice."""

    id: int
    priority: Priority
    deadline: float
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """A request ended, or gave up waiting. Of one that the queue does not know: nothing happens."""

    id: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The limit changes; those that run beyond a lower one stay."""

    limit: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Nobody may wait or begin from `until` on."""

    until: float


Event: TypeAlias = Join | Leave | Tick | Resize | Drain


@dataclass(frozen=True, slots=True)
class Admit:
    """It may run; it has waited so many seconds."""

    id: int
    priority: Priority
    waited: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """It may not run; seconds after which it may be worth to come again."""

    id: int
    priority: Priority
    reason: Reason
    retry_after: float


Effect: TypeAlias = Admit | Refuse


def step(state: QueueState, event: Event, now: float) -> tuple[QueueState, tuple[Effect, ...]]:
    """What follows from an event.

    Raises:
        ValueError: a limit under 1, or an id that does not rise; both are mistakes of the caller.
    """
    effects: list[Effect] = []
    match event:
        case Join():
            state = _join(_expire(state, now, effects), event, now, effects)
        case Leave():
            state = _leave(state, event.id, now)
        case Resize():
            if event.limit < 1:
                raise ValueError(f"a limit is 1 or more, and not {event.limit}")
            state = replace(state, limit=event.limit)
        case Drain():
            state = _drain(state, event.until)
        case Tick():
            pass
    # Late ones first: what is free goes to somebody who can still use it.
    return _admit(_expire(state, now, effects), now, effects), tuple(effects)


def _join(state: QueueState, event: Join, now: float, effects: list[Effect]) -> QueueState:
    if event.id <= state.newest:
        raise ValueError(f"{event.id} has joined already, or one after it")
    state = replace(state, newest=event.id)
    deadline = event.deadline if state.closing is None else min(event.deadline, state.closing)
    line = state.waiting[event.priority]
    reason: Reason | None = None
    if deadline <= now:
        reason = "closing" if state.closing is not None and state.closing <= now else "late"
    elif len(state.running) >= state.limit and len(line) >= state.size:
        if (gives_way := line.to_make_room(event.tenant)) is None:
            reason = "full"
        else:
            effects.append(Refuse(gives_way.id, event.priority, "full", state.retry_after(event.priority)))
            line = line.without(gives_way)
    if reason is not None:
        effects.append(Refuse(event.id, event.priority, reason, state.retry_after(event.priority)))
        return state
    line = line.join(Waiting(event.id, event.priority, now, deadline, event.tenant))
    return replace(state, waiting=_with(state.waiting, event.priority, line), soonest=min(state.soonest, deadline))


def _leave(state: QueueState, gone: int, now: float) -> QueueState:
    if gone in state.running:
        held = max(0.0, now - state.running[gone])
        hold = held if state.hold is None else state.hold + HOLD_WEIGHT * (held - state.hold)
        return replace(state, running={one: since for one, since in state.running.items() if one != gone}, hold=hold)
    if (place := next((one for of_class in state.waiting for one in of_class if one.id == gone), None)) is None:
        return state
    left = state.waiting[place.priority].without(place)
    # A new first has not been passed over yet, but its class has: keeping the count is better for it.
    passed = state.passed if left else tuple(0 if one == place.priority else state.passed[one] for one in Priority)
    return replace(state, waiting=_with(state.waiting, place.priority, left), passed=passed)


def _drain(state: QueueState, until: float) -> QueueState:
    until = until if state.closing is None else min(until, state.closing)
    waiting = tuple(of_class.until(until) for of_class in state.waiting)
    return replace(state, closing=until, waiting=waiting, soonest=min(state.soonest, until))


def _expire(state: QueueState, now: float, effects: list[Effect]) -> QueueState:
    """Refuse those whose deadline has come."""
    if now < state.soonest:
        return state
    closed = state.closing is not None and state.closing <= now
    split = [of_class.split(now) for of_class in state.waiting]
    waiting, late = tuple(left for left, _ in split), [one for _, gone in split for one in gone]
    soonest = min((one.deadline for of_class in waiting for one in of_class), default=math.inf)
    passed = tuple(count if left else 0 for count, left in zip(state.passed, waiting, strict=True))
    state = replace(state, waiting=waiting, passed=passed, soonest=soonest)
    reason: Reason = "closing" if closed else "late"
    effects.extend(Refuse(one.id, one.priority, reason, state.retry_after(one.priority)) for one in late)
    return state


def _admit(state: QueueState, now: float, effects: list[Effect]) -> QueueState:
    """Give away what is free."""
    free = state.limit - len(state.running)
    if free <= 0 or not any(state.waiting):
        return state
    running, waiting, passed = dict(state.running), [*state.waiting], state.passed
    while free > 0 and any(waiting):
        priority = _next(waiting, passed, state.patience)
        first, waiting[priority] = waiting[priority].next()
        running[first.id] = now
        effects.append(Admit(first.id, first.priority, max(0.0, now - first.arrived)))
        passed = tuple(
            count + 1 if waiting[other] and other != priority else 0 for other, count in zip(Priority, passed, strict=True)
        )
        free -= 1
    soonest = state.soonest if any(waiting) else math.inf
    return replace(state, running=running, waiting=tuple(waiting), passed=passed, soonest=soonest)


def _next(waiting: Sequence[Line], passed: tuple[int, ...], patience: int) -> Priority:
    """Whose turn it is: the lowest class whose patience is spent, else the highest class that waits."""
    overdue = [priority for priority in Priority if waiting[priority] and priority and passed[priority] >= patience]
    return max(overdue) if overdue else min(priority for priority in Priority if waiting[priority])


def _with(waiting: tuple[Line, ...], priority: Priority, line: Line) -> tuple[Line, ...]:
    return (*waiting[:priority], line, *waiting[priority + 1 :])
