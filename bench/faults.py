"""Upstreams, Redis, Postgres and instances fail under load: Pointsman beside stock LiteLLM, default and tuned, in one run.

    PYTHONPATH=tests python -m bench.faults     from the repository's root; `make bench-faults` does it and writes the table

    --scenarios error,hang   some of them            --subjects pointsman   some of them        --seconds 6   of a fault
    --rate 48                requests a second       --json FILE            the figures         --write       the table in
                                                                                                              docs/reliability.md

Each subject (see `bench.faults_subjects`) is booted with a model group for every scenario, so that no scenario meets what the
one before has left in a breaker or a cool-down. Each group has three deployments and a group of one to fall back on, at
upstreams in a process of their own (see `bench.faults_upstreams`). Thirty-two clients, half of them streaming, ask at a steady
pace that no side is busy with (see `bench.faults_load`). How it is counted stands in `bench.faults_figures`.

The exit status is 0 when Pointsman reached every goal, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg
import uvloop
from bench.faults_figures import Line, Run, line, rival, settled, verdicts
from bench.faults_load import Load, Upstreams, upstreams
from bench.faults_scenarios import AFTER, FAULT, HEALTHY, RATE, SCENARIOS, WARM, Scenario
from bench.faults_subjects import SUBJECTS, Clock, Subject, subject
from bench.faults_tables import write

from support.pg_cluster import PgCluster
from support.redis import RedisServer

__all__ = ["Report", "Stand", "failed_goals", "main", "measure"]

FLUSHED = 45.0
"""Seconds at most in which what was spent is written."""
WARM_UP, WARM_UP_TIME = "warm-up", 6.0
"""A model group, and seconds."""
CRASH_PROOF = {"fsync": "on", "full_page_writes": "on", "max_connections": "200"}


@dataclass(slots=True)
class Report:
    """What was measured.

    Attributes:
        lines: of the table.
        spend: by subject, dollars that the sums of its keys differ from its table of requests.
        versions: of what was measured.
        seconds: that it took.
        rate: requests a second.
        fault: seconds of a fault.
    """

    lines: list[Line]
    spend: dict[str, float]
    seconds: float = 0.0
    rate: float = 0.0
    fault: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Stand:
    """What every subject is measured against."""

    upstreams: Upstreams
    postgres: PgCluster
    redis: RedisServer
    clock: Clock | None
    rate: float
    fault: float
    after: tuple[float, float]

    def things(self, who: Subject) -> dict[str, Callable[[], Awaitable[object]]]:
        """What a scenario can do to other things than upstreams."""
        return {
            "redis off": lambda: asyncio.to_thread(self.redis.kill),
            "redis on": lambda: asyncio.to_thread(self.redis.start),
            "postgres off": lambda: asyncio.to_thread(lambda: self.postgres.stop(kill=True)),
            "postgres on": lambda: asyncio.to_thread(self.postgres.start),
            "kill": lambda: asyncio.to_thread(who.kill_instance, 0),
        }

    async def warm_up(self, who: Subject) -> None:
        """Requests that count for nothing: what a process does at its first ones it has done, with every key."""
        load = Load(who.urls, who.keys, WARM_UP, self.rate)
        load.begin()
        await asyncio.sleep(WARM_UP_TIME)
        await load.end()
        await self.upstreams.take(WARM_UP)

    async def run(self, scenario: Scenario, who: Subject) -> Run:
        """One scenario of one subject."""
        load = Load(who.urls, who.keys, scenario.name, self.rate)
        load.begin()
        await asyncio.sleep(WARM)
        healthy, used = time.monotonic(), await asyncio.to_thread(who.processor_time)
        await asyncio.sleep(HEALTHY)
        used = await asyncio.to_thread(who.processor_time) - used
        usual = await self.upstreams.counts(scenario.name)
        begun, lasts = time.monotonic(), self.fault * scenario.longer
        spans: list[tuple[float, float]] = []
        for step in scenario.steps:
            await asyncio.sleep(begun + step.at * lasts - time.monotonic())
            at = time.monotonic()
            if step.thing == "clock":
                assert self.clock is not None
                self.clock.ahead(step.seconds)
            elif step.thing:
                await self.things(who)[step.thing]()
            else:
                at = await self.upstreams.switch(scenario.doors, step.fault)
                if step.fault is None:
                    spans[-1] = (spans[-1][0], at)
                else:
                    spans.append((at, float("inf")))
        await asyncio.sleep(begun + lasts - time.monotonic())
        if not spans:
            spans = [(begun, time.monotonic())]
        await self._until_back(scenario, {door: usual.get(door, 0) / (WARM + HEALTHY) for door in scenario.doors})
        end = time.monotonic()
        await load.end()
        attempts = await self.upstreams.take(scenario.name)
        if any(step.thing == "kill" for step in scenario.steps):  # what it has to write it can only write when it is back
            await asyncio.to_thread(who.start_instance, 0)
        return Run(scenario, who.name, healthy, spans, end, load.answers, attempts, self.upstreams.sees_refused, used)

    async def _until_back(self, scenario: Scenario, rates: dict[str, float]) -> None:
        """Until every deployment has had half of its usual requests in a second, and half a second more; within `after`."""
        begun, missing = time.monotonic(), {door for door, rate in rates.items() if rate >= 1}
        before = await self.upstreams.counts(scenario.name)
        while time.monotonic() - begun < self.after[1] and (missing or time.monotonic() - begun < self.after[0]):
            await asyncio.sleep(1.0)
            now = await self.upstreams.counts(scenario.name)
            missing -= {door for door in missing if now.get(door, 0) - before.get(door, 0) >= rates[door] * 0.6}
            before = now
        await asyncio.sleep(0.5)


async def settle(who: Subject, runs: Sequence[tuple[Run, Line]], within: float) -> tuple[list[Line], float]:
    """The lines with what the books say, once all is written or nothing came for a while; and what the keys' sums lack.

    Args:
        who: whose books.
        runs: of it.
        within: seconds at most; 0: as they are.
    """
    begun, last, since = time.monotonic(), (-1, -1.0), time.monotonic()
    while True:
        try:
            rows, keys = await asyncio.to_thread(who.books.read)
        except psycopg.OperationalError as error:
            rows, keys = [], {}
            say(f"{who.name}: no books: {error}")
        ids = {row.id: 1 for row in rows if row.good}
        lines = [settled(found, run, ids) for run, found in runs]
        # Requests of the master key, and of keys that are not the clients', are nobody's here.
        apart = sum(keys.values()) - sum(row.spend for row in rows if row.token in keys)
        state = (len(rows), round(sum(keys.values()), 4))
        if state != last:
            last, since = state, time.monotonic()
        done = not any(one.lost for one in lines) and abs(apart) < 0.005 and len(keys) == len(who.keys)
        if done or time.monotonic() - begun > within or time.monotonic() - since > within / 2:
            return lines, round(apart, 4)
        await asyncio.sleep(0.5)


async def measure(
    folder: Path,
    *,
    names: Sequence[str],
    scenarios: Sequence[Scenario],
    rate: float = RATE,
    fault: float = FAULT,
    after: tuple[float, float] = AFTER,
) -> Report:
    """Run the scenarios for each of the subjects.

    Args:
        folder: an empty directory that everybody may enter.
        names: of the subjects.
        scenarios: of which each subject takes its own.
        rate: requests a second of all clients together.
        fault: seconds.
        after: seconds that are watched after a fault, at least and at most.
    """
    begun, report = time.monotonic(), Report([], {}, rate=rate, fault=fault)
    async with AsyncExitStack() as stack:
        doors = await stack.enter_async_context(upstreams())
        if not doors.sees_refused:
            say("no CAP_NET_RAW: refused connections are not counted")
        clock = None
        if any(step.thing == "clock" for scenario in scenarios for step in scenario.steps):
            clock = await asyncio.to_thread(Clock, folder / "clock")
        postgres = await asyncio.to_thread(lambda: PgCluster(folder / "postgres", CRASH_PROOF).start())
        stack.callback(postgres.stop)
        redis = await asyncio.to_thread(lambda: RedisServer(folder / "redis").start())
        stack.callback(redis.kill)
        stand = Stand(doors, postgres, redis, clock, rate, fault, after)
        for name in names:
            mine = [scenario for scenario in scenarios if name in scenario.subjects]
            if not mine:
                continue
            say(f"{name}: boots")
            groups = [WARM_UP, *(scenario.name for scenario in mine)]
            async with subject(name, folder, groups, doors.ports, postgres, redis, clock) as who:
                await stand.warm_up(who)
                runs = []
                for scenario in mine:
                    run = await stand.run(scenario, who)
                    runs.append((run, line(run)))
                    say(f"{name}: {scenario.name}: {brief(runs[-1][1])}")
                before, apart = await settle(who, runs, FLUSHED)
            lines, report.spend[name] = await settle(who, runs, 0.0)
            report.lines += lines
            say(f"{name}: {owed(before, apart)}, after its end {owed(lines, report.spend[name])}")
    report.seconds = round(time.monotonic() - begun, 1)
    return report


def owed(lines: Sequence[Line], apart: float) -> str:
    """What the books lack, or have too much."""
    return f"lost {sum(one.lost for one in lines)}, twice {sum(one.twice for one in lines)}, keys {apart:+.2f} $"


def brief(found: Line) -> str:
    """One line of progress."""
    values = {name: value for name, value in asdict(found).items() if name not in ("scenario", "subject", "lost", "twice")}
    return ", ".join(f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())


def failed_goals(report: Report) -> list[str]:
    """What Pointsman did not reach, in words."""
    by = {(one.scenario, one.subject): one for one in report.lines}
    found = []
    for one in report.lines:
        if one.subject.startswith("pointsman"):
            tuned = by.get((one.scenario, rival(one.subject)))
            goals = verdicts(one, SCENARIOS[one.scenario], tuned)
            found += [f"{one.subject}, {one.scenario}: {goal}" for goal, reached in goals.items() if not reached]
    return found + [
        f"{name}: spend differs by {apart} $" for name, apart in report.spend.items() if name.startswith("pointsman") and apart
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="names, with commas (default: all)")
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help="names, with commas (default: all)")
    parser.add_argument("--seconds", type=float, default=FAULT, help=f"that a fault lasts (default {FAULT:g})")
    parser.add_argument(
        "--rate", type=float, default=RATE, help=f"requests a second of all clients together (default {RATE:g})"
    )
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--keep", type=Path, help="an empty directory for logs and configurations, which is kept")
    parser.add_argument("--write", action="store_true", help="write the table into docs/reliability.md")
    chosen = parser.parse_args(arguments)
    names, wanted = chosen.subjects.split(","), chosen.scenarios.split(",")
    for what, known in ((names, SUBJECTS), (wanted, SCENARIOS)):
        if unknown := set(what) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    scenarios = [SCENARIOS[name] for name in wanted]
    if chosen.write and (set(names), set(wanted)) != (set(SUBJECTS), set(SCENARIOS)):
        parser.error("--write is for a whole run")
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as scratch:
        # Postgres may run as somebody else, who has to get there.
        Path(scratch).chmod(0o755)
        folder = chosen.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        report = uvloop.run(measure(folder, names=names, scenarios=scenarios, rate=chosen.rate, fault=chosen.seconds))
    missed = failed_goals(report)
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    print(write(report, missed, page=chosen.write))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
