"""The manifest says what is done; the tests say what they prove; the list that was handed over what was asked: all agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from support.marks import TESTS, scan
from support.requirements import AREAS, LIST, Requirement, ids_of, manifest, mismatches, proofs

OPEN = Requirement(text="a", status="open")
DONE = Requirement(text="a", status="done")


def test_manifest_has_exactly_the_ids_that_were_asked_for() -> None:
    if not LIST.is_file():
        pytest.skip("the list of requirements is handed over beside the checkout, and there is none here")
    assert list(manifest()) == ids_of(LIST.read_text(encoding="utf-8"))


def test_every_area_has_a_title() -> None:
    assert {identifier[0] for identifier in manifest()} == set(AREAS)


def test_what_is_done_is_tested_and_what_is_tested_is_done() -> None:
    assert mismatches(manifest(), proofs()) == []


def test_mismatches_are_seen_both_ways() -> None:
    assert mismatches({"X-1": DONE}, {}) == ["X-1 is done, but no test is marked with it"]
    assert mismatches({"X-1": OPEN}, {"X-1": ("t.py",)}) == ["t.py is marked with X-1, which the manifest calls open"]
    assert mismatches({}, {"X-1": ("t.py",)}) == ["t.py is marked with X-1, which is not in the manifest"]
    assert mismatches({"X-1": DONE, "X-2": OPEN}, {"X-1": ("t.py",)}) == []


def test_partly_says_what_is_missing() -> None:
    with pytest.raises(ValidationError, match="`why` goes with `partly`"):
        Requirement(text="a", status="partly")
    with pytest.raises(ValidationError, match="`why` goes with `partly`"):
        Requirement(text="a", status="done", why="b")


def test_grouped_ids_are_taken_apart() -> None:
    text = "- R-5.8/5.9 images; R-5.10 upload\n- R-16 offline\n- P-1 forwarding, P-2 authentication"
    assert ids_of(text) == ["R-5.8", "R-5.9", "R-5.10", "R-16", "P-1", "P-2"]


def test_marks_are_read_from_functions_classes_modules_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.requirement('R-1.1')\n"
        "@pytest.mark.requirement('R-1.2', 'R-1.3')\n"
        "async def test_a(): ...\n"
        "@pytest.mark.slow('s')\n"
        "class TestB:\n"
        "    @pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.requirement('R-1.4'))])\n"
        "    def test_c(self, x): ...\n"
        "@pytest.mark.requirement('R-9.9')\n"
        "def helper(): ...\n",
        encoding="utf-8",
    )
    marks = {(mark.test, mark.name, mark.arguments) for mark in scan(tmp_path)}
    assert marks == {
        ("test_a", "requirement", ("R-1.1",)),
        ("test_a", "requirement", ("R-1.2", "R-1.3")),
        ("TestB::test_c", "requirement", ("R-1.1",)),
        ("TestB::test_c", "slow", ("s",)),
        ("TestB::test_c", "requirement", ("R-1.4",)),
    }


def test_a_computed_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("@pytest.mark.requirement(NAME)\ndef test_a(): ...\n", encoding="utf-8")
    with pytest.raises(ValueError, match="plain strings"):
        scan(tmp_path)


def test_marks_read_from_the_source_are_those_that_pytest_sees(request: pytest.FixtureRequest) -> None:
    """Over whatever was collected in this run, the source tells the same story as pytest's own objects."""
    read = {
        (mark.path, mark.test, identifier) for mark in scan() if mark.name == "requirement" for identifier in mark.arguments
    }
    seen = {
        (str(item.path.relative_to(TESTS.parent)), item.nodeid.partition("::")[2].partition("[")[0], identifier)
        for item in request.session.items
        for marker in item.iter_markers("requirement")
        for identifier in marker.args
    }
    assert seen <= read
