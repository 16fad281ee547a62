"""WordPiece, built from a vocabulary that a bundle carries as an array, by the `tokenizers` library.

No tokenizer file is parsed: pre-processing is BERT's and fixed (control characters out, Chinese characters apart, accents off
and lower case where the vocabulary is of lower case, split at spaces and punctuation), words are cut greedily from the left
(Wu et al., 2016; Devlin et al., 2019). Immutable and thread-safe once made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["MAX_VOCABULARY", "SPECIAL", "UNKNOWN", "pack_vocabulary", "unpack_vocabulary", "wordpiece"]

MAX_VOCABULARY = 1 << 20
LONGEST_WORD = 100
"""Characters; a longer word is one unknown token, as in BERT."""
UNKNOWN = "[UNK]"
SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]")
"""Tokens that a vocabulary must have."""


def pack_vocabulary(tokens: Sequence[str]) -> NDArray[np.uint8]:
    """Tokens in the order of their ids as one array: UTF-8, each followed by a zero byte.

    Raises:
        ValueError: a token holds a zero byte.
    """
    if any("\0" in token for token in tokens):
        raise ValueError("a token holds a zero byte")
    return np.frombuffer("".join(f"{token}\0" for token in tokens).encode(), np.uint8)


def unpack_vocabulary(array: NDArray[Any], where: str = "encoder vocabulary") -> list[str]:
    """The reverse of `pack_vocabulary`.

    Raises:
        BundleError: E4307, not such an array: not UTF-8, a token twice, a special one missing, too many.
    """
    data = array.tobytes()
    problem = None
    tokens: list[str] = []
    if not data.endswith(b"\0") or data.count(b"\0") > MAX_VOCABULARY:
        problem = f"it must hold 1 to {MAX_VOCABULARY} tokens, each followed by a zero byte"
    else:
        try:
            tokens = data[:-1].decode().split("\0")
        except UnicodeDecodeError:
            problem = "it is not UTF-8"
    if problem is None and (len(set(tokens)) != len(tokens) or "" in tokens):
        problem = "a token is empty or stands twice"
    if problem is None and (missing := [token for token in SPECIAL if token not in tokens]):
        problem = f"it lacks {', '.join(missing)}"
    if problem is not None:
        raise BundleError(f"the vocabulary: {problem}", code="E4307", where=where)
    return tokens


def wordpiece(tokens: Sequence[str], *, lowercase: bool, max_tokens: int | None = None) -> Tokenizer:
    """A tokeniser.

    Args:
        tokens: the vocabulary.
        lowercase: lower case and no accents.
        max_tokens: with it `[CLS]` and `[SEP]` are put around, and both count.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing

    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    if max_tokens is not None:
        tokenizer.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        tokenizer.enable_truncation(max_tokens)
    return tokenizer
