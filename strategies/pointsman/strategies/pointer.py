"""The pointer `current.json`: which bundle is proposed for a strategy, and who signed that.

The Ed25519 signature (RFC 8032) is over `DOMAIN` and the canonical JSON of every field but itself. It covers the strategy's
name, so that another strategy's bundle cannot be slipped in; the digests of bundle and manifest; and a rising sequence number,
so that an old pointer cannot be put back. The bundle's key is relative to the pointer's place, so that a tree can be copied.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pointsman.errors import BundleError
from pointsman.strategies.files import canonical_json, sha256_hex, strict_json
from pointsman.strategies.manifest import Name, Sha256

__all__ = [
    "FORMAT",
    "MAX_POINTER",
    "Pointer",
    "check_sequence",
    "parse_pointer",
    "safe_key",
    "sign",
    "signed_bytes",
    "verify",
    "verify_bytes",
]

FORMAT = "pointsman/pointer/1"
MAX_POINTER = 64 * 1024
"""Largest pointer in bytes; more is not even read."""

DOMAIN = b"pointsman pointer v1\n"
"""Stands before what is signed, so that a signature made for anything else is worthless here and the other way round."""


def safe_key(value: str) -> str:
    """A relative path without surprises: no scheme, no root, no step upwards, one spelling."""
    parts = value.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in value or ":" in value or any(ord(char) < 32 for char in value):
        raise ValueError("a bundle's key is a path relative to the pointer, without `..`, scheme or backslash")
    return value


class Pointer(BaseModel):
    """See the module.

    Attributes:
        format: `pointsman/pointer/1`.
        strategy: what it is for.
        bundle: key of the bundle, relative to the pointer's directory.
        sha256, size: of the bundle; bytes.
        manifest_sha256: of the bundle's manifest.
        sequence: rises with each publication of the strategy.
        published_at: RFC 3339 time, for people; nothing depends on it.
        key_id: name of the key that signed, or None.
        signature: base64 of the Ed25519 signature, or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pointsman/pointer/1"] = "pointsman/pointer/1"
    strategy: Name
    bundle: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(safe_key)]
    sha256: Sha256
    size: Annotated[int, Field(gt=0, lt=2**53)]
    manifest_sha256: Sha256
    sequence: Annotated[int, Field(ge=1, lt=2**53)]
    published_at: Annotated[str, Field(max_length=40)]
    key_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    signature: Annotated[str, Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _signature_and_key(self) -> Pointer:
        if (self.key_id is None) != (self.signature is None):
            raise ValueError("`key_id` and `signature` stand together or not at all")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything that it says but the signature: tells two pointers of one sequence number apart."""
        return sha256_hex(signed_bytes(self))

    def encoded(self) -> bytes:
        """The file's content."""
        return canonical_json(self.model_dump()) + b"\n"


def signed_bytes(pointer: Pointer) -> bytes:
    """What the signature is over."""
    return DOMAIN + canonical_json(pointer.model_dump(exclude={"signature"}))


def sign(pointer: Pointer, key: Ed25519PrivateKey, key_id: str) -> Pointer:
    """The pointer with a signature."""
    named = pointer.model_copy(update={"key_id": key_id, "signature": None})
    return named.model_copy(update={"signature": base64.b64encode(key.sign(signed_bytes(named))).decode()})


def verify(pointer: Pointer, trusted: Mapping[str, str], *, required: bool, where: str) -> None:
    """Check the signature of a pointer; see `verify_bytes`."""
    verify_bytes(signed_bytes(pointer), pointer.key_id, pointer.signature, trusted, required=required, where=where)


def verify_bytes(
    signed: bytes, key_id: str | None, signature: str | None, trusted: Mapping[str, str], *, required: bool, where: str
) -> None:
    """Check the signature.

    Args:
        signed: what the signature is over.
        key_id, signature: name of the key, base64 of the signature; None: there is none.
        trusted: key id -> base64 of the public key.
        required: refuse what no trusted key signed. Otherwise only a signature in the name of a trusted key is checked.
        where: for messages.

    Raises:
        BundleError: E4303.
    """
    if signature is None or key_id is None:
        if required:
            raise BundleError(
                "the pointer is not signed, and a signature is required",
                code="E4303",
                where=where,
                mend="publish with `--key`, or set `require_signature: false`",
            )
        return
    encoded = trusted.get(key_id)
    if encoded is None:
        if required:
            raise BundleError(
                f"the pointer is signed by {key_id!r}, which is no trusted key",
                code="E4303",
                where=where,
                mend=f"add its public key to `trusted_keys`; known: {sorted(trusted) or 'none'}",
            )
        return
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(encoded, validate=True))
    except ValueError as error:
        raise BundleError(
            f"the trusted key {key_id!r} is no Ed25519 public key in base64",
            code="E4303",
            where=f"trusted_keys.{key_id}",
            mend="copy what `pointsman mlops keygen` printed",
        ) from error
    try:
        public.verify(base64.b64decode(signature, validate=True), signed)
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise BundleError(
            f"the signature by {key_id!r} is wrong: the pointer was changed, or the key is another of that name",
            code="E4303",
            where=where,
            mend="publish again with the right key",
        ) from error


def parse_pointer(data: bytes, where: str) -> Pointer:
    """Parse and validate.

    Raises:
        BundleError: E4312; E4205 for a pickle.
    """
    from pointsman.strategies.archive import looks_like_pickle, pickle_error

    if len(data) > MAX_POINTER:
        raise BundleError(f"a pointer has at most {MAX_POINTER} bytes", code="E4312", where=where, mend="is it a bundle?")
    if looks_like_pickle(data):
        raise pickle_error(where)
    mend = "a pointer is written by `pointsman mlops publish`"
    if data[:2] == b"PK":
        mend = "this is an archive; name a bundle's file *.zip, or point the source at its pointer"
    try:
        return Pointer.model_validate(strict_json(data))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise BundleError(f"{key}: {first['msg']}", code="E4312", where=where, mend=mend) from error
    except ValueError as error:
        raise BundleError(f"the pointer is not JSON: {error}", code="E4312", where=where, mend=mend) from error


def check_sequence(pointer: Pointer, sequence: int, digest: str | None, where: str) -> None:
    """Refuse a replay.

    Args:
        pointer: as read and verified.
        sequence: highest number accepted so far; 0: none.
        digest: `Pointer.digest` of the one that had it, None: not known.
        where: for messages.

    Raises:
        BundleError: E4304.
    """
    same = pointer.sequence == sequence and (digest is None or pointer.digest == digest)
    if pointer.sequence > sequence or same:
        return
    raise BundleError(
        f"the pointer's sequence number is {pointer.sequence}; {sequence} was accepted already",
        code="E4304",
        where=where,
        mend=f"if this is no replay, publish again with `--sequence {sequence + 1}` or higher",
    )
