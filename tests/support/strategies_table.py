"""The table of docs/strategies.md: the catalogue, and the tests that are marked with a kind and with what they prove of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pointsman.strategies.catalogue import CATALOGUE, Entry
from support.marks import ROOT, Mark, scan

__all__ = ["BEGIN", "END", "PAGE", "UNPROVED", "mismatches", "proofs", "section", "strategies_page"]

PAGE = ROOT / "docs" / "strategies.md"
BEGIN = "<!-- strategies: made by `make docs`, do not edit -->"
END = "<!-- end of strategies -->"
EVERY_BUNDLE = "bundle"
"""In a mark: every kind that is served from a bundle."""

UNPROVED: Mapping[str, str] = {
    "causallm": "never run by us: it wants a GPU and Llama's weights",
}
"""Strategies that no test could run, and why."""

Proofs = Mapping[str, Mapping[str, tuple[Mark, ...]]]
"""Kind -> what is proved -> the tests."""


def proofs(marks: Iterable[Mark] | None = None) -> Proofs:
    """The marks `strategy(what, *kinds)` of all tests.

    Raises:
        ValueError: a mark names no kind.
    """
    found: dict[str, dict[str, list[Mark]]] = {}
    for mark in scan() if marks is None else marks:
        if mark.name != "strategy":
            continue
        what, *kinds = mark.arguments
        if not kinds:
            raise ValueError(f"{mark.path}:{mark.line}: a strategy mark says what is proved and of which kinds")
        for word in kinds:
            named = [kind for kind, entry in CATALOGUE.items() if entry.serving == "bundle"] if word == EVERY_BUNDLE else [word]
            for kind in named:
                found.setdefault(kind, {}).setdefault(what, []).append(mark)
    return {kind: {what: tuple(tests) for what, tests in by.items()} for kind, by in found.items()}


def mismatches(entries: Mapping[str, Entry], proved: Proofs) -> list[str]:
    """Strategies that no test proves, and marks of none.

    One that is served from a bundle and is LLMRouter's must be compared with LLMRouter; a broken one be refused.
    """
    problems = [f"{kind}: no test is marked with it" for kind in entries if not proved.get(kind) and kind not in UNPROVED]
    for kind, entry in entries.items():
        what = "refused" if entry.broken else "parity" if entry.serving == "bundle" and entry.llmrouter else None
        if what is not None and proved.get(kind) and what not in proved[kind]:
            problems.append(f"{kind}: no test is marked with {what!r}")
    for kind, by in proved.items():
        if kind not in entries:
            (mark, *_), *_ = by.values()
            problems.append(f"{mark.path}:{mark.line}: {mark.test} is marked with {kind!r}, which the catalogue lacks")
    return problems


def section() -> str:
    """The table, without the comments around it."""
    proved = proofs()
    lines = [
        "| Strategy | LLMRouter's class | Served | Needs | Learned from | LLMRouter's own | Proved by |",
        "|-|-|-|-|-|-|-|",
    ]
    for kind, entry in CATALOGUE.items():
        served = "**not served**" if entry.broken else entry.serving
        tests = "; ".join(f"{what}: {_links(marks)}" for what, marks in sorted(proved.get(kind, {}).items()))
        tests = "; ".join(part for part in (UNPROVED.get(kind), tests) if part)
        cells = [f"`{entry.name}`", f"`{entry.llmrouter}`" if entry.llmrouter else "", served, entry.needs]
        cells += [entry.learned_from or "nothing", entry.broken or entry.upstream, tests]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _links(marks: Iterable[Mark]) -> str:
    """A link a test; the files are told apart by their names where one test name stands in several."""
    unique = {(mark.path, mark.test): None for mark in marks}
    return ", ".join(f"[{test.removeprefix('test_')}](../{path})" for path, test in unique)


def strategies_page() -> str:
    """docs/strategies.md with the table as it is now; the rest of the page is written by hand.

    Raises:
        ValueError: the comments that the table stands between are not there.
    """
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.relative_to(ROOT)} has no {BEGIN!r} ... {END!r}")
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"
