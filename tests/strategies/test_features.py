"""Hashed features: what counts as a word, and that they are the same everywhere."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.strategies.encoders.features import HEAD_BYTES, TAIL_BYTES, features
from pointsman.strategies.encoders.hashing import HashingEncoder


def words(text: str) -> list[int]:
    found = features(text)
    return [int(value) for value in found[: (len(found) + 1) // 2]]


GOLDEN = ["415d1a6f0f0bba63", "c706fb7488e0fe35", "ce87ac5053ef6d1d", "853ea742becef0bd", "e278cad37934d39a"]


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("Hello, World!", ["hello world", "HELLO\n\tworld...", "  hello -- world  "]),
        ("café", ["CAFÉ", "Café!"]),
        ("мир", ["МИР", "(Мир)"]),
        ("λόγος", ["λόγος"]),
    ],
)
def test_case_and_punctuation_do_not_matter(text: str, others: list[str]) -> None:
    for other in others:
        assert words(other) == words(text), other


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" .,;\n", 0),
        ("a", 1),
        ("a b", 2),
        ("a1b2", 1),
        ("你好", 2),
        ("ab你好cd", 4),
        ("мир труд", 2),
        ("😀😀", 2),
        ("สวัสดี", 6),
    ],
)
def test_how_many_words_there_are(text: str, count: int) -> None:
    assert len(features(text)) == max(0, 2 * count - 1)


def test_a_word_has_one_hash_wherever_it_stands() -> None:
    alone = words("tensor")[0]
    assert words("a b tensor c")[2] == alone
    assert words("你tensor你")[1] == alone
    assert words("x" * 5000 + " tensor")[1] == alone


def test_different_words_and_different_orders_differ() -> None:
    assert len(set(words("one two three four five six seven eight nine ten eno owt"))) == 12
    assert not np.array_equal(features("one two"), features("two one"))
    assert words("\x80") == [] or words("a") != words("b")


def test_hashes_are_pinned() -> None:
    """A change here makes every published bundle worthless: their vocabularies are these numbers."""
    assert [f"{int(value):016x}" for value in features("Hello мир 你")] == GOLDEN


def test_another_process_finds_the_same() -> None:
    """Hash randomisation, which differs between processes, has no say."""
    text = "Prove that √2 is irrational; мир 你好 and so on"
    code = f"from pointsman.strategies.encoders.features import features; print(features({text!r}).tolist())"
    for seed in ("0", "12345"):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert out.stdout.strip() == str(features(text).tolist())


def test_of_a_long_text_both_ends_count_and_the_middle_does_not() -> None:
    head, tail = "start " * (HEAD_BYTES // 6), " end" * (TAIL_BYTES // 4)
    assert np.array_equal(features(head + "x " * 50_000 + tail), features(head + "y " * 90_000 + tail))
    assert not np.array_equal(features("other " + head + "x " * 50_000 + tail), features(head + "x " * 50_000 + tail))


@given(st.text(max_size=400))
def test_any_text_has_features(text: str) -> None:
    """Lone surrogates, unassigned code points, control characters: nothing raises, and every word but the first has a pair."""
    found = features(text)
    assert found.dtype == np.uint64
    assert len(found) == 0 or len(found) % 2 == 1


@given(st.lists(st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True), max_size=30), st.sampled_from([" ", ", ", "\n", " -- "]))
def test_words_are_what_a_splitter_would_find(parts: list[str], separator: str) -> None:
    by_word = [words(part)[0] for part in parts]
    assert words(separator.join(parts)) == by_word


@given(st.lists(st.text(max_size=200), max_size=5))
def test_vectors_have_length_one_or_zero(texts: list[str]) -> None:
    vectors = HashingEncoder(64).encode(texts)
    assert vectors.shape == (len(texts), 64)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert all(abs(length - 1) < 1e-5 or length == 0 for length in lengths)
    for row, text in zip(vectors, texts, strict=True):
        assert np.array_equal(row, HashingEncoder(64).encode([text])[0]), "a batch gives what each text alone gives"
