"""From a bundle's members to its encoder and its strategy: sizes and digests first, then kinds, dimensions and work."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.archive import unpack_arrays
from pointsman.strategies.base import Encoder, Strategy, WithFiles
from pointsman.strategies.files import canonical_json, sha256_hex
from pointsman.strategies.kinds import ENCODERS, STRATEGIES, make_encoder
from pointsman.strategies.manifest import MANIFEST, Manifest

__all__ = ["ENCODER_FILE", "MAX_ELEMENTS", "STRATEGY_FILE", "assemble", "checked_files", "encoder_digest", "too_much_work"]

ENCODER_FILE = "encoder.safetensors"
STRATEGY_FILE = "strategy.safetensors"
MAX_ELEMENTS = 2**27
"""Numbers of a strategy's arrays: a decision looks at each of them about once, and so takes some 0.1 s at most."""


def encoder_digest(encoder: Encoder) -> str:
    """SHA-256 over an encoder's kind, parameters, arrays and files: equal digests, equal vectors."""
    arrays = {
        name: [array.dtype.name, list(array.shape), sha256_hex(np.ascontiguousarray(array).tobytes())]
        for name, array in encoder.arrays().items()
    }
    content: dict[str, Any] = {"kind": encoder.kind, "params": encoder.params(), "arrays": arrays}
    if isinstance(encoder, WithFiles):
        content["files"] = dict(encoder.digests())
    return sha256_hex(canonical_json(content))


def too_much_work(message: str, where: str) -> BundleError:
    """E4318."""
    return BundleError(
        message, code="E4318", where=where, mend="train a smaller one: fewer rows, fewer dimensions, a quicker encoder"
    )


def checked_files(manifest: Manifest, members: dict[str, bytes]) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, bytes]]:
    """The arrays of each file and the encoder's own files, after sizes and digests were compared with the manifest."""
    if set(manifest.files) != set(members):
        raise BundleError(
            f"the manifest lists {sorted(manifest.files)}, the archive holds {sorted(members)}",
            where=f"{MANIFEST} files",
        )
    for name, entry in manifest.files.items():
        if len(members[name]) != entry.size or sha256_hex(members[name]) != entry.sha256:
            raise BundleError(f"{name!r} does not have the size and sha256 of the manifest", code="E4302", where=name)
    parts = {name: data for name, data in members.items() if name in {ENCODER_FILE, STRATEGY_FILE}}
    native = {name: data for name, data in members.items() if name not in parts}
    if surplus := [name for name in native if name.endswith(".safetensors")]:
        raise BundleError(f"no part of a bundle: {sorted(surplus)}")
    if twice := set(native) & set(manifest.encoder.external):
        raise BundleError(f"in the archive and said to be elsewhere: {sorted(twice)}", code="E4306", where=MANIFEST)
    return {name: unpack_arrays(data, name) for name, data in parts.items()}, native


def assemble(
    manifest: Manifest, arrays: dict[str, dict[str, NDArray[Any]]], native: dict[str, bytes]
) -> tuple[Encoder, Strategy]:
    """Encoder and strategy of checked parts.

    Raises:
        BundleError: E4302, E4306, E4307, E4318 and what the kinds themselves refuse.
    """
    strategy_type = STRATEGIES.get(manifest.kind)
    if manifest.encoder.kind not in ENCODERS or strategy_type is None:
        known = manifest.encoder.kind in ENCODERS
        unknown = f"strategy {manifest.kind!r}" if known else f"encoder {manifest.encoder.kind!r}"
        raise BundleError(
            f"this version knows no {unknown}",
            code="E4306",
            where=MANIFEST,
            mend=f"encoders: {sorted(ENCODERS)}; strategies: {sorted(STRATEGIES)}",
        )
    encoder = make_encoder(manifest.encoder.kind, manifest.encoder.params, arrays.get(ENCODER_FILE, {}), native)
    if encoder.dimensions != manifest.encoder.dimensions:
        raise BundleError(
            f"the encoder has {encoder.dimensions} dimensions, the manifest says {manifest.encoder.dimensions}",
            code="E4307",
            where=f"{MANIFEST} encoder.dimensions",
        )
    if encoder_digest(encoder) != manifest.encoder.sha256:
        raise BundleError("the encoder's digest is not the manifest's", code="E4302", where=f"{MANIFEST} encoder.sha256")
    own = arrays.get(STRATEGY_FILE, {})
    if (elements := sum(array.size for array in own.values())) > MAX_ELEMENTS:
        raise too_much_work(f"the strategy has {elements} numbers; at most {MAX_ELEMENTS}", STRATEGY_FILE)
    strategy = strategy_type.from_parts(manifest.models, manifest.params, own)
    if strategy.dimensions not in (0, encoder.dimensions):
        raise BundleError(
            f"the strategy wants {strategy.dimensions} dimensions, the encoder has {encoder.dimensions}",
            code="E4307",
        )
    return encoder, strategy
