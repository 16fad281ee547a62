"""The table of strategies says how each was proved; a strategy without a proof, or a proof of none, is a mistake."""

from __future__ import annotations

import pytest

from pointsman.strategies.catalogue import CATALOGUE
from support.marks import Mark
from support.pages import PAGES
from support.strategies_table import BEGIN, END, UNPROVED, mismatches, proofs, section, strategies_page


def mark(*arguments: str) -> Mark:
    return Mark("strategy", arguments, "tests/t.py", 7, "test_it")


def test_every_strategy_is_proved_and_every_proof_is_of_one() -> None:
    assert mismatches(CATALOGUE, proofs()) == []


def test_what_could_not_be_run_is_said_of_strategies_that_there_are() -> None:
    assert set(UNPROVED) <= set(CATALOGUE)


def test_mismatches_are_seen_both_ways() -> None:
    entries = {kind: CATALOGUE[kind] for kind in ("knn", "gmt", "linear")}
    good = [mark("parity", "knn"), mark("refused", "gmt"), mark("formula", "linear")]
    assert mismatches(entries, proofs(good)) == []
    assert mismatches(entries, proofs(good[1:])) == ["knn: no test is marked with it"]
    assert mismatches(entries, proofs([mark("formula", "knn"), *good[1:]])) == ["knn: no test is marked with 'parity'"]
    assert mismatches(entries, proofs([*good, mark("formula", "knm")])) == [
        "tests/t.py:7: test_it is marked with 'knm', which the catalogue lacks"
    ]
    assert set(proofs([mark("fuzz", "bundle")])) == {kind for kind, entry in CATALOGUE.items() if entry.serving == "bundle"}
    with pytest.raises(ValueError, match=r"t\.py:7"):
        proofs([mark("parity")])


def test_the_table_has_a_line_for_every_strategy() -> None:
    lines = section().splitlines()
    for entry in CATALOGUE.values():
        (line,) = [line for line in lines if line.startswith(f"| `{entry.name}` |")]
        assert (entry.broken or entry.needs) in line
        assert "](../tests/" in line or UNPROVED[entry.kind] in line


def test_the_page_is_one_of_those_that_are_held_fresh() -> None:
    assert PAGES["docs/strategies.md"] is strategies_page
    page = strategies_page()
    assert page.count(BEGIN) == page.count(END) == 1
    assert section() in page
