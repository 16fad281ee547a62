"""Small bundles for tests: good ones that route by words, bad ones of every kind, and a quick way to publish either.

bundle = make_bundle(tmp_path, "1", prefer={"fast": ["hello"], "strong": ["prove"]})
publish(bundle, tmp_path / "store", key=key)              # -> <store>/current.json, sequence 1, 2, 3 ...
bad = corrupt(bundle, "nan")                              # a digest that fits, weights that do not
publish_raw(bad.read_bytes(), tmp_path / "store", strategy="knn", key=key)   # past the publisher's checks
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pointsman.errors import BundleError
from pointsman.mlops.destinations import open_destination
from pointsman.mlops.keys import SigningKey
from pointsman.mlops.lsa import fit_tfidf
from pointsman.mlops.publish import publish as publish_bundle
from pointsman.settings import S3Settings
from pointsman.strategies.archive import pack, pack_arrays, unpack, unpack_arrays
from pointsman.strategies.bundle import build_bundle, save_bundle
from pointsman.strategies.files import canonical_json, sha256_hex
from pointsman.strategies.knn import KnnStrategy
from pointsman.strategies.manifest import MANIFEST, Provenance
from pointsman.strategies.pointer import Pointer, sign

CORRUPTIONS: dict[str, str] = {
    "truncated": "E4300",
    "bit_flip": "E4302",
    "nan": "E4308",
    "infinity": "E4308",
    "wrong_shape": "E4307",
    "wrong_dtype": "E4307",
    "missing_array": "E4307",
    "probe": "E4309",
    "schema": "E4306",
    "path": "E4310",
    "absolute_path": "E4310",
    "duplicate": "E4310",
    "unknown_file": "E4300",
    "code": "E4317",
    "joblib": "E4205",
    "compressed": "E4300",
    "not_zip": "E4300",
    "empty": "E4300",
    "no_manifest": "E4300",
    "pickle": "E4205",
    "torch": "E4205",
    "encoder": "E4302",
}
"""Kind of damage -> the error that a loader answers with, digest of the whole left out."""


def new_key(key_id: str = "test") -> SigningKey:
    """A fresh signing key; gateways trust it by `trusted_keys: {key.key_id: key.public}`."""
    return SigningKey(key_id, Ed25519PrivateKey.generate())


def make_bundle(
    directory: Path,
    version: str = "1",
    *,
    prefer: str | Mapping[str, Sequence[str]] = "model-a",
    models: Sequence[str] = (),
    name: str = "knn",
) -> Path:
    """A small bundle (a few kB, some milliseconds) that scores by words.

    Args:
        directory: where to.
        version: as headers show it; each version has a digest of its own.
        prefer: model -> words: a prompt with one of the words goes to that model (0.9 against 0.1). With several models' words
            in it the scores are in between. A prompt without any goes to the first model. Or just a model's name: it gets all.
        models: further candidates.
        name: of the strategy.
    """
    wanted = {prefer: ["anything"]} if isinstance(prefer, str) else dict(prefer)
    names = tuple(dict.fromkeys([*wanted, *models, *(() if len(wanted) + len(models) > 1 else ("model-b",))]))
    words = [(word, names.index(model)) for model, chosen in wanted.items() for word in chosen]
    encoder = fit_tfidf([word for word, _ in words], 192)
    scores = np.full((len(words), len(names)), 0.1, np.float32)
    scores[np.arange(len(words)), [model for _, model in words]] = 0.9
    # Rows that are similar to nothing tilt the overall mean, which decides for prompts without any of the words.
    tilt = np.eye(1, len(names), dtype=np.float32).repeat(4 * len(words), axis=0)
    vectors = np.zeros((len(words) + len(tilt), encoder.dimensions), np.float32)
    vectors[: len(words)] = encoder.encode([word for word, _ in words])
    scores = np.concatenate((scores, tilt))
    strategy = KnnStrategy(names, vectors, scores, np.ones(scores.shape, np.uint8), len(words))
    content = build_bundle(
        name=name,
        version=version,
        encoder=encoder,
        strategy=strategy,
        provenance=Provenance(code_version="test", seed=0, rows=len(scores)),
        probe_texts=[f"probe {word}" for word, _ in words][:8],
    )
    path = directory / f"{name}-{version}.zip"
    save_bundle(path, content)
    return path


def corrupt(bundle: Path, kind: str) -> Path:
    """A damaged copy beside a bundle; `kind` is one of `CORRUPTIONS`. Inner digests fit wherever they are not the point."""
    data = bundle.read_bytes()
    path = bundle.with_name(f"{bundle.stem}-{kind}.zip")
    path.write_bytes(_DAMAGE[kind](data))
    return path


def publish(
    bundle: Path, destination: Path | str, *, key: SigningKey | None = None, sequence: int | None = None, s3: Any = None
) -> Pointer:
    """Publish a good bundle with the product's publisher; `s3` is the fixture for an `s3://` destination."""
    settings = S3Settings(endpoint_url=s3.endpoint_url) if s3 is not None else S3Settings()
    return publish_bundle(bundle, str(destination), key=key, sequence=sequence, s3=settings)


def publish_raw(
    data: bytes,
    destination: Path | str,
    *,
    strategy: str = "knn",
    key: SigningKey | None = None,
    sequence: int | None = None,
    s3: Any = None,
    change: Callable[[Pointer], Pointer] = lambda pointer: pointer,
    damage: Callable[[bytes], bytes] = lambda encoded: encoded,
    **fields: Any,
) -> Pointer:
    """Publish any bytes under a rightly signed pointer, past every check, as a faulty or hostile publisher would.

    Args:
        data: what lies at the bundle's key.
        destination, key, s3: as `publish`.
        strategy: in the pointer.
        sequence: by default one more than the present pointer's.
        change: the pointer after it was signed, to tamper with it.
        damage: the pointer's bytes.
        **fields: of the pointer before it is signed, e.g. `sha256` or `size` that do not fit.
    """
    place = open_destination(str(destination), S3Settings(endpoint_url=s3.endpoint_url) if s3 is not None else S3Settings())
    with place.locked():
        previous = place.read(place.pointer)
        if sequence is None:
            try:
                sequence = json.loads(previous[0])["sequence"] + 1 if previous else 1
            except (ValueError, KeyError, TypeError):
                sequence = 1
        digest = sha256_hex(data)
        try:
            manifest = sha256_hex(unpack(data, "test")[MANIFEST])
        except BundleError:
            manifest = sha256_hex(b"")
        values: dict[str, Any] = {
            "strategy": strategy,
            "bundle": f"bundles/{digest}.zip",
            "sha256": digest,
            "size": max(1, len(data)),
            "manifest_sha256": manifest,
            "sequence": sequence,
            "published_at": "2026-01-01T00:00:00+00:00",
            **fields,
        }
        pointer = Pointer(**values)
        if key is not None:
            pointer = sign(pointer, key.private, key.key_id)
        pointer = change(pointer)
        place.write(values["bundle"], data)
        place.write(f"bundles/{digest}.json", pointer.encoded())
        place.replace(damage(pointer.encoded()), previous[1] if previous else None)
    return pointer


def rebuild(
    data: bytes,
    *,
    manifest: Callable[[dict[str, Any]], None] = lambda _: None,
    arrays: Callable[[dict[str, Any]], None] = lambda _: None,
    part: str = "strategy.safetensors",
) -> bytes:
    """A bundle with a changed manifest or changed arrays, and file digests that fit again."""
    members = unpack(data, "test")
    content = json.loads(members.pop(MANIFEST))
    loaded = dict(unpack_arrays(members[part], part))
    arrays(loaded)
    members[part] = pack_arrays(loaded)
    for name, member in members.items():
        content["files"][name] = {"sha256": sha256_hex(member), "size": len(member)}
    manifest(content)
    return pack({MANIFEST: canonical_json(content), **members})


def _zip(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # zipfile warns of the duplicate name that we want
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def _members(data: bytes) -> list[tuple[str, bytes]]:
    return list(unpack(data, "test").items())


def _flip(data: bytes) -> bytes:
    """One bit within the strategy's arrays; zip's checksum and the outer digest are made to fit, the manifest's is not."""
    members = unpack(data, "test")
    name = "strategy.safetensors"
    changed = bytearray(members[name])
    changed[-1] ^= 0x01
    return pack({**members, name: bytes(changed)})


def _set(name: str, change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def arrays(loaded: dict[str, Any]) -> None:
        loaded[name] = change(loaded[name])

    return lambda data: rebuild(data, arrays=arrays)


def _fill(value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = array.copy()
        array.flat[0] = value
        return array

    return change


def _missing(data: bytes) -> bytes:
    return rebuild(data, arrays=lambda loaded: loaded.pop("known"))


def _probe(data: bytes) -> bytes:
    def manifest(content: dict[str, Any]) -> None:
        scores = content["probes"]["items"][0]["scores"]
        model = next(iter(scores))
        scores[model] = 0.5 if abs(scores[model] - 0.5) > 0.1 else 0.9

    return rebuild(data, manifest=manifest)


def _schema(data: bytes) -> bytes:
    return rebuild(data, manifest=lambda content: content.pop("models"))


def _encoder(data: bytes) -> bytes:
    return rebuild(data, manifest=lambda content: content["encoder"].update(sha256="0" * 64))


_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "bit_flip": _flip,
    "nan": _set("scores", _fill(float("nan"))),
    "infinity": _set("vectors", _fill(float("inf"))),
    "wrong_shape": _set("scores", lambda array: array[:-1]),
    "wrong_dtype": _set("scores", lambda array: array.astype(np.float64)),
    "missing_array": _missing,
    "probe": _probe,
    "schema": _schema,
    "path": lambda data: _zip([*_members(data), ("../evil.safetensors", b"x")]),
    "absolute_path": lambda data: _zip([*_members(data), ("/etc/evil.safetensors", b"x")]),
    "duplicate": lambda data: _zip([*_members(data), _members(data)[-1]]),
    "unknown_file": lambda data: _zip([*_members(data), ("notes.txt", b"hello\n")]),
    "code": lambda data: _zip([*_members(data), ("strategy.py", b"print('hello')\n")]),
    "joblib": lambda data: _zip([*_members(data), ("model.joblib", b"x")]),
    "compressed": lambda data: _zip(_members(data), zipfile.ZIP_DEFLATED),
    "not_zip": lambda _: b"this is no archive at all" * 10,
    "empty": lambda _: b"",
    "no_manifest": lambda data: _zip([item for item in _members(data) if item[0] != MANIFEST]),
    "pickle": lambda _: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",
    "torch": lambda _: _zip([("archive/data.pkl", b"\x80\x02}q\x00."), ("archive/version", b"3\n")]),
    "encoder": _encoder,
}
