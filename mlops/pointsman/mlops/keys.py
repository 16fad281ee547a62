"""Ed25519 keys that sign pointers: a PKCS #8 PEM file of mode 0600, with the key's id on a line before it."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from pointsman.errors import ConfigError, SourceError

__all__ = ["SigningKey", "generate", "load_key"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(rb"\Akey-id: ([A-Za-z0-9._-]{1,64})\n")


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """A private key and the id under which gateways trust its public half."""

    key_id: str
    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        """Base64 of the 32 bytes, as `trusted_keys` takes it."""
        return base64.b64encode(self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id!r})"


def generate(path: Path, key_id: str) -> str:
    """Make a key pair, write the private half to the new file `path`, return the public half (`SigningKey.public`).

    Raises:
        ConfigError: E4203, the id has no usable form, or the file is there already: a key is never overwritten.
        SourceError: E4410, the file cannot be written; nothing is left behind.
    """
    if not _ID.fullmatch(key_id):
        raise ConfigError(
            f"{key_id!r} is no key id: up to 64 letters, digits, dots, dashes and underscores", code="E4203", where="key id"
        )
    key = SigningKey(key_id, Ed25519PrivateKey.generate())
    pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConfigError(
            "the file exists, and a key is never overwritten", code="E4203", where=str(path), mend="choose another name"
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(f"key-id: {key_id}\n".encode() + pem)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    return key.public


def _unwritable(path: Path, error: OSError) -> SourceError:
    return SourceError(
        f"the key cannot be written: {error.strerror or error}", code="E4410", where=str(path), mend="check the directory"
    )


def load_key(path: Path, key_id: str | None = None) -> SigningKey:
    """Read a private key.

    Args:
        path: as `generate` wrote it, or any unencrypted Ed25519 key in PEM.
        key_id: instead of the file's; needed for a file that has none.

    Raises:
        ConfigError: E4204 (no such file, no id), E4203 (no such key, or others may read the file).
    """
    where = str(path)
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(64 * 1024)
    except OSError as error:
        raise ConfigError(
            f"the signing key cannot be read: {error.strerror or error}",
            code="E4204",
            where=where,
            mend="make one with `pointsman mlops keygen`",
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"others may read the signing key (mode {mode & 0o777:04o})", code="E4203", where=where, mend=f"chmod 600 {path}"
        )
    found = _LINE.match(data)
    name = key_id or (found[1].decode() if found else None)
    if name is None:
        raise ConfigError("the key has no id", code="E4204", where=where, mend="put a first line `key-id: NAME` before it")
    try:
        private = load_pem_private_key(data[found.end() :] if found else data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"this is no unencrypted private key in PEM: {error}", code="E4203", where=where) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(
            "the key is not an Ed25519 key", code="E4203", where=where, mend="make one with `pointsman mlops keygen`"
        )
    return SigningKey(name, private)
