"""Of `bench.faults`: from what clients and upstreams saw to a line of the table. No clock, no network.

How it is counted:

- **failed**: requests whose client did not get the whole text; share: of those asked while the fault lasted.
- **outside**: of them, those asked before the fault, or later than the seconds of detection after it first began.
- **dead attempts**: requests (or refused connections) that reached a faulty deployment while it was faulty.
- **added p50, p99**: of answers asked for while the fault lasted, less those of the healthy phase of the same run.
- **eject**: from the fault's beginning to the last attempt before the first pause of a second: what comes later are probes, or
  retries after a cool-down, which count as dead attempts.
- **return**: from the fault's end to the first second in which a deployment gets half of what it got when healthy, or more.
- **lost**: answers whose client got them whole and that are in no row of the table of requests. **Twice**: rows more than one
  of one question. **Spend**: dollars that the keys' sums differ from the rows'.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bench.faults_load import Answer, Attempt
from bench.faults_scenarios import Scenario

__all__ = ["Line", "Run", "back", "ejected", "line", "quantile", "rival", "settled", "verdicts"]

PAUSE = 1.0
"""Seconds without an attempt that tell of a deployment that is left alone."""
SHARE_FAILED, SHARE_DEAD = 0.01, 0.2
"""The goals: at most so many fail, and at most so many dead attempts, as a share of tuned stock LiteLLM's."""
BEFORE = 0.5
"""Seconds before a fault in which a request that it met may have been asked."""


@dataclass(frozen=True, slots=True)
class Run:
    """One scenario of one subject. Times are monotonic seconds.

    Attributes:
        healthy: since when requests count.
        spans: when the fault was on: (begin, end) each, the first beginning and the last end being the fault's.
        end: of the load.
        answers: by the clients, also of the time before `healthy`.
        attempts: at the upstreams.
        counted: whether refused connections could be counted.
        used: seconds of processor time of the gateway's processes, between `healthy` and the fault.
    """

    scenario: Scenario
    subject: str
    healthy: float
    spans: Sequence[tuple[float, float]]
    end: float
    answers: Sequence[Answer]
    attempts: Sequence[Attempt]
    counted: bool
    used: float = 0.0

    @property
    def begin(self) -> float:
        return self.spans[0][0]

    @property
    def off(self) -> float:
        return self.spans[-1][1]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table; None where there is nothing to say. Latencies and `cpu` of a request in ms, times in seconds.

    Attributes:
        each_second: attempts at the first faulty deployment, each second from the fault's beginning on.
    """

    scenario: str
    subject: str
    requests: int
    asked_while: int
    failed: int
    outside: int
    dead: int | None
    usual: float | None
    p50: float | None
    p99: float | None
    eject: float | None
    returned: float | None
    watched: float
    cpu: float | None = None
    each_second: tuple[int, ...] = ()
    lost: int = 0
    twice: int = 0
    clear: bool = True
    reasons: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.failed / max(1, self.asked_while)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def ejected(times: Sequence[float], begin: float, end: float) -> float | None:
    """Seconds from `begin` to the last of `times` before the first pause; 0: there is none; None: no pause came by `end`."""
    last = begin
    for at in [*sorted(at for at in times if begin <= at < end), end]:
        if at - last >= PAUSE:
            return last - begin
        last = at
    return None


def back(times: Sequence[float], off: float, end: float, rate: float) -> float | None:
    """Seconds from `off` to the first second, all of it before `end`, with half of `rate` attempts a second; None: not seen."""
    later = sorted(at for at in times if off <= at)
    for place, at in enumerate(later):
        if at + 1.0 > end:
            return None
        if sum(1 for other in later[place:] if other < at + 1.0) >= max(1.0, rate / 2):
            return at - off
    return None


def _usual(run: Run, share: float) -> float | None:
    good = [one.seconds for one in run.answers if not one.failure and run.healthy <= one.asked < run.begin - BEFORE]
    seconds = quantile(good, share)
    return None if seconds is None else round(seconds * 1000, 1)


def _added(run: Run, share: float) -> float | None:
    usual = _usual(run, share)
    then = quantile([one.seconds for one in run.answers if not one.failure and run.begin <= one.asked < run.off], share)
    return None if usual is None or then is None else round(then * 1000 - usual, 1)


def line(run: Run) -> Line:
    """What a run says; what the books say is added by `settled`."""
    scenario = run.scenario
    counted = [one for one in run.answers if one.asked >= run.healthy]
    failures = [one for one in counted if one.failure]
    outside = [one for one in failures if not run.begin - BEFORE <= one.asked <= run.begin + scenario.detection]
    ejects, returns = [], []
    for door in scenario.doors:
        times = [one.at for one in run.attempts if one.door == door]
        faulty = [one.at for one in run.attempts if one.door == door and one.faulty]
        ejects.append(ejected(faulty, *run.spans[0]))
        rate = sum(run.healthy <= at < run.begin for at in times) / (run.begin - run.healthy)
        if rate >= 1.0:  # one that nobody asks when all is well, as the fallback group, has nothing to return to
            returns.append(back(times, run.off, run.end, rate))
    blind = not run.counted and any(step.fault == "refuse" for step in scenario.steps)
    return Line(
        scenario=scenario.name,
        subject=run.subject,
        requests=len(counted),
        asked_while=sum(run.begin <= one.asked < run.off for one in counted),
        failed=len(failures),
        outside=len(outside),
        dead=None if blind or not scenario.doors else sum(one.faulty for one in run.attempts),
        usual=_usual(run, 0.5),
        p50=_added(run, 0.5),
        p99=_added(run, 0.99),
        eject=None if blind or None in ejects else max((one for one in ejects if one is not None), default=None),
        returned=None if None in returns else max((one for one in returns if one is not None), default=None),
        watched=run.end - run.off,
        cpu=_processor_time(run),
        each_second=_each_second(run),
        clear=all(one.clear for one in failures),
        reasons=dict(Counter(one.failure for one in failures).most_common()),
        notes=_notes(run, counted),
    )


def _each_second(run: Run) -> tuple[int, ...]:
    """Attempts at the first faulty deployment, each second from the fault's beginning on."""
    places = [int(one.at - run.begin) for one in run.attempts if one.door in run.scenario.doors[:1] and one.at >= run.begin]
    return tuple(places.count(second) for second in range(max(places, default=-1) + 1))


def _processor_time(run: Run) -> float | None:
    """Milliseconds of a request of the healthy phase."""
    count = sum(run.healthy <= one.asked < run.begin for one in run.answers)
    return round(run.used / count * 1000, 1) if count else None


def _notes(run: Run, counted: Sequence[Answer]) -> tuple[str, ...]:
    notes = []
    again = sum(one.again for one in counted)
    if again:
        notes.append(f"{again} asked again after a broken connection")
    if any(step.thing == "clock" for step in run.scenario.steps):
        farthest = max((abs(one.ahead) for one in counted), default=0.0)
        notes.append("the clock went" if farthest > 1800 else "VOID: the clock did not go")
    return tuple(notes)


def settled(found: Line, run: Run, ids: dict[str, int]) -> Line:
    """With the books: `ids` says how many rows of the table each answer's id has.

    A question may have rows that its client knows nothing of: an answer it gave up on, or one that broke in the middle.
    Only with an answer that it has got is a second one too many.
    """
    good = {one.number: one.id for one in run.answers if not one.failure}
    rows: Counter[int] = Counter()
    for attempt in run.attempts:
        rows[attempt.number] += ids.get(attempt.answer, 0)
    lost = sum(1 for answer in good.values() if not ids.get(answer))
    twice = sum(max(0, rows[number] - 1) for number in good)
    return replace(found, lost=lost, twice=twice)


def rival(subject: str) -> str:
    """The tuned LiteLLM that a subject's dead attempts are held against."""
    return "tuned-2" if subject.endswith("-2") else "tuned"


def verdicts(found: Line, scenario: Scenario, tuned: Line | None) -> dict[str, bool]:
    """Which goals a line of Pointsman's reaches; what does not apply is left out."""
    goals = {"books": found.lost == 0 and found.twice == 0, "measured": not any("VOID" in note for note in found.notes)}
    if scenario.remains:
        goals |= {"failed": found.share <= SHARE_FAILED, "outside": found.outside == 0}
    else:
        goals["clear"] = found.clear
    if found.dead is not None and tuned is not None and tuned.dead is not None and scenario.remains:
        goals["dead"] = found.dead <= tuned.dead * SHARE_DEAD
    return goals
