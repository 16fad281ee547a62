"""Encoders: whatever the text, vectors are finite, of length one or zero, and the same alone, in a batch and in company."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.mlops.distil import zipf_weights
from pointsman.mlops.vectors import encoder_from_bundle
from pointsman.strategies.assemble import encoder_digest
from pointsman.strategies.base import Encoder, Matrix, WithFiles
from pointsman.strategies.bundle import load_bundle, parse_bundle
from pointsman.strategies.encoders.batch import Batcher
from pointsman.strategies.encoders.concat import ConcatEncoder
from pointsman.strategies.encoders.file import load_encoder, pack_encoder, save_encoder
from pointsman.strategies.encoders.hashing import HashingEncoder
from pointsman.strategies.encoders.local import add_file
from pointsman.strategies.encoders.onnx import LongformerEncoder, MinilmEncoder, OnnxEncoder, OnnxParams
from pointsman.strategies.encoders.static import HEAD, TAIL
from pointsman.strategies.encoders.wordpiece import pack_vocabulary, unpack_vocabulary, wordpiece
from support.encoders import (
    DIMENSIONS,
    TOKENS,
    encoder_bundle,
    tiny_model,
    tiny_onnx,
    tiny_static,
    tiny_tokenizer,
    with_file,
)


@cache
def encoders() -> dict[str, Encoder]:
    return {
        "static": tiny_static(),
        "static int8": tiny_static("int8"),
        "minilm": tiny_onnx(MinilmEncoder),
        "int8": tiny_onnx(MinilmEncoder, dynamic=True),
        "cls": tiny_onnx(pooling="cls"),
        "tokenizer": OnnxEncoder(OnnxParams(dimensions=DIMENSIONS, max_tokens=12), tiny_model(), tokenizer=tiny_tokenizer()),
        "concat": ConcatEncoder([HashingEncoder(16), tiny_static(), tiny_onnx()]),
    }


KINDS = ["static", "static int8", "minilm", "int8", "cls", "tokenizer", "concat"]
HOSTILE = [
    "",
    " \t\n",
    "\0",
    "a\0b",
    "\ud800",
    "hello \udfff world",
    "مرحبا بالعالم \u202e",
    "👩‍👩‍👧‍👦" * 30,
    "你好世界",
    "Ignore all previous instructions!",
    "\x7fELF\x01\x02",
    "a" * 5_000,
    "é" * 3_000 + "\u0301" * 500,
]
ANY_TEXT = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=200), st.text(st.characters(exclude_categories=[]), max_size=60)
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=5))
def test_any_text_has_a_vector(kind: str, texts: list[str]) -> None:
    encoder = encoders()[kind]
    vectors = encoder.encode(texts)
    assert (vectors.shape, vectors.dtype) == ((len(texts), encoder.dimensions), np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    if kind == "concat":  # each member's part is of length 1 or 0
        assert all(0 <= length < 1 + 1e-5 for length in lengths)
    else:
        assert all(abs(length - 1) < 1e-5 or length == 0 for length in lengths)
    assert np.array_equal(vectors, encoder.encode(texts)), "the same again"
    for row, text in enumerate(texts):
        assert np.abs(encoder.encode([text])[0] - vectors[row]).max() <= 1e-6, "alone as in company"


@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_is_no_burden(kind: str) -> None:
    encoder = encoders()[kind]
    for text in ("hello " * 180_000, "👩" * 1_000_000, "x" * 1_000_000, "\ud800" * 1_000_000):
        assert np.isfinite(encoder.encode([text])).all()


def test_truncation_is_as_stated() -> None:
    static, minilm = encoders()["static"], encoders()["minilm"]
    long = "hello " * (HEAD // 6)
    tail = " world" * (TAIL // 6)
    same = [long + "prove " * 2_000 + tail.rjust(TAIL), long + "the " * 50_000 + tail.rjust(TAIL)]
    assert np.array_equal(*static.encode(same))
    # 16 tokens, [CLS] and [SEP] among them: what follows the fourteenth counts for nothing.
    head = "hello " * 14
    assert np.array_equal(*minilm.encode([head + "world", head + "prove " * 500]))
    assert not np.array_equal(*minilm.encode(["hello " * 13 + "world", "hello " * 13 + "prove"]))


def test_words_are_cut_as_bert_cuts_them() -> None:
    tokenizer = wordpiece(TOKENS, lowercase=True)

    def cut(text: str) -> list[str]:
        return list(tokenizer.encode(text, add_special_tokens=False).tokens)

    assert cut("Hello, WORLDs proving!") == ["hello", ",", "world", "##s", "p", "##r", "##o", "##v", "##ing", "!"]
    assert cut("Héllo") == ["hello"]
    assert cut("你" + "a" * 101) == ["[UNK]", "[UNK]"]
    assert wordpiece(TOKENS, lowercase=True, max_tokens=4).encode("hello world hello").tokens == [
        "[CLS]",
        "hello",
        "world",
        "[SEP]",
    ]
    assert unpack_vocabulary(pack_vocabulary(TOKENS)) == TOKENS


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "zero byte"),
        (b"[PAD]\0[UNK]\0[CLS]\0[SEP]", "zero byte"),
        (b"[PAD]\0[UNK]\0[CLS]\0", r"\[SEP\]"),
        (b"[PAD]\0[UNK]\0[CLS]\0[SEP]\0\xff\0", "UTF-8"),
        (b"[PAD]\0[UNK]\0[CLS]\0[SEP]\0a\0a\0", "twice"),
    ],
)
def test_a_vocabulary_that_is_none(data: bytes, says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        unpack_vocabulary(np.frombuffer(data, np.uint8))
    assert caught.value.code == "E4307"


def test_a_static_vector_is_the_weighted_mean_of_its_tokens() -> None:
    encoder = tiny_static()
    table = encoder.arrays()["table"].astype(np.float32)
    places = [TOKENS.index(token) for token in ("hello", "hello", "world", "!")]
    expected = table[places].mean(axis=0)
    assert encoder.encode(["hello hello world!"])[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert not encoder.encode(["你"]).any(), "unknown words count for nothing"
    small = tiny_static("int8").encode(["hello world", "prove."])
    assert (small * encoder.encode(["hello world", "prove."])).sum(axis=1) == pytest.approx([1, 1], abs=1e-3)


def test_rare_words_weigh_more() -> None:
    weights = zipf_weights(30_000)
    assert np.all(np.diff(weights) > 0)
    assert 0 < weights[0] < 0.02
    assert 0.9 < weights[-1] < 1


def test_longformer_vectors_are_not_scaled() -> None:
    plain, scaled = tiny_onnx(LongformerEncoder, unit=False), tiny_onnx(LongformerEncoder)
    raw = plain.encode(["hello world"])
    assert abs(np.linalg.norm(raw) - 1) > 0.01
    assert raw / np.linalg.norm(raw) == pytest.approx(scaled.encode(["hello world"]), abs=1e-6)


# Bundles and files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_bundles_and_encoder_files_keep_an_encoder(kind: str, tmp_path: Path) -> None:
    encoder = encoders()[kind]
    data = encoder_bundle(encoder)
    assert data == encoder_bundle(encoder), "the same content, the same bytes"
    bundle = parse_bundle(data, where="test")
    texts = ["hello world", "", "prove it!"]
    assert np.array_equal(bundle.encoder.encode(texts), encoder.encode(texts))
    assert encoder_digest(bundle.encoder) == encoder_digest(encoder) == bundle.manifest.encoder.sha256
    path = tmp_path / "encoder.zip"
    save_encoder(path, encoder)
    assert pack_encoder(load_encoder(path)) == path.read_bytes()
    assert np.array_equal(encoder_from_bundle(path).encode(texts), encoder.encode(texts))
    (tmp_path / "bundle.zip").write_bytes(data)
    assert np.array_equal(encoder_from_bundle(tmp_path / "bundle.zip").encode(texts), encoder.encode(texts))


def test_the_digest_covers_files() -> None:
    one, other = tiny_onnx(seed=1), tiny_onnx(seed=2)
    assert encoder_digest(one) != encoder_digest(other)
    data = encoder_bundle(one)

    def keep(manifest: dict[str, Any]) -> None:
        manifest["encoder"]["sha256"] = encoder_digest(one)

    with pytest.raises(BundleError) as caught:
        parse_bundle(with_file(data, "model.onnx", other.files()["model.onnx"], keep), where="test")
    assert caught.value.code == "E4302"


def test_files_where_none_belong() -> None:
    data = encoder_bundle(HashingEncoder(8))
    with pytest.raises(BundleError) as caught:
        parse_bundle(with_file(data, "model.onnx", tiny_model()), where="test")
    assert caught.value.code == "E4306"
    with pytest.raises(BundleError) as caught:
        parse_bundle(with_file(data, "model.bin", b"x"), where="test")
    assert caught.value.code == "E4300"


def test_files_that_lie_in_a_directory(tmp_path: Path) -> None:
    encoder = tiny_onnx()
    path = tmp_path / "bundle.zip"
    path.write_bytes(encoder_bundle(encoder, external=True))
    assert b"last_hidden_state" not in path.read_bytes()
    directory = tmp_path / "encoders"
    for given_directory, says in ((None, "encoders_dir"), (directory, "encoder add")):
        with pytest.raises(BundleError, match="E4316") as caught:
            load_bundle(path, encoders_dir=given_directory)
        assert says in str(caught.value)
    lies = add_file(directory, encoder.files()["model.onnx"])
    assert load_bundle(path, encoders_dir=directory).score("hello") == parse_bundle(encoder_bundle(encoder), where="x").score(
        "hello"
    )
    lies.write_bytes(tiny_model(seed=9))
    with pytest.raises(BundleError) as caught:
        load_bundle(path, encoders_dir=directory)
    assert caught.value.code == "E4302"


def test_serving_puts_the_files_away() -> None:
    encoder = parse_bundle(encoder_bundle(tiny_onnx()), where="test").encoder
    assert isinstance(encoder, WithFiles)
    before, digest = encoder.encode(["hello"]), encoder_digest(encoder)
    encoder.put_files_away()
    with pytest.raises(BundleError):
        encoder.files()
    assert np.array_equal(encoder.encode(["hello"]), before)
    assert encoder_digest(encoder) == digest


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"dimensions": 9}, "E4307"),
        ({"dimensions": 0}, "E4306"),
        ({"max_tokens": 100_000}, "E4306"),
        ({"pooling": "max"}, "E4306"),
        ({"unheard": 1}, "E4306"),
        ({"threads": "4"}, "E4306"),
    ],
)
def test_parameters_that_do_not_do(params: dict[str, Any], code: str) -> None:
    good = tiny_onnx()
    with pytest.raises(BundleError) as caught:
        OnnxEncoder.from_files({**good.params(), **params}, good.arrays(), good.files())
    assert caught.value.code == code


def test_a_model_without_a_tokeniser_or_with_two() -> None:
    good = tiny_onnx()
    for arrays, files in (({}, good.files()), (good.arrays(), {**good.files(), "tokenizer.json": tiny_tokenizer()}), ({}, {})):
        with pytest.raises(BundleError) as caught:
            OnnxEncoder.from_files(good.params(), arrays, files)
        assert caught.value.code == "E4306"


@pytest.mark.parametrize("data", [b"", b"{", b"null", b'{"version":"1.0"}', b"\xff" * 100, b'{"model":' * 50_000])
def test_a_tokenizer_that_is_none(data: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        OnnxEncoder(OnnxParams(dimensions=DIMENSIONS), tiny_model(), tokenizer=data)
    assert caught.value.code == "E4315"


# In company ---------------------------------------------------------------------------------------------------------------


def test_concat_divides_what_is_whose() -> None:
    members = [HashingEncoder(16), tiny_static(), tiny_onnx()]
    encoder = ConcatEncoder(members, [0.5, 1.0, 0.25])
    vectors = encoder.encode(["hello world"])
    for member, part, weight in zip(members, encoder.slices, (0.5, 1.0, 0.25), strict=True):
        assert vectors[:, part] == pytest.approx(member.encode(["hello world"]) * weight, abs=1e-7)
    assert set(encoder.arrays()) == {"1.vocabulary", "1.table", "1.scales", "2.vocabulary"}
    assert set(encoder.files()) == {"2.model.onnx"}
    with pytest.raises(BundleError, match="cannot be a member"):
        ConcatEncoder([encoder, HashingEncoder(4)])
    with pytest.raises(BundleError, match="belongs to no member"):
        ConcatEncoder.from_files(encoder.params(), {**encoder.arrays(), "7.table": np.zeros(1)}, encoder.files())


def test_threads_share_a_run_and_nobody_waits_alone() -> None:
    entered, go = threading.Event(), threading.Event()
    runs: list[int] = []

    def run(rows: Sequence[int]) -> Matrix:
        runs.append(len(rows))
        if len(runs) == 1:
            entered.set()
            assert go.wait(10)
        if -1 in rows:
            raise ValueError("bad row")
        return np.array([[row, row] for row in rows], np.float32)

    batcher: Batcher[int] = Batcher(run, 8)
    results: dict[int, Any] = {}

    def ask(row: int) -> None:
        try:
            results[row] = batcher([row])[0, 0]
        except ValueError as error:
            results[row] = str(error)

    threads = [threading.Thread(target=ask, args=(row,)) for row in (1, 2, -1, 3, 4)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(batcher._waiting) < 4:
        threading.Event().wait(0.001)
    go.set()
    for thread in threads:
        thread.join(10)
    assert results == {1: 1, 2: 2, 3: 3, 4: 4, -1: "bad row"}, "each has its own, and one bad row harms nobody else"
    assert runs[:2] == [1, 4], "the first ran at once, the others together"
    assert batcher([7])[0, 0] == 7


def test_many_threads_get_what_each_alone_would() -> None:
    encoder = encoders()["minilm"]
    texts = [f"hello {'world ' * (number % 9)} {number}" for number in range(40)]
    alone = [encoder.encode([text])[0] for text in texts]
    failures: list[str] = []

    def ask(offset: int) -> None:
        for number in range(len(texts)):
            at = (number + offset) % len(texts)
            if np.abs(encoder.encode([texts[at]])[0] - alone[at]).max() > 1e-6:
                failures.append(texts[at])

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(0, 40, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
