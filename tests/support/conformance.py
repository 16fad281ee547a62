"""The conformance table of docs/database.md, from tests/conformance.yaml and the tests that are marked with its rows."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from support.marks import ROOT, TESTS, scan

__all__ = ["BEGIN", "END", "FEATURES", "Feature", "database_page", "features", "mismatches", "proofs", "section"]

FEATURES = TESTS / "conformance.yaml"
PAGE = ROOT / "docs" / "database.md"
BEGIN = "<!-- conformance: made by `make docs`, do not edit -->"
END = "<!-- end of conformance -->"


class Feature(BaseModel):
    """One row: what is checked, and where our engine answers otherwise than Prisma's native one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checks: str
    differs: str | None = None


Row = tuple[str, str]


@cache
def features(path: Path = FEATURES) -> dict[Row, Feature]:
    """The rows, (area, feature) -> entry, in the file's order.

    Raises:
        pydantic.ValidationError: an entry is not of the form above.
    """
    areas = TypeAdapter(dict[str, dict[str, Feature]]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    return {(area, name): feature for area, entries in areas.items() for name, feature in entries.items()}


def proofs() -> dict[Row, tuple[tuple[str, str], ...]]:
    """Row -> the tests marked with it, each as its file and its name.

    Raises:
        ValueError: a mark has not exactly the two arguments.
    """
    found: dict[Row, list[tuple[str, str]]] = {}
    for mark in scan():
        if mark.name == "conformance":
            if len(mark.arguments) != 2:
                raise ValueError(f"{mark.path}:{mark.line}: a conformance mark names an area and a feature")
            found.setdefault((mark.arguments[0], mark.arguments[1]), []).append((mark.path, mark.test))
    return {row: tuple(dict.fromkeys(tests)) for row, tests in found.items()}


def mismatches(declared: dict[Row, Feature], tested: dict[Row, tuple[tuple[str, str], ...]]) -> list[str]:
    """Rows without a test, and marks without a row."""
    return [f"{area}, {name}: no test is marked with it" for area, name in declared if (area, name) not in tested] + [
        f"{tests[0][0]}::{tests[0][1]} is marked with ({area}, {name}), which is no row of {FEATURES.name}"
        for (area, name), tests in tested.items()
        if (area, name) not in declared
    ]


def section() -> str:
    """The table, without the comments around it."""
    rows, tested = features(), proofs()
    differing = sum(feature.differs is not None for feature in rows.values())
    lines = [
        f"{len(rows)} features of the engine, {len(rows) - differing} as documented by Prisma, {differing} otherwise. "
        "What is compared with: see [Engine](#engine).",
    ]
    for area in dict.fromkeys(area for area, _ in rows):
        lines += ["", f"### {area}", "", "| Feature | Checked | Tests | State |", "|-|-|-|-|"]
        for (of, name), feature in rows.items():
            if of == area:
                links = ", ".join(f"[{test.removeprefix('test_')}](../{path})" for path, test in tested.get((of, name), ()))
                state = f"**differs**: {feature.differs}" if feature.differs else "conforms"
                lines.append(f"| {name} | {feature.checks} | {links} | {state} |")
    return "\n".join(lines)


def database_page() -> str:
    """docs/database.md with the table as it is now; the rest of the page is written by hand.

    Raises:
        ValueError: the comments that the table stands between are not there.
    """
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.relative_to(ROOT)} has no {BEGIN!r} ... {END!r}")
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"
