"""Bundles: the same bytes each time, every check of a loader, and nothing left behind when the disk is full."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import BundleError, PointsmanError, SourceError
from pointsman.strategies import bundle as bundles
from pointsman.strategies.archive import pack, unpack
from pointsman.strategies.base import Matrix
from pointsman.strategies.bundle import load_bundle, parse_bundle
from pointsman.strategies.constant import SmallestStrategy
from pointsman.strategies.files import sha256_hex, strict_json, write_atomic
from pointsman.strategies.manifest import MANIFEST
from support.bundle_seeds import seed_bundle
from support.bundles import CORRUPTIONS, corrupt, make_bundle, rebuild


def refused(data: bytes, **kwargs: Any) -> BundleError:
    with pytest.raises(BundleError) as caught:
        parse_bundle(data, where="bundle.zip", **kwargs)
    return caught.value


def test_a_bundle_routes_by_what_it_learned(small: Path) -> None:
    bundle = load_bundle(small, expect_name="knn")
    assert (bundle.name, bundle.version, bundle.kind, bundle.models) == ("knn", "1", "knn", ("model-a", "model-b"))
    for text, model in (("An apple a day", "model-a"), ("is it alpha?", "model-a"), ("the beta version", "model-b")):
        scores = bundle.score(text)
        assert max(scores, key=scores.__getitem__) == model
    batch = bundle.score_batch(["apple", "beta"])
    assert batch.shape == (2, 2)
    assert bundle.score("apple") == pytest.approx(dict(zip(bundle.models, batch[0].tolist(), strict=True)), abs=1e-6)
    assert bundle.sha256 == sha256_hex(small.read_bytes())


class Slow(SmallestStrategy):
    """Each decision takes 0.3 s: of waiting, as for a processor that others have, or of work."""

    work = False

    def score(self, vectors: Matrix) -> Matrix:
        clock = time.thread_time if self.work else time.monotonic
        until = clock() + 0.3
        while clock() < until:
            time.sleep(0 if self.work else 0.3)
        return super().score(vectors)


class Laborious(Slow):
    """See `Slow`."""

    work = True


@pytest.mark.parametrize("kind", [Slow, Laborious])
def test_a_decision_has_a_limit_of_work_and_a_busy_machine_does_not_count(
    kind: type[Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "PROBE_SECONDS", 0.2)
    good = parse_bundle(seed_bundle("smallest", "none"), where="bundle.zip")
    strategy = kind(good.models, good.strategy.arrays()["sizes"])
    slow = bundles.Bundle(good.manifest, good.manifest_sha256, good.sha256, good.size, good.encoder, strategy)
    found = None
    try:
        vars(bundles)["_probe"](slow, "bundle.zip")
    except BundleError as error:
        found = error.code
    assert found == ("E4318" if strategy.work else None)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "one", "7"), make_bundle(tmp_path / "two", "7")
    assert one.read_bytes() == two.read_bytes()
    assert make_bundle(tmp_path, "8").read_bytes() != one.read_bytes()


def test_it_holds_no_text_of_the_data(tmp_path: Path) -> None:
    """Only the probes, which the trainer chooses, stand in clear."""
    data = make_bundle(tmp_path, prefer={"model-a": ["confidentialword"]}).read_bytes()
    members = unpack(data, "test")
    assert b"confidentialword" not in b"".join(body for name, body in members.items() if name != MANIFEST)


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_every_damage_has_its_error(tmp_path: Path, kind: str) -> None:
    path = corrupt(make_bundle(tmp_path), kind)
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    assert caught.value.code == CORRUPTIONS[kind]
    assert str(path) in str(caught.value), "says which file"


def test_a_pickle_names_the_way_out(tmp_path: Path) -> None:
    good = make_bundle(tmp_path)
    for kind in ("pickle", "torch"):
        with pytest.raises(BundleError, match="pointsman strategies import"):
            load_bundle(corrupt(good, kind))
    for suffix in (".pkl", ".pt", ".joblib"):
        renamed = good.with_suffix(suffix)
        renamed.write_bytes(good.read_bytes())
        with pytest.raises(BundleError, match="pointsman strategies import"):
            load_bundle(renamed)


def test_no_code_runs_from_a_pickle(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    bomb = b"cos\nsystem\n(S'touch " + str(target).encode() + b"'\ntR."
    (tmp_path / "model.zip").write_bytes(bomb)
    with pytest.raises(BundleError) as caught:
        load_bundle(tmp_path / "model.zip")
    assert caught.value.code == "E4205"
    assert not target.exists()


def test_size_digest_and_name(small: Path) -> None:
    data = small.read_bytes()
    assert refused(data, max_bytes=len(data) - 1).code == "E4301"
    assert refused(data, expect_sha256="0" * 64).code == "E4302"
    assert refused(data, expect_name="other").code == "E4305"
    assert parse_bundle(data, where="x", max_bytes=len(data), expect_sha256=sha256_hex(data), expect_name="knn").version == "1"


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.zip"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: reading it would take minutes and a terabyte
    with pytest.raises(BundleError) as caught:
        load_bundle(path, max_bytes=1 << 20)
    assert caught.value.code == "E4301"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        load_bundle(tmp_path / "none.zip")
    assert caught.value.code == "E4404"


def edit(**changes: Any) -> Any:
    def manifest(content: dict[str, Any]) -> None:
        for path, value in changes.items():
            *parents, last = path.split("__")
            target: Any = content
            for part in parents:
                target = target[part]
            target[last] = value

    return manifest


@pytest.mark.parametrize(
    ("changes", "code", "key"),
    [
        ({"format": "pointsman/bundle/2"}, "E4306", "format"),
        ({"format": "something"}, "E4306", "format"),
        ({"name": "../up"}, "E4306", "name"),
        ({"version": ""}, "E4306", "version"),
        ({"surplus": 1}, "E4306", "surplus"),
        ({"kind": "unheard-of"}, "E4306", "unheard-of"),
        ({"encoder__kind": "unheard-of"}, "E4306", "unheard-of"),
        ({"encoder__dimensions": 7}, "E4307", "dimensions"),
        ({"encoder__dimensions": 0}, "E4306", "dimensions"),
        ({"models": []}, "E4306", "models"),
        ({"models": ["model-a", "model-a"]}, "E4306", "models"),
        ({"probes__tolerance": 0.5}, "E4306", "tolerance"),
        ({"probes__items": []}, "E4306", "items"),
        ({"params": {"k": -1}}, "E4306", "k"),
        ({"files__other.safetensors": {"sha256": "0" * 64, "size": 1}}, "E4300", "other"),
        ({"files__strategy.safetensors__size": 1}, "E4302", "strategy"),
    ],
)
def test_a_bad_manifest(small: Path, changes: dict[str, Any], code: str, key: str) -> None:
    error = refused(rebuild(small.read_bytes(), manifest=edit(**changes)))
    assert error.code == code
    assert key in str(error), "names what is wrong"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_no_manifest(small: Path, body: bytes) -> None:
    members = unpack(small.read_bytes(), "test")
    assert refused(pack({**members, MANIFEST: body})).code == "E4306"


@pytest.mark.parametrize("name", ["a/../../b.safetensors", "C:\\b.safetensors", "..\\b.safetensors", "/b.safetensors"])
def test_names_that_lead_elsewhere(small: Path, name: str) -> None:
    members = unpack(small.read_bytes(), "test")
    assert refused(pack({**members, name: b"x"})).code == "E4310"


def test_a_bomb_by_overlap_is_refused(small: Path) -> None:
    """A directory that promises more bytes than the archive has."""
    data = bytearray(small.read_bytes())
    at = data.find(b"PK\x01\x02")
    for offset in (20, 24):  # sizes in the directory
        data[at + offset : at + offset + 4] = (0x7FFFFFFF).to_bytes(4, "little")
    assert refused(bytes(data)).code in ("E4300", "E4306")


@settings(max_examples=150)
@given(st.data())
def test_no_change_of_bytes_gets_through(small: Path, data: st.DataObject) -> None:
    """Bits flipped, bytes cut out, put in or repeated: an error of ours every time, as the digest of the whole is known."""
    good = small.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(bad) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "truncate"])):
            case "flip" if bad:
                bad[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del bad[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                bad[at:at] = data.draw(st.binary(min_size=1, max_size=40))
            case _:
                del bad[at:]
    if bytes(bad) == good:
        return
    assert refused(bytes(bad), expect_sha256=sha256_hex(good)).code == "E4302"
    with contextlib.suppress(BundleError):  # without the digest: an error of ours, or what it says is still all true
        parse_bundle(bytes(bad), where="test")


@settings(max_examples=100)
@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_with_an_error_of_ours(data: bytes) -> None:
    assert refused(data).code.startswith(("E43", "E4205"))
    assert refused(b"PK\x03\x04" + data).code.startswith(("E43", "E4205"))


def test_strict_json() -> None:
    assert strict_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.bundles import make_bundle
from pointsman.errors import SourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    make_bundle(Path({directory!r}), "9")
except SourceError as error:
    print(error.code)
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """The file-size limit makes write() fail as a full disk does, in a process of its own."""
    code = FULL.format(tests=str(Path(__file__).parents[1]), directory=str(tmp_path))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == "E4410", out.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_replaces_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(OSError, match=r".*"):
        write_atomic(tmp_path / "none" / "file", b"new")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="large"):
            write_atomic(path, b"n" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208 - hidden files count
    assert path.stat().st_mode & 0o777 == 0o600


def test_errors_are_json(small: Path) -> None:
    error: PointsmanError = refused(small.read_bytes()[:100])
    assert json.loads(json.dumps(error.as_json()))["error"]["code"] == "E4300"
