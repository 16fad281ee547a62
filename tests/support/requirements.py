"""The manifest of requirements (tests/requirements.yaml) and the tests that prove them, held together from both sides.

As a pytest plugin it refuses a run in which a `requirement` mark names an id that the manifest does not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

from support.marks import ROOT, TESTS, scan

__all__ = ["AREAS", "LIST", "MANIFEST", "Requirement", "Row", "coverage_page", "ids_of", "manifest", "mismatches", "proofs"]

pytest_plugins = ["support.shards", "support.native"]

MANIFEST = TESTS / "requirements.yaml"
# The list that the project was handed; it lies beside a checkout, not in it.
LIST = ROOT.parent / "shared" / "REQUIREMENTS.md"
AREAS = {
    "R": "Production AI gateway",
    "P": "Properties",
    "F": "Operational readiness",
    "T": "ModelTainer",
    "L": "Model gateway layer",
    "S": "SRE inference gateway",
    "C": "Design card",
}


class Requirement(BaseModel):
    """One entry of the manifest: a sentence, how far it is, and for `partly` what is missing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    status: Literal["open", "partly", "done"]
    why: str | None = None

    @model_validator(mode="after")
    def _why_when_partly(self) -> Requirement:
        if (self.status == "partly") != bool(self.why):
            raise ValueError("`why` goes with `partly`, and only with it")
        return self


@dataclass(frozen=True, slots=True)
class Row:
    """An id with its entry and the test files that carry it."""

    id: str
    requirement: Requirement
    files: tuple[str, ...]


@cache
def manifest(path: Path = MANIFEST) -> dict[str, Requirement]:
    """The manifest, id -> entry, in its own order.

    Raises:
        pydantic.ValidationError: an entry is not of the form above.
    """
    return TypeAdapter(dict[str, Requirement]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))


def ids_of(text: str) -> list[str]:
    """The ids that a list of requirements names, e.g. from ``R-5.8/5.9 ...; R-5.10 ...`` R-5.8, R-5.9 and R-5.10."""
    found: list[str] = []
    for letter, numbers in re.findall(r"\b([RPFTLSC])-(\d+(?:\.\d+)?(?:/\d+(?:\.\d+)?)*)", text):
        found += [f"{letter}-{number}" for number in numbers.split("/")]
    return list(dict.fromkeys(found))


def proofs() -> dict[str, tuple[str, ...]]:
    """Id -> the files of the tests marked with it, over all tests, slow ones included."""
    files: dict[str, list[str]] = {}
    for mark in scan():
        for identifier in mark.arguments if mark.name == "requirement" else ():
            files.setdefault(identifier, []).append(mark.path)
    return {identifier: tuple(dict.fromkeys(paths)) for identifier, paths in files.items()}


def mismatches(entries: dict[str, Requirement], tested: dict[str, tuple[str, ...]]) -> list[str]:
    """What the manifest claims and no test proves, and what tests claim to prove and the manifest does not own up to."""
    problems = [
        f"{identifier} is {entry.status}, but no test is marked with it"
        for identifier, entry in entries.items()
        if entry.status != "open" and identifier not in tested
    ]
    for identifier, files in tested.items():
        if identifier not in entries:
            problems.append(f"{files[0]} is marked with {identifier}, which is not in the manifest")
        elif entries[identifier].status == "open":
            problems.append(f"{files[0]} is marked with {identifier}, which the manifest calls open")
    return problems


def coverage_page() -> str:
    """docs/coverage.md: what is asked for, how far it is, and which tests prove it."""
    tested = proofs()
    rows = [Row(identifier, entry, tested.get(identifier, ())) for identifier, entry in manifest().items()]
    signs = {"done": "done", "partly": "**partly**", "open": "open"}
    lines = [
        "# Requirements and the tests that prove them",
        "",
        "Generated from `tests/requirements.yaml` by `make docs`; do not edit.",
        "",
    ]
    lines += ["| Area | Done | Partly | Open |", "|-|-|-|-|"]
    for letter, title in AREAS.items():
        own = [row.requirement.status for row in rows if row.id.startswith(f"{letter}-")]
        lines.append(f"| {letter} {title} | {own.count('done')} | {own.count('partly')} | {own.count('open')} |")
    for letter, title in AREAS.items():
        lines += ["", f"## {letter} {title}", "", "| Id | Requirement | State | Tests |", "|-|-|-|-|"]
        for row in rows:
            if not row.id.startswith(f"{letter}-"):
                continue
            links = ", ".join(f"[{Path(file).stem.removeprefix('test_')}](../{file})" for file in row.files)
            state = signs[row.requirement.status] + (f": {row.requirement.why}" if row.requirement.why else "")
            lines.append(f"| {row.id} | {row.requirement.text} | {state} | {links} |")
    return "\n".join(lines) + "\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("requirement"):
            unknown = [identifier for identifier in marker.args if identifier not in manifest()]
            if unknown or not marker.args:
                raise pytest.UsageError(
                    f"{item.nodeid}: requirement mark {unknown or '()'} is not in {MANIFEST.relative_to(ROOT)}"
                )
