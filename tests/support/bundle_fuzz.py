"""Mutated bundles, re-hashed and re-signed so that every parser is reached, loaded in forked children with limits.

A mutation is told by its number alone: `python -m support.bundle_fuzz NUMBER` (with `tests` on the path) does it again, in this
process, without limits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import random
import resource
import signal
import struct
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pointsman.errors import BundleError, PointsmanError
from pointsman.mlops.blas import one_thread
from pointsman.mlops.keys import SigningKey
from pointsman.strategies.archive import pack, pack_arrays, unpack, unpack_arrays
from pointsman.strategies.base import UnavailableError
from pointsman.strategies.bundle import Bundle, parse_bundle
from pointsman.strategies.files import canonical_json, sha256_hex
from pointsman.strategies.kinds import STRATEGIES, make_encoder
from pointsman.strategies.manifest import MANIFEST
from pointsman.strategies.pointer import Pointer, parse_pointer, sign, verify
from support.bundle_seeds import seed_bundles
from support.bundles import new_key

__all__ = ["Report", "fuzz", "mutated"]

MEMORY = 384 * 2**20
"""Bytes of address space that a child may take beyond what it has: bundles here are some kilobytes."""

SECONDS = 6.0
"""Of processor time for one mutation, loading and scoring; then it counts as a hang. They take some milliseconds."""

WAITING = 120.0
"""Seconds by the clock on the wall, for what hangs without work: far more than a busy machine makes of `SECONDS`."""

WITH_FILES = ("concat", "longformer", "minilm", "onnx")
PARTS = ("encoder.safetensors", "strategy.safetensors")
NASTY: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 255, 65_536, 65_537, 2**31, 2**53, 2**63, 2**64, 10**40, -(2**63), 0.5, -0.0, 1e-320, 1e308, -1e308),
    *("", "a", "\0", "../x", "é" * 300, "knn", "hashing", "classifier", "regression", "relu", "x" * 70_000),
    *(None, True, False, [], {}, [0], [[]], {"": 0}, [1] * 2000, {"k": {"k": {"k": []}}}),
)
VALUES = (0, 1, -1, 2, 127, 255, 1e-45, 1e-30, 1e30, 3e38, -3e38, 1e308, math.nan, math.inf, -math.inf, 2**31 - 1, 2**63 - 1)
DTYPES = ("float16", "float32", "float64", "int8", "uint8", "int32", "int64", "uint64", "bool")


@dataclass(slots=True)
class Report:
    """What became of the mutations: `failures` are (number, what) of those that did what no bundle may do."""

    done: int = 0
    loaded: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[int, str]] = field(default_factory=list)


# --- mutations ---------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def change_manifest(chance: random.Random, manifest: dict[str, Any]) -> None:
    """One value replaced, removed, doubled, moved, or a surplus one."""
    # Half of the time where strategies and encoders read: the schema alone would refuse most of the rest.
    whole = chance.random() < 0.5
    roots = [("params",), ("encoder", "params"), ("models",), ("probes",), ("kind",), ("encoder",)]
    places = list(_places(manifest))
    if not whole:
        root = chance.choice(roots)
        places = [place for place in places if place[: len(root)] == root] or places
    *parents, key = chance.choice(places)
    parent = _at(manifest, tuple(parents))
    match chance.randrange(7):
        case 0 | 1 | 2:
            parent[key] = chance.choice(NASTY)
        case 3:
            parent.pop(key)
        case 4:
            value = json.loads(json.dumps(parent[key]))
            if isinstance(value, list) and value:
                value *= chance.choice((2, 3, 100))
            elif isinstance(value, bool | None | str | dict | list):
                value = [value]
            else:
                value = value * chance.choice((-1, 2, 0.5, 1000, 2**40)) + chance.choice((0, 1, -1))
            parent[key] = value
        case 5:
            parent[key] = json.loads(json.dumps(_at(manifest, chance.choice(list(_places(manifest))))))
        case _:
            if isinstance(parent, dict):
                parent[chance.choice(("surplus", "k", "gamma", "mode", "members"))] = chance.choice(NASTY)
            else:
                parent.append(chance.choice(NASTY))


def change_arrays(chance: random.Random, arrays: dict[str, Any]) -> None:
    """One array's type, shape or numbers, its name, or its being there."""
    if not arrays:
        arrays["surplus"] = np.zeros(3, np.float32)
        return
    name = chance.choice(sorted(arrays))
    array = arrays[name]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        match chance.randrange(12):
            case 0:
                arrays[name] = array.astype(chance.choice(DTYPES))
            case 1:
                arrays[name] = array[: chance.randrange(0, len(array) + 1)] if array.ndim else array
            case 2:
                arrays[name] = np.concatenate((array, array, array)) if array.ndim else array[None]
            case 3:
                arrays[name] = array.T if array.ndim > 1 else array[:, None] if array.ndim else array[None, None]
            case 4:
                arrays[name] = array.reshape(-1)
            case 5:
                arrays[name] = array[..., :-1] if array.ndim else array
            case 6:
                arrays.pop(name)
            case 7:
                arrays[name + chance.choice(("x", "", "0", "\0", "é" * 50))] = arrays.pop(name)
            case 8:
                other = chance.choice(sorted(arrays))
                arrays[name], arrays[other] = arrays[other], array
            case _:
                arrays[name] = _other_numbers(chance, array)


def _other_numbers(chance: random.Random, array: Any) -> Any:
    changed = np.array(array)
    flat = changed.reshape(-1)
    if not flat.size:
        return changed
    value = np.float64(chance.choice(VALUES)).astype(changed.dtype)
    match chance.randrange(5):
        case 0:
            flat[chance.randrange(flat.size)] = value
        case 1:
            flat[:] = value
        case 2:
            flat[:] = flat[::-1].copy()
        case 3:
            flat[:] = (
                np.random.default_rng(chance.randrange(1 << 30)).integers(0, 256, flat.nbytes, np.uint8).view(changed.dtype)
            )
        case _:
            flat *= changed.dtype.type(chance.choice((0, 2, 100)))
    return changed


def change_together(chance: random.Random, manifest: dict[str, Any], arrays: dict[str, dict[str, Any]]) -> None:
    """Lengths that agree with each other and with nothing else: more rows, more dimensions, more models."""
    part = arrays.get("strategy.safetensors") or {}
    lengths = sorted({length for array in part.values() for length in array.shape})
    if not lengths:
        return
    old, new = chance.choice(lengths), chance.choice((1, 2, 3, 5, 64, 300))
    for name, array in part.items():
        for axis, length in enumerate(array.shape):
            if length == old:
                array = np.take(array, np.arange(new) % old, axis=axis)  # noqa: PLW2901 - the axes one after the other
        part[name] = array
    if old == len(manifest["models"]) and chance.random() < 0.8:
        manifest["models"] = [f"model-{number}" for number in range(new)]
        for probe in manifest["probes"]["items"]:
            probe["scores"] = dict.fromkeys(manifest["models"], 0.5)


def change_header(chance: random.Random, data: bytes) -> bytes:
    """What a file claims of its arrays, or its bytes as such."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    match chance.randrange(6):
        case 0:
            claim = chance.choice((0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1, length + 1, length - 1, len(data)))
            return struct.pack("<Q", claim % 2**64) + header + body
        case 1:
            return _bytes(chance, data)
        case 2:
            return data[: chance.randrange(len(data))]
        case 3:
            return struct.pack("<Q", length) + header + body + bytes(chance.randrange(1, 5000))
        case _:
            content = json.loads(header)
            change_manifest_like(chance, content)
            encoded = json.dumps(content).encode()
            return struct.pack("<Q", len(encoded)) + encoded + body


def change_manifest_like(chance: random.Random, content: Any) -> None:
    """One value of any JSON, with numbers that matter in headers."""
    places = list(_places(content))
    if not places:
        return
    *parents, key = chance.choice(places)
    parent = _at(content, tuple(parents))
    types = ("F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "?")
    numbers = (0, 1, 2, 3, 4, 7, 2**20, 2**31, 2**32, 2**40, 2**62, 2**63, -1, 0.5)
    shapes: tuple[list[int], ...] = ([], [0], [2**60, 0], [0, 2**60], [1] * 9, [2**31, 2**31], [3, 4], [2**63 - 1])
    parent[key] = chance.choice((chance.choice(types), chance.choice(numbers), chance.choice(shapes), chance.choice(NASTY)))


def _bytes(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(changed)) if changed else 0
        match chance.randrange(4):
            case 0 if changed:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at : at + chance.randrange(1, 40)]
            case 2:
                changed[at:at] = chance.randbytes(chance.randrange(1, 40))
            case _:
                changed[at : at + 8] = chance.choice((b"\xff" * 8, bytes(8), b"\x00\x00\x00\x80\xff\xff\xff\x7f"))
    return bytes(changed)


def change_zip(chance: random.Random, members: Mapping[str, bytes], data: bytes) -> bytes:
    """The archive around the members."""
    names = (
        "x.safetensors",
        "model.onnx",
        "tokenizer.json",
        "evil.py",
        "evil.so",
        "data.pkl",
        "../up",
        "/abs",
        "a\0b",
        "A.SAFETENSORS",
        "é",
    )
    match chance.randrange(8):
        case 0:
            at = data.rfind(b"PK\x01\x02")
            tail = _bytes(chance, data[at:]) if at > 0 else b""
            return data[: max(at, 0)] + tail
        case 1:
            return _bytes(chance, data[:200]) + data[200:]
        case 2:
            return data[: chance.randrange(len(data))]
        case 3:
            return chance.randbytes(chance.randrange(1, 100)) + data
        case 4:
            return data + chance.randbytes(chance.randrange(1, 100))
        case 5:
            method = chance.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            return _zip(list(members.items()), method)
        case 6:
            return _zip([*members.items(), (chance.choice((*names, *members)), chance.randbytes(20))], zipfile.ZIP_STORED)
        case _:
            return _zip(chance.sample(list(members.items()), len(members) - 1), zipfile.ZIP_STORED)


def _zip(members: list[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


# --- one mutation ------------------------------------------------------------------------------------------------------


def _repair(manifest: Any, members: Mapping[str, bytes], arrays: Mapping[str, dict[str, Any]]) -> None:
    """Digests and sizes that fit, wherever the mutation left a place for them."""
    if not isinstance(manifest, dict):
        return
    if isinstance(manifest.get("files"), dict):
        manifest["files"] = {name: {"sha256": sha256_hex(data), "size": len(data)} for name, data in members.items()}
    encoder = manifest.get("encoder")
    if isinstance(encoder, dict) and "sha256" in encoder:
        found = {
            name: [array.dtype.name, list(array.shape), sha256_hex(np.ascontiguousarray(array).tobytes())]
            for name, array in arrays.get("encoder.safetensors", {}).items()
        }
        content = {"kind": encoder.get("kind"), "params": encoder.get("params"), "arrays": found}
        if encoder.get("kind") in WITH_FILES:
            content["files"] = {name: sha256_hex(data) for name, data in members.items() if name not in PARTS}
        encoder["sha256"] = hashlib.sha256(_encoded(content)).hexdigest()


def _encoded(value: Any) -> bytes:
    try:
        return canonical_json(value)
    except (ValueError, TypeError):
        return json.dumps(value, default=str).encode()


def mutated(number: int, seeds: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Mutation `number`: the name of the seed that it was made of, and a bundle whose digests fit."""
    chance = random.Random(number)
    name = chance.choice(sorted(seeds))
    members = unpack(seeds[name], name)
    manifest: Any = json.loads(members.pop(MANIFEST))
    arrays = {part: dict(unpack_arrays(data, part)) for part, data in members.items() if part in PARTS}
    raw: dict[str, Callable[[bytes], bytes]] = {}
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        match chance.randrange(10):
            case 0 | 1 | 2:
                if isinstance(manifest, dict) and manifest:
                    change_manifest(chance, manifest)
            case 3 | 4 | 5:
                change_arrays(chance, arrays.setdefault(chance.choice(sorted(arrays) or PARTS), {}))
            case 6 | 7:
                if isinstance(manifest, dict) and isinstance(manifest.get("models"), list):
                    with np.errstate(all="ignore"):
                        _quietly(change_together, chance, manifest, arrays)
            case 8:
                part = chance.choice(sorted(arrays) or PARTS)
                raw[part] = lambda data, seed=chance.randrange(1 << 30): change_header(random.Random(seed), data)  # type: ignore[misc]
            case _:
                raw["zip"] = lambda data: data
    native = sorted(name for name in members if name not in PARTS)
    if native and chance.random() < 0.6:
        part = chance.choice(native)
        members[part] = _bytes(chance, members[part])
    members = {**members, **{part: pack_arrays(content) for part, content in arrays.items() if content}}
    for part, change in raw.items():
        if part in members:
            members[part] = change(members[part])
    _repair(manifest, members, arrays)
    members = {MANIFEST: _encoded(manifest), **members}
    data = pack(members)
    return name, change_zip(chance, members, data) if "zip" in raw else data


def _quietly(work: Callable[..., None], *arguments: Any) -> None:
    # An earlier change may have taken away what this one would have changed.
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError, IndexError):
        work(*arguments)


SELF_TEST = frozenset({"E4307", "E4309", "E4318"})
"""What the self-test refuses with: scores of another shape, other scores, too much work."""


def _past_the_probes(data: bytes) -> Bundle | str:
    """The bundle with probes that fit, or the code with which the self-test refuses it all the same.

    Everything else it passed a moment ago: a refusal for another reason is a mistake, and is raised.
    """
    try:
        return parse_bundle(_with_own_probes(data), where="test")
    except BundleError as error:
        # E4309: one at a time it scores otherwise than many at once, weights are so absurd that nothing cancels.
        # E4307, E4318: the first refusal came before the later probes, and before all at once, were tried.
        if error.code not in SELF_TEST:
            raise
        return error.code
    except UnavailableError:  # a remote encoder whose probes were taken away
        return "E4309"


def _with_own_probes(data: bytes) -> bytes:
    """The same with the scores that it gives as its probes: so that the self-test is no shelter for what comes after it."""
    members = unpack(data, "test")
    manifest = json.loads(members[MANIFEST])
    arrays = {part: unpack_arrays(members[part], part) for part in PARTS if part in members}
    encoder = make_encoder(manifest["encoder"]["kind"], manifest["encoder"]["params"], arrays.get(PARTS[0], {}), {})
    models = tuple(manifest["models"])
    strategy = STRATEGIES[manifest["kind"]].from_parts(models, manifest["params"], arrays.get(PARTS[1], {}))
    scores = strategy.score(encoder.encode([probe["text"] for probe in manifest["probes"]["items"]]))
    if not bool(np.isfinite(scores).all()):
        raise AssertionError(f"{manifest['kind']} scores are not finite: {scores.ravel()[:6]}")
    for probe, row in zip(manifest["probes"]["items"], scores.tolist(), strict=True):
        probe["scores"] = dict(zip(models, row, strict=True))
    return pack({**members, MANIFEST: canonical_json(manifest)})


TEXTS = ("", "gamma alpha " * 40, "\ud800\0🙂 نص")


def _check(bundle: Bundle) -> None:
    """What loads must be what it says."""
    if bundle.manifest.encoder.kind == "remote":
        texts: tuple[str, ...] = tuple(probe.text for probe in bundle.manifest.probes.items)
    else:
        texts = TEXTS
    batch = bundle.score_batch(texts, [None, "ann", "nobody"][: len(texts)] if len(texts) <= 3 else None)
    if batch.shape != (len(texts), len(bundle.models)) or not bool(np.isfinite(batch).all()):
        raise AssertionError(f"{bundle.kind} scores {batch.shape}, finite: {bool(np.isfinite(batch).all())}")
    if bundle.scale == "quality" and not bool(((batch >= 0) & (batch <= 1)).all()):
        raise AssertionError(f"{bundle.kind} says quality and scores {batch.min()} to {batch.max()}")


def attempt(data: bytes, key: SigningKey) -> str:
    """Load one as a gateway does that trusts the key; `ok` or the code of the refusal. Everything else is raised."""
    try:
        manifest = sha256_hex(unpack(data, "test")[MANIFEST])
    except BundleError:
        manifest = sha256_hex(b"")
    digest = sha256_hex(data)
    values = {"strategy": "seed", "bundle": f"bundles/{digest}.zip", "sha256": digest, "size": max(1, len(data)), "sequence": 1}
    unsigned = Pointer(**values, manifest_sha256=manifest, published_at="2026-01-01T00:00:00+00:00")
    pointer = parse_pointer(sign(unsigned, key.private, key.key_id).encoded(), "test")
    verify(pointer, {key.key_id: key.public}, required=True, where="test")
    try:
        bundle = parse_bundle(data, where="test", expect_sha256=pointer.sha256)
    except BundleError as error:
        if error.code != "E4309":
            return error.code
        past = _past_the_probes(data)
        if isinstance(past, str):
            return past
        bundle = past
    _check(bundle)
    return "ok"


# --- many of them ------------------------------------------------------------------------------------------------------


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123 - a file of the kernel
        return int(stream.read().split()[0]) * resource.getpagesize()


def _child(write: int, first: int, last: int, seeds: Mapping[str, bytes], key: SigningKey) -> None:
    """Tell each mutation's number before it is tried, and what came of it after."""
    limit = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    for number in range(first, last):
        os.write(write, f"{number} ?\n".encode())
        # Nothing handles these: the child dies, also inside native code.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        try:
            name, data = mutated(number, seeds)
            result = attempt(data, key)
        except BaseException as error:  # noqa: BLE001 - whatever a mutation raises is what we look for
            kind = "refusal that is no BundleError" if isinstance(error, PointsmanError) else "exception"
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"  # noqa: PTH119 - a name for people
            result = f"! {kind}: {type(error).__name__}: {str(error)[:150]!r} at {place} ({name})"
        os.write(write, (f"{number} {result}".replace("\n", " ")[:400] + "\n").encode())
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)


@one_thread()  # as in the gateway's workers: a child would make threads for each core, whose stacks count as its memory
def fuzz(first: int, count: int, *, batch: int = 500, stop_after: int = 20) -> Report:
    """Try `count` mutations from number `first` on.

    Args:
        first, count: which.
        batch: mutations of one child.
        stop_after: failures after which it is enough.
    """
    seeds, key, report = seed_bundles(), new_key(), Report()
    assert {attempt(data, key) for data in seeds.values()} == {"ok"}, "what is mutated is good"
    at, end = first, first + count
    while at < end and len(report.failures) < stop_after:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(read)
                _child(write, at, min(end, at + batch), seeds, key)
                status = 0
            finally:
                os._exit(status)  # nothing of the parent's clean-up belongs to a child
        os.close(write)
        last = at - 1
        with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
            pending = None
            for line in lines:
                number, _, result = line.rstrip("\n").partition(" ")
                last = int(number)
                pending = last if result == "?" else None
                if result != "?":
                    _count(report, last, result)
        _, status = os.waitpid(pid, 0)
        if pending is not None:
            ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
            report.done += 1
            report.failures.append((pending, f"crashed or hung: {ended} (27: {SECONDS:g} s of work, 14: {WAITING:g} s)"))
        assert last >= at, "a child that tries nothing would be tried for ever"
        at = last + 1
    return report


def _count(report: Report, number: int, result: str) -> None:
    report.done += 1
    if result.startswith("!"):
        report.failures.append((number, result[2:]))
    elif result == "ok":
        report.loaded += 1
    else:
        report.codes[result] = report.codes.get(result, 0) + 1


if __name__ == "__main__":
    chosen = int(sys.argv[1])
    made, content = mutated(chosen, seed_bundles())
    print(made, attempt(content, new_key()))
