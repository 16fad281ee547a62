"""The encoder file: an encoder by itself, without a strategy. `mlops distil` writes it, `mlops train --encoder` reads it.

Laid out as a bundle is, with `pointsman/encoder/1` as the manifest's format. Gateways never read one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pointsman.errors import BundleError, SourceError
from pointsman.strategies.archive import pack, pack_arrays, unpack, unpack_arrays
from pointsman.strategies.assemble import encoder_digest
from pointsman.strategies.base import Encoder, WithFiles
from pointsman.strategies.files import canonical_json, sha256_hex, strict_json, write_atomic
from pointsman.strategies.kinds import ENCODERS, make_encoder
from pointsman.strategies.manifest import MANIFEST

__all__ = ["is_encoder_file", "load_encoder", "pack_encoder", "save_encoder"]

FORMAT = "pointsman/encoder/1"
_ARRAYS = "encoder.safetensors"


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pointsman/encoder/1"]
    kind: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    params: dict[str, Any]


def pack_encoder(encoder: Encoder) -> bytes:
    """The bytes of an encoder file; the same encoder gives the same bytes."""
    head = {"format": FORMAT, "kind": encoder.kind, "sha256": encoder_digest(encoder), "params": encoder.params()}
    members = {MANIFEST: canonical_json(head)}
    if arrays := encoder.arrays():
        members[_ARRAYS] = pack_arrays(arrays)
    if isinstance(encoder, WithFiles):
        members |= encoder.files()
    return pack(members)


def save_encoder(path: Path, encoder: Encoder) -> str:
    """Write an encoder file atomically; its SHA-256.

    Raises:
        SourceError: E4410.
    """
    data = pack_encoder(encoder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, mode=0o644)
    except OSError as error:
        raise SourceError(
            f"the encoder cannot be written: {error.strerror or error}",
            code="E4410",
            where=str(path),
            mend="check the directory's permissions and the space left on it",
        ) from error
    return sha256_hex(data)


def _members(path: Path) -> dict[str, bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SourceError("the file does not exist", code="E4404", where=str(path)) from error
    except OSError as error:
        raise SourceError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
    return unpack(data, str(path))


def is_encoder_file(path: Path) -> bool:
    """Whether a file is an encoder file rather than a bundle.

    Raises:
        BundleError, SourceError: it is neither, or cannot be read.
    """
    try:
        head = strict_json(_members(path)[MANIFEST])
    except ValueError:
        return False
    return isinstance(head, dict) and head.get("format") == FORMAT


def load_encoder(path: Path) -> Encoder:
    """Read an encoder file. The digest guards against damage only: it is for files of one's own.

    Raises:
        BundleError: as a bundle's encoder. SourceError: E4404, E4400.
    """
    members = _members(path)
    try:
        head = _Head.model_validate(strict_json(members.pop(MANIFEST)))
    except (ValueError, ValidationError) as error:
        raise BundleError("this is no encoder file", code="E4306", where=f"{path} {MANIFEST}") from error
    if head.kind not in ENCODERS:
        raise BundleError(f"this version knows no encoder {head.kind!r}", code="E4306", where=str(path))
    arrays = unpack_arrays(members.pop(_ARRAYS), _ARRAYS) if _ARRAYS in members else {}
    encoder = make_encoder(head.kind, head.params, arrays, members)
    if encoder_digest(encoder) != head.sha256:
        raise BundleError("the encoder's digest is not the file's", code="E4302", where=str(path))
    return encoder
