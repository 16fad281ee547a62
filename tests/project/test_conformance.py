"""The conformance table says what tests prove, and every such test has its row."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from support.conformance import BEGIN, END, Feature, database_page, features, mismatches, proofs, section
from support.pages import PAGES

FEATURE = Feature(checks="a")


def test_every_row_has_a_test_and_every_mark_a_row() -> None:
    assert mismatches(features(), proofs()) == []


def test_mismatches_are_seen_both_ways() -> None:
    row, tests = ("A", "b"), (("t.py", "test_c"),)
    assert mismatches({row: FEATURE}, {row: tests}) == []
    assert mismatches({row: FEATURE}, {}) == ["A, b: no test is marked with it"]
    assert mismatches({}, {row: tests}) == ["t.py::test_c is marked with (A, b), which is no row of conformance.yaml"]


def test_the_table_has_a_line_for_every_row() -> None:
    lines = section().splitlines()
    for (_, name), feature in features().items():
        (line,) = [line for line in lines if line.startswith(f"| {name} | {feature.checks} |")]
        assert line.endswith(f"| **differs**: {feature.differs} |" if feature.differs else "| conforms |")


def test_the_page_is_one_of_those_that_are_held_fresh() -> None:
    assert PAGES["docs/database.md"] is database_page
    page = database_page()
    assert page.count(BEGIN) == page.count(END) == 1
    assert section() in page


def test_a_row_says_what_is_checked() -> None:
    with pytest.raises(ValidationError):
        Feature.model_validate({"differs": "b"})
