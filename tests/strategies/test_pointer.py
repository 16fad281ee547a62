"""Pointers: what the signature covers, and each refusal with its own error."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import BundleError
from pointsman.mlops.keys import SigningKey
from pointsman.strategies.pointer import MAX_POINTER, Pointer, check_sequence, parse_pointer, sign, verify
from support.bundles import new_key

PLAIN = Pointer(
    strategy="knn",
    bundle="bundles/" + "a" * 64 + ".zip",
    sha256="a" * 64,
    size=1000,
    manifest_sha256="b" * 64,
    sequence=5,
    published_at="2026-01-01T00:00:00+00:00",
)
OTHER: dict[str, Any] = {
    "strategy": "other",
    "bundle": "bundles/" + "c" * 64 + ".zip",
    "sha256": "c" * 64,
    "size": 1001,
    "manifest_sha256": "d" * 64,
    "sequence": 6,
    "published_at": "2027-01-01T00:00:00+00:00",
}


def code_of(pointer: Pointer, trusted: dict[str, str], *, required: bool = True) -> str | None:
    try:
        verify(pointer, trusted, required=required, where="test")
    except BundleError as error:
        return error.code
    return None


def test_a_signed_pointer_survives_its_file(key: SigningKey) -> None:
    pointer = sign(PLAIN, key.private, key.key_id)
    again = parse_pointer(pointer.encoded(), "test")
    assert again == pointer
    assert code_of(again, {key.key_id: key.public}) is None


@pytest.mark.requirement("P-22")
@pytest.mark.parametrize("field", [*OTHER, "format", "key_id"])
def test_every_field_is_signed(key: SigningKey, field: str) -> None:
    trusted = {key.key_id: key.public, "second": key.public}
    changed = {**OTHER, "format": "pointsman/pointer/9", "key_id": "second"}[field]
    tampered = sign(PLAIN, key.private, key.key_id).model_copy(update={field: changed})
    assert code_of(tampered, trusted) == "E4303"
    assert code_of(tampered, trusted, required=False) == "E4303", "a trusted name is never lent to what it did not sign"


def test_every_field_is_covered_by_the_test_above() -> None:
    assert set(Pointer.model_fields) == {*OTHER, "format", "key_id", "signature"}


def test_who_may_sign(key: SigningKey) -> None:
    stranger = new_key("stranger")
    trusted = {key.key_id: key.public}
    by_stranger = sign(PLAIN, stranger.private, stranger.key_id)
    in_a_trusted_name = sign(PLAIN, stranger.private, key.key_id)
    assert code_of(PLAIN, trusted) == "E4303"
    assert code_of(by_stranger, trusted) == "E4303"
    assert code_of(in_a_trusted_name, trusted) == "E4303"
    assert code_of(PLAIN, trusted, required=False) is None
    assert code_of(by_stranger, trusted, required=False) is None
    assert code_of(in_a_trusted_name, trusted, required=False) == "E4303"
    assert code_of(sign(PLAIN, key.private, key.key_id), {key.key_id: "not a key"}) == "E4303"
    garbage = sign(PLAIN, key.private, key.key_id).model_copy(update={"signature": "!!"})
    assert code_of(garbage, trusted) == "E4303"


def test_a_signature_for_something_else_does_not_do(key: SigningKey) -> None:
    """The domain stands before what is signed."""
    named = PLAIN.model_copy(update={"key_id": key.key_id})
    bare = json.dumps(named.model_dump(exclude={"signature"}), sort_keys=True, separators=(",", ":")).encode()
    forged = named.model_copy(update={"signature": base64.b64encode(key.private.sign(bare)).decode()})
    assert code_of(forged, {key.key_id: key.public}) == "E4303"


@given(st.integers(1, 100), st.integers(0, 100), st.booleans())
def test_sequence_numbers_rise(new: int, newest: int, same: bool) -> None:
    pointer = PLAIN.model_copy(update={"sequence": new})
    digest = pointer.digest if same else "f" * 64
    if new > newest or (new == newest and same):
        check_sequence(pointer, newest, digest, "test")
        return
    with pytest.raises(BundleError, match=f"--sequence {newest + 1}") as caught:
        check_sequence(pointer, newest, digest, "test")
    assert caught.value.code == "E4304"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "pointsman/pointer/2"},
        {"strategy": "../x"},
        {"strategy": ""},
        {"bundle": "../bundle.zip"},
        {"bundle": "a/../../b.zip"},
        {"bundle": "/etc/passwd"},
        {"bundle": "s3://other/bundle.zip"},
        {"bundle": "a\\b.zip"},
        {"bundle": "a//b.zip"},
        {"bundle": ""},
        {"sha256": "A" * 64},
        {"sha256": "a" * 63},
        {"size": 0},
        {"size": -1},
        {"size": "many"},
        {"sequence": 0},
        {"sequence": 2**60},
        {"manifest_sha256": None},
        {"surplus": 1},
        {"signature": "abc"},
        {"key_id": "abc"},
    ],
)
def test_a_pointer_of_the_wrong_form(change: dict[str, Any]) -> None:
    data = json.dumps({**PLAIN.model_dump(), **change}).encode()
    with pytest.raises(BundleError) as caught:
        parse_pointer(data, "current.json")
    assert caught.value.code == "E4312"
    assert next(iter(change)) in str(caught.value) or "key_id" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "E4312"),
        (b"null", "E4312"),
        (b"[]", "E4312"),
        (b"{", "E4312"),
        (b'{"sequence": 1, "sequence": 2}', "E4312"),
        (b'{"size": NaN}', "E4312"),
        (b"\xff\xfe", "E4312"),
        (b"x" * (MAX_POINTER + 1), "E4312"),
        (b"PK\x03\x04 a bundle", "E4312"),
        (b"\x80\x04\x95 a pickle", "E4205"),
    ],
)
def test_what_is_no_pointer(data: bytes, code: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse_pointer(data, "current.json")
    assert caught.value.code == code


@given(st.binary(max_size=300))
def test_any_bytes_are_a_pointer_or_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_pointer(data, "test")
