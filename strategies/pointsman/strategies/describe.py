"""What a bundle says of itself, without building the strategy: for people who look before they trust."""

from __future__ import annotations

from typing import Any

from pointsman.errors import BundleError
from pointsman.strategies.archive import looks_like_pickle, pickle_error, unpack, unpack_arrays
from pointsman.strategies.files import sha256_hex
from pointsman.strategies.manifest import MANIFEST, parse_manifest

__all__ = ["describe"]


def describe(data: bytes, where: str) -> dict[str, Any]:
    """Digests and sizes, the manifest, and the names, types and shapes of arrays. JSON values only.

    Nothing here says that the bundle would be taken: `parse_bundle` does.

    Raises:
        BundleError: E4300, E4310, E4205 (archive), E4306 (manifest).
    """
    if looks_like_pickle(data, where):
        raise pickle_error(where)
    members = unpack(data, where)
    encoded = members.pop(MANIFEST)
    try:
        manifest = parse_manifest(encoded)
    except BundleError as error:
        error.where = f"{where} {error.where}" if error.where else where
        raise
    files: dict[str, Any] = {}
    for name, content in sorted(members.items()):
        files[name] = {"size": len(content), "sha256": sha256_hex(content)}
        if name.endswith(".safetensors"):
            arrays = unpack_arrays(content, name)
            files[name]["arrays"] = {key: [array.dtype.name, *array.shape] for key, array in sorted(arrays.items())}
    return {
        "sha256": sha256_hex(data),
        "size": len(data),
        "manifest_sha256": sha256_hex(encoded),
        "files": files,
        "manifest": manifest.model_dump(mode="json"),
    }
