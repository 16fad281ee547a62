"""Text to hashed features, the same on every machine, process and Python version.

Text becomes UTF-8 bytes; only bytes are looked at after that, so no Unicode table of the interpreter decides anything. A word
is a run of ASCII letters, digits and two-byte characters (Latin, Greek, Cyrillic, Hebrew, Arabic ...). Scripts of three and
four bytes (Han, kana, Hangul, Thai, Devanagari, emoji) are written without spaces, so that each of their characters counts as a
word. Features are words and pairs of neighbouring words, each a 64-bit hash.

All words are hashed at once: with the prefix sums of b[i] * p**i (mod 2**64, p odd, hence invertible) the polynomial hash of
[s, e) is (H[e] - H[s]) * p**-s. SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
OOPSLA 2014) then spreads the bits. It is no cryptographic hash: who can choose prompts can choose collisions, and gains nothing
but a routing decision for their own prompt.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEAD_BYTES", "TAIL_BYTES", "Features", "features", "mix"]

HEAD_BYTES = 6144
TAIL_BYTES = 2048
"""Of a longer text the first and the last bytes count: what is asked stands at one end or the other."""

Features = NDArray[np.uint64]

_PRIME = 0x9E3779B97F4A7C15  # odd, and otherwise arbitrary: 2**64 divided by the golden ratio
_PAIR = np.uint64(0xD6E8FEB86659FD93)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_ONE = np.uint64(1)

# Lower case of the two-byte alphabets with case, as fixed offsets (no interpreter's table): Latin-1, Greek, Cyrillic.
_FOLD = {
    **{code: code + 32 for code in range(0x00C0, 0x00DF) if code != 0x00D7},
    **{code: code + 32 for code in range(0x0391, 0x03AC) if code != 0x03A2},
    **{code: code + 80 for code in range(0x0400, 0x0410)},
    **{code: code + 32 for code in range(0x0410, 0x0430)},
}


@cache
def _powers() -> tuple[Features, Features]:
    """p**i and p**-i (mod 2**64) for every position of the longest text."""
    length = HEAD_BYTES + TAIL_BYTES + 2
    inverse = pow(_PRIME, -1, 1 << 64)
    forward = np.full(length, _PRIME, np.uint64)
    backward = np.full(length, inverse, np.uint64)
    forward[0] = backward[0] = _ONE
    return np.cumprod(forward, dtype=np.uint64), np.cumprod(backward, dtype=np.uint64)


@cache
def _tables() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each byte: does it belong to a word; does it begin a character that is a word by itself."""
    word = np.zeros(256, np.bool_)
    word[np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789", np.uint8)] = True
    word[0x80:] = True
    alone = np.zeros(256, np.bool_)
    alone[0xE0:] = True
    return word, alone


def mix(values: Features) -> Features:
    """SplitMix64's finaliser: a bijection of 64-bit integers that spreads every input bit over all output bits."""
    values = (values ^ (values >> _S30)) * _MIX_1
    values = (values ^ (values >> _S27)) * _MIX_2
    return values ^ (values >> _S31)


def _bounded(text: str) -> bytes:
    """Lower-case UTF-8 of the text's two ends. Lone surrogates become question marks: they have no UTF-8."""
    if len(text) > HEAD_BYTES + TAIL_BYTES:  # a character has at least one byte, so nothing is lost that would be kept
        text = text[:HEAD_BYTES] + " " + text[-TAIL_BYTES:]
    if not text.isascii():
        text = text.translate(_FOLD)
    data = text.encode("utf-8", "replace")
    if len(data) > HEAD_BYTES + TAIL_BYTES + 1:
        data = data[:HEAD_BYTES] + b" " + data[-TAIL_BYTES:]
    return data.lower()  # bytes.lower touches ASCII only


def features(text: str) -> Features:
    """The hashes of a text's words and then of its word pairs, with repetitions, in order of appearance.

    Args:
        text: any string; of more than `HEAD_BYTES + TAIL_BYTES` bytes only the two ends count.

    Returns:
        uint64, (2 w - 1,) for w words; empty for a text without words.
    """
    data = np.frombuffer(_bounded(text), np.uint8)
    if not data.size:
        return np.empty(0, np.uint64)
    word_table, alone_table = _tables()
    inside, alone = word_table[data], alone_table[data]
    # Continuation bytes of a character that stands alone belong to it; whatever follows them starts anew.
    previous = np.concatenate((np.zeros(1, np.bool_), inside[:-1]))
    starts_mask = inside & (~previous | alone)
    continuation = (data & 0xC0) == 0x80
    if alone.any():
        last_lead = np.maximum.accumulate(np.where(continuation, 0, np.arange(data.size)))
        in_alone = continuation & alone[last_lead]
        after_alone = np.concatenate((np.zeros(1, np.bool_), (alone | in_alone)[:-1]))
        starts_mask |= inside & after_alone & ~continuation
    starts = np.flatnonzero(starts_mask)
    if not starts.size:
        return np.empty(0, np.uint64)
    # A word ends where the next one starts or where bytes outside words begin, whichever comes first.
    ends_mask = np.concatenate((~inside[1:] | starts_mask[1:], np.ones(1, np.bool_))) & inside
    ends = np.flatnonzero(ends_mask) + 1
    forward, backward = _powers()
    sums = np.zeros(data.size + 1, np.uint64)
    np.cumsum((data.astype(np.uint64) + _ONE) * forward[: data.size], dtype=np.uint64, out=sums[1:])
    words = mix((sums[ends] - sums[starts]) * backward[starts])
    pairs = mix(words[:-1] * _PAIR + words[1:])
    return np.concatenate((words, pairs))
