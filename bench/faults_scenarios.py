"""Of `bench.faults`: what goes wrong when, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AFTER", "DETECTION", "FAULT", "HEALTHY", "RATE", "SCENARIOS", "WARM", "Scenario", "Step"]

WARM, HEALTHY, FAULT = 1.5, 3.0, 6.0
"""Seconds: of load that counts for nothing, without a fault, with it (the default)."""
RATE = 48.0
"""Requests a second of all clients together: one that stock LiteLLM still serves with a processor's part to spare."""
AFTER = (3.0, 12.0)
"""Seconds after the fault, at least and at most; it ends when the deployments are back."""
DETECTION = 3.0
"""Seconds from a fault's beginning in which requests may fail: the goal allows none outside of them."""

ONE = ("pointsman", "stock", "tuned")
TIMED = ("pointsman", "pointsman-timed", "stock", "tuned")
TWO = ("pointsman-2", "tuned-2")


@dataclass(frozen=True, slots=True)
class Step:
    """What happens `at` (share of the fault's duration): `fault` at the doors (or None: off), or one of the other things.

    `thing`: `redis off`, `redis on`, `postgres off`, `postgres on`, `kill`, `clock` (then `seconds` ahead).
    """

    at: float
    fault: str | None = None
    thing: str = ""
    seconds: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of the table for each subject.

    Attributes:
        name: also of its model group.
        title: what happens, for the table.
        doors: whose upstreams are faulty.
        steps: in order.
        subjects: who is measured.
        remains: whether a healthy deployment, if only that of the fallback group, remains, so that the goals hold.
        longer: times the fault lasts as long as others' do.
        detection: seconds in which requests may fail.
    """

    name: str
    title: str
    doors: Sequence[str] = ("a",)
    steps: Sequence[Step] = field(default_factory=tuple)
    subjects: Sequence[str] = ONE
    remains: bool = True
    longer: float = 1.0
    detection: float = DETECTION


def _dead(name: str, title: str, fault: str, doors: Sequence[str] = ("a",), **more: Any) -> Scenario:
    return Scenario(name, title, doors, (Step(0, fault), Step(1)), **more)


def _flap(times: int) -> tuple[Step, ...]:
    whole = 2 * times - 1
    return tuple(Step(place / whole, "error" if place % 2 == 0 else None) for place in range(whole + 1))


_HOUR = 3600
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        _dead("refuse", "one refuses connections", "refuse"),
        _dead("hang", "one takes requests and never answers", "hang", subjects=TIMED, longer=2.5),
        _dead("error", "one answers 500", "error"),
        _dead("busy", "one answers 429, Retry-After 2", "busy"),
        _dead("garbage", "one answers 200 with garbage", "garbage"),
        _dead("cut-first", "one cuts answers off before the first token", "cut-first"),
        _dead("cut-middle", "one cuts answers off in the middle", "cut-middle"),
        _dead("drip", "one sends a word every 1.5 s", "drip", subjects=TIMED),
        Scenario("flapping", "one answers 500 every other 2 s", steps=_flap(3), longer=10 / 6),
        _dead("all", "all three answer 500; the fallback group is well", "error", ("a", "b", "c")),
        _dead("everything", "all three and the fallback group answer 500", "error", ("a", "b", "c", "spare"), remains=False),
        Scenario(
            "clock",
            "one answers 500; the wall clock goes an hour ahead, then back",
            steps=(
                Step(0, "error"),
                Step(1 / 3, thing="clock", seconds=_HOUR),
                Step(2 / 3, thing="clock", seconds=-_HOUR),
                Step(1),
                Step(1, thing="clock", seconds=0),
            ),
        ),
        Scenario("redis", "Redis is killed, and comes back", (), (Step(0, thing="redis off"), Step(1, thing="redis on")), TWO),
        Scenario(
            "postgres",
            "Postgres is killed, and comes back",
            (),
            (Step(0, thing="postgres off"), Step(1, thing="postgres on")),
            TWO,
        ),
        Scenario("instance", "one of two instances is killed with -9", (), (Step(0, thing="kill"),), TWO),
    )
}
