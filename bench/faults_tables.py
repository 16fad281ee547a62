"""Of `bench.faults`: the table, and its place in docs/reliability.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench.faults_figures import Line, rival, verdicts
from bench.faults_load import CLIENTS
from bench.faults_scenarios import DETECTION, SCENARIOS

if TYPE_CHECKING:
    from bench.faults import Report

__all__ = ["BEGIN", "END", "write"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- Written by `make bench-faults`; do not edit. -->", "<!-- The end of what `make bench-faults` writes. -->"
NAMES = {
    "pointsman": "**Pointsman**",
    "pointsman-timed": "**Pointsman**, time-outs",
    "stock": "LiteLLM, default",
    "tuned": "LiteLLM, tuned",
    "pointsman-2": "**Pointsman**, two instances",
    "tuned-2": "LiteLLM, tuned, two instances",
}


def _mark(text: str, goals: dict[str, bool], *names: str) -> str:
    """With a cross where a goal was missed."""
    return f"{text} ✗" if any(not goals.get(name, True) for name in names) else text


def _time(seconds: float | None, otherwise: str) -> str:
    return otherwise if seconds is None else f"{seconds:.1f} s"


def _row(one: Line, by: dict[tuple[str, str], Line]) -> str:
    scenario = SCENARIOS[one.scenario]
    ours = one.subject.startswith("pointsman")
    tuned = by.get((one.scenario, rival(one.subject))) if ours else None
    goals = verdicts(one, scenario, tuned) if ours else {}
    faulty = bool(scenario.doors)
    cells = [
        NAMES[one.subject],
        f"{one.requests}",
        _mark(f"{one.failed} ({one.share:.1%})", goals, "failed", "clear"),
        _mark(f"{one.outside}", goals, "outside"),
        _mark("not counted" if one.dead is None else f"{one.dead}", goals, "dead") if faulty else "",
        "" if one.usual is None else f"{one.usual:.0f} ms",
        "none answered" if one.p50 is None else f"{one.p50:+.0f} ms",
        "" if one.p99 is None else f"{one.p99:+.0f} ms",
        _time(one.eject, "never") if faulty else "",
        _time(one.returned, f"not in {one.watched:.0f} s") if faulty else "",
        _mark(f"{one.lost} / {one.twice}", goals, "books"),
    ]
    return "| " + " | ".join(cells) + " |"


def _tables(report: Report) -> list[str]:
    by = {(one.scenario, one.subject): one for one in report.lines}
    lines: list[str] = []
    head = "| | Requests | Failed | Outside | Dead attempts | Usual p50 | p50 | p99 | Eject | Return | Lost / twice |"
    for name, scenario in SCENARIOS.items():
        rows = [one for one in report.lines if one.scenario == name]
        if rows:
            title = scenario.title[0].upper() + scenario.title[1:]
            lines += [f"**{title}** (`{name}`)", "", head, "|-|-|-|-|-|-|-|-|-|-|-|", *(_row(one, by) for one in rows), ""]
            told = [(one, [*(f"{count} x {why}" for why, count in one.reasons.items()), *one.notes]) for one in rows]
            said = [f"{NAMES[one.subject].replace('*', '')}: {', '.join(words)}" for one, words in told if words]
            if said:
                lines += ["; ".join(said) + ".", ""]
    return lines


def _processor() -> str:
    for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.machine()


def write(report: Report, missed: Sequence[str], *, page: bool) -> str:
    """The text; with `page` it also replaces what stands between the marks of docs/reliability.md.

    Raises:
        ValueError: the page has no marks.
    """
    dead = {
        who: sum(one.dead or 0 for one in report.lines if one.subject == who and SCENARIOS[one.scenario].remains)
        for who in ("pointsman", "stock", "tuned")
    }
    spend = ", ".join(f"{NAMES[who].replace('*', '')} {apart:+.2f} $" for who, apart in report.spend.items())
    told = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with Pointsman {version('pointsman')}, LiteLLM {version('litellm')}, Python "
        f"{platform.python_version()}, on {len(os.sched_getaffinity(0))} cores ({_processor()}), in {report.seconds / 60:.0f} "
        f"minutes: {CLIENTS} clients, half of them streaming, {report.rate:g} requests a second, faults of {report.fault:g} s "
        f"(`hang` and `flapping` longer), detection {DETECTION:g} s. ✗ marks a goal that Pointsman missed.",
        "",
        *_tables(report),
        f"Dead attempts in all where a deployment remains: Pointsman {dead['pointsman']}, LiteLLM by default {dead['stock']}, "
        f"tuned {dead['tuned']}. Sums of the keys less those of the requests: {spend}.",
        "",
        "Every goal was reached." if not missed else "Missed: " + "; ".join(missed) + ".",
    ]
    text = "\n".join(told) + "\n"
    if page:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, mark, after = rest.partition(END)
        if not mark:
            raise ValueError(f"{PAGE} has no {BEGIN!r} ... {END!r}")
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{mark}{after}", encoding="utf-8")
    return text
