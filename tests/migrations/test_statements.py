"""Taking SQL apart, for messages."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from pointsman.migrations.sources import litellm_migrations, our_migrations
from pointsman.migrations.statements import split, without_comments

word = st.sampled_from(
    ["SELECT", "a", '"q;uo""ted"', "'it''s; one'", "$$ b; -- no\n $$", "$t$ ; $$ ; $t$", "E'\\'; x'", "1", "x$y$z"]
)
filler = st.sampled_from([" ", "\n", " -- ; comment '\n", " /* ; /* nested ; */ ' */ "])
statement = st.lists(word, min_size=1, max_size=6)


@given(st.lists(st.tuples(statement, filler), max_size=6), filler)
def test_split_finds_each_statement_once(parts: list[tuple[list[str], str]], lead: str) -> None:
    text = lead + "".join(filler.join([" ", *words]) + " ;" + filler for words, filler in parts)
    found = split(text)
    assert [without_comments(one.text).split() for one in found] == [" ".join(words).split() for words, _ in parts]
    for one in found:
        assert one.text.split("\n")[0] in text.split("\n")[one.line - 1]


@given(st.text(alphabet="ab;'\"$-/*\\\nE ", max_size=40))
def test_split_never_fails_and_loses_nothing(text: str) -> None:
    """Also of text that is no SQL: only semicolons, white space and pieces of mere comments may go."""
    pieces = split(text)
    assert sum(len(piece.text) for piece in pieces) <= len(text)
    place = 0
    for piece in pieces:
        place = text.index(piece.text, place) + len(piece.text)
    assert without_comments(without_comments(text)) is not None


def test_real_files_and_what_runs_outside_a_transaction() -> None:
    files = litellm_migrations()
    assert len(files) > 200
    assert [one.name for one in files] == sorted(one.name for one in files)
    concurrent = {one.name for one in files if one.concurrent}
    assert "20261003000000_add_managed_file_flat_ids_gin_index" in concurrent
    assert "20260831120001_spend_logs_litellm_call_id_index" not in concurrent  # the word is in a comment only
    for one in files:
        assert split(one.text), one.name
        assert one.sha256 == hashlib.sha256(one.path.read_bytes()).hexdigest()
        if one.concurrent:
            assert len(split(one.text)) == 1, one.name
    assert [one.name for one in our_migrations()] == sorted(one.name for one in our_migrations())
