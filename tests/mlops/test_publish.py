"""Publishing and keys: the bundle first, the pointer last, all or nothing."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pointsman.errors import BundleError, ConfigError, SourceError
from pointsman.mlops.destinations import open_destination
from pointsman.mlops.keys import SigningKey, generate, load_key
from pointsman.mlops.publish import publish
from pointsman.settings import S3Settings
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.pointer import parse_pointer, verify
from support.bundles import CORRUPTIONS, corrupt, make_bundle, new_key
from support.s3 import S3Server


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("bundles")
    return [make_bundle(directory, str(number)) for number in range(3)]


class Place:
    """Somewhere to publish to, and how to look at what is there."""

    def __init__(self, destination: str, objects: Callable[[], dict[str, bytes]], s3: S3Settings) -> None:
        self.destination, self.objects, self.s3 = destination, objects, s3

    def publish(self, bundle: Path, **kwargs: Any) -> Any:
        return publish(bundle, self.destination, s3=self.s3, **kwargs)


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        root = tmp_path / "store" / "knn"

        def files() -> dict[str, bytes]:
            found = root.rglob("*") if root.exists() else []
            return {str(path.relative_to(root)): path.read_bytes() for path in found if path.is_file()}

        return Place(str(root), files, S3Settings())
    server: S3Server = request.getfixturevalue("s3_environment")
    bucket = server.new_bucket()

    def objects() -> dict[str, bytes]:
        listed = server.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {
            item["Key"].removeprefix("knn/"): server.client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            for item in listed
        }

    settings = S3Settings(endpoint_url=server.endpoint_url, connect_timeout=1, read_timeout=2)
    return Place(f"s3://{bucket}/knn/current.json", objects, settings)


@pytest.mark.requirement("R-5.10", "R-5.5")
def test_what_is_published(place: Place, bundles: list[Path]) -> None:
    key = new_key()
    for number, path in enumerate(bundles, 1):
        pointer = place.publish(path, key=key)
        assert pointer.sequence == number
        bundle = load_bundle(path)
        objects = place.objects()
        assert objects[pointer.bundle] == path.read_bytes()
        assert objects["current.json"] == objects[f"bundles/{bundle.sha256}.json"] == pointer.encoded()
        found = parse_pointer(objects["current.json"], "test")
        verify(found, {key.key_id: key.public}, required=True, where="test")
        assert (found.sha256, found.manifest_sha256, found.size) == (bundle.sha256, bundle.manifest_sha256, bundle.size)
    assert len(objects) == 1 + 2 * len(bundles)


def test_sequence_numbers(place: Place, bundles: list[Path]) -> None:
    assert place.publish(bundles[0], sequence=41).sequence == 41
    assert place.publish(bundles[1]).sequence == 42
    before = place.objects()
    with pytest.raises(BundleError) as caught:
        place.publish(bundles[2], sequence=42)
    assert caught.value.code == "E4304"
    assert place.objects() == before


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_a_bad_bundle_is_not_published(tmp_path: Path, kind: str) -> None:
    bad = corrupt(make_bundle(tmp_path / "made"), kind)
    with pytest.raises(BundleError) as caught:
        publish(bad, str(tmp_path / "store"))
    assert caught.value.code == CORRUPTIONS[kind]
    assert not (tmp_path / "store").exists()


def test_another_strategys_place_is_left_alone(place: Place, bundles: list[Path], tmp_path: Path) -> None:
    place.publish(bundles[0])
    before = place.objects()
    with pytest.raises(BundleError) as caught:
        place.publish(make_bundle(tmp_path, "1", name="other"))
    assert caught.value.code == "E4305"
    assert place.objects() == before


def test_what_is_no_pointer_is_not_overwritten_by_accident(tmp_path: Path, bundles: list[Path]) -> None:
    (tmp_path / "current.json").write_text('{"precious": true}')
    with pytest.raises(BundleError) as caught:
        publish(bundles[0], str(tmp_path))
    assert caught.value.code == "E4312"
    assert (tmp_path / "current.json").read_text() == '{"precious": true}'
    assert publish(bundles[0], str(tmp_path), sequence=7).sequence == 7, "but on purpose"


@pytest.mark.parametrize(
    ("fault", "code"), [("refuse", "E4400"), ("forbidden", "E4401"), ("broken", "E4400"), ("hang", "E4400")]
)
def test_s3_that_fails_before_anything_is_written(s3_environment: S3Server, bundles: list[Path], fault: str, code: str) -> None:
    settings = S3Settings(endpoint_url=s3_environment.endpoint_url, connect_timeout=0.3, read_timeout=0.3)
    bucket = s3_environment.new_bucket()
    with s3_environment.fault(fault), pytest.raises(SourceError) as caught:
        publish(bundles[0], f"s3://{bucket}/current.json", s3=settings)
    assert caught.value.code == code
    assert "Contents" not in s3_environment.client.list_objects_v2(Bucket=bucket)


def test_no_bucket(s3_environment: S3Server, bundles: list[Path]) -> None:
    settings = S3Settings(endpoint_url=s3_environment.endpoint_url)
    with pytest.raises(SourceError) as caught:
        publish(bundles[0], "s3://no-such-bucket-here/current.json", s3=settings)
    assert caught.value.code == "E4404"


def test_s3_that_fails_while_writing_leaves_the_pointer(s3_environment: S3Server, bundles: list[Path]) -> None:
    """The store breaks after the bundle went up and before the pointer did."""
    settings = S3Settings(endpoint_url=s3_environment.endpoint_url, connect_timeout=0.3, read_timeout=0.5)
    bucket = s3_environment.new_bucket()
    target = f"s3://{bucket}/current.json"
    publish(bundles[0], target, s3=settings)
    place = open_destination(target, settings)
    before = place.read("current.json")
    assert before is not None
    with s3_environment.fault("broken"), pytest.raises(SourceError) as caught:
        place.replace(b"{}", before[1])
    assert caught.value.code == "E4410"
    assert "still says" in str(caught.value)
    assert place.read("current.json") == before


def test_two_publishers_to_s3_at_once(s3_environment: S3Server, bundles: list[Path]) -> None:
    """Conditional writes: the second one is told, nothing is lost and no number is given twice."""
    settings = S3Settings(endpoint_url=s3_environment.endpoint_url)
    target = f"s3://{s3_environment.new_bucket()}/current.json"
    place = open_destination(target, settings)
    publish(bundles[0], target, s3=settings)
    stale = place.read("current.json")
    assert stale is not None
    publish(bundles[1], target, s3=settings)
    for tag in (stale[1], None):
        with pytest.raises(SourceError, match="somebody else published") as caught:
            place.replace(b"{}", tag)
        assert caught.value.code == "E4410"
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(publish, bundles[2], target, s3=settings) for _ in range(4)]
    sequences = [future.result().sequence for future in futures if future.exception() is None]
    assert all(isinstance(future.exception(), SourceError | None) for future in futures)
    assert sequences
    assert len(set(sequences)) == len(sequences)
    last = place.read("current.json")
    assert last is not None
    assert json.loads(last[0])["sequence"] == max(sequences) == 2 + len(sequences)


def test_two_publishers_to_a_directory_at_once(tmp_path: Path, bundles: list[Path]) -> None:
    place = open_destination(str(tmp_path / "store"), S3Settings())
    with place.locked(), pytest.raises(SourceError, match="somebody else is publishing"):
        publish(bundles[0], str(tmp_path / "store"))
    assert publish(bundles[0], str(tmp_path / "store")).sequence == 1


FULL = """
import resource, sys
from pathlib import Path
from pointsman.errors import SourceError
from pointsman.mlops.publish import publish
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    publish(Path(sys.argv[1]), sys.argv[2])
except SourceError as error:
    print(error.code, error.mend)
"""


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_full_disk_while_publishing(tmp_path: Path, bundles: list[Path], limit: int) -> None:
    """The file-size limit makes write() fail as a full disk does: at the bundle, whatever its size."""
    store = tmp_path / "store"
    publish(bundles[0], str(store))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    out = subprocess.run(
        [sys.executable, "-c", FULL, str(bundles[1]), str(store), str(limit)], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("E4410"), out.stderr
    assert "still says" in out.stdout
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


TINY = """
import ctypes, json, sys
from pathlib import Path
from pointsman.errors import SourceError
from pointsman.mlops.publish import publish
store, first, second = map(Path, sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, REC, PRIVATE = 0x20000, 1 << 14, 1 << 18
if libc.unshare(NEWNS) or libc.mount(b"none", b"/", None, REC | PRIVATE, None):
    sys.exit("no namespace")
if libc.mount(b"tmpfs", bytes(store), b"tmpfs", 0, b"size=64k"):
    sys.exit("no tmpfs")
publish(first, str(store))
before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
try:
    with (store / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(1024))
except OSError:
    pass
try:
    publish(second, str(store))
except SourceError as error:
    (store / "ballast").unlink()
    after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    print(json.dumps([error.code, error.message, before == after]))
"""


def test_a_disk_that_is_really_full(tmp_path: Path, bundles: list[Path]) -> None:
    """A file system of 64 kB, in a mount namespace of the process's own."""
    store = tmp_path / "tiny"
    store.mkdir()
    arguments = [sys.executable, "-c", TINY, str(store), str(bundles[0]), str(bundles[1])]
    out = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if out.stderr.startswith("no "):
        pytest.skip(f"no small file system can be made here ({out.stderr.strip()}); the limit on file sizes above stands in")
    code, message, unchanged = json.loads(out.stdout)
    assert code == "E4410", out.stderr
    assert "No space left" in message
    assert unchanged


def test_destinations() -> None:
    for bad in ("http://host/current.json", "s3://", "s3:///x", "file://host/x/current.json"):
        with pytest.raises(ConfigError):
            open_destination(bad, S3Settings())
    for good, pointer in (
        ("s3://bucket", "current.json"),
        ("s3://bucket/dir/", "current.json"),
        ("s3://bucket/dir/other.json", "other.json"),
        ("/srv/strategies", "current.json"),
        ("other.json", "other.json"),
        ("file:///srv/a%20b", "current.json"),
    ):
        assert open_destination(good, S3Settings()).pointer == pointer


# --- keys -----------------------------------------------------------------------------------------------------------------


def test_a_key_pair(tmp_path: Path, bundles: list[Path]) -> None:
    path = tmp_path / "keys" / "release.pem"
    public = generate(path, "release")
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(base64.b64decode(public)) == 32
    key = load_key(path)
    assert (key.key_id, key.public) == ("release", public)
    assert load_key(path, "other").key_id == "other"
    pointer = publish(bundles[0], str(tmp_path / "store"), key=path)
    verify(pointer, {"release": public}, required=True, where="test")
    private = path.read_text().splitlines()[2]
    assert private not in repr(key)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    generate(path, "one")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        generate(path, "two")
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="key id"):
        generate(tmp_path / "other.pem", "../x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError):
        generate(tmp_path / "file" / "key.pem", "one")


def test_keys_that_do_not_do(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(ConfigError, match="keygen"):
        load_key(path)
    generate(path, "one")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(path)
    path.chmod(0o600)
    pem = path.read_bytes().split(b"\n", 1)[1]
    path.write_bytes(pem)
    with pytest.raises(ConfigError, match="no id"):
        load_key(path)
    assert load_key(path, "given").key_id == "given"
    path.write_bytes(b"key-id: one\nnot a key")
    with pytest.raises(ConfigError, match="PEM"):
        load_key(path)
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(b"key-id: one\n" + rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="Ed25519"):
        load_key(path)
    assert isinstance(SigningKey, type)
    assert os.listdir(tmp_path) == ["key.pem"]  # noqa: PTH208 - hidden files count
