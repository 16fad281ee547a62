"""Sources: only what changed is fetched, each failure has its error, waits are bounded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.errors import BundleError, ConfigError, SourceError
from pointsman.settings import S3Settings
from pointsman.strategies.files import sha256_hex
from pointsman.strategies.sources import Source, open_source
from pointsman.strategies.sources.receive import receive, receive_pointer
from support.s3 import S3Server

DATA = os.urandom(700_000)


class Store:
    """The same few steps on either kind of store."""

    def __init__(self, location: str, put: Callable[[str, bytes], None], s3: S3Settings) -> None:
        self.location, self.put, self.s3 = location, put, s3

    def source(self) -> Source:
        return open_source(self.location, self.s3)


@pytest.fixture(params=["file", "file-url", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_environment")
        bucket = server.new_bucket()

        def upload(name: str, data: bytes) -> None:
            server.client.put_object(Bucket=bucket, Key=f"deep/er/{name}", Body=data)

        settings = S3Settings(endpoint_url=server.endpoint_url, connect_timeout=1, read_timeout=1)
        return Store(f"s3://{bucket}/deep/er/current.json", upload, settings)

    def write(name: str, data: bytes) -> None:
        path = tmp_path / "a b" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(path)

    path = str(tmp_path / "a b" / "current.json")
    return Store("file://" + path.replace(" ", "%20") if request.param == "file-url" else path, write, S3Settings())


@pytest.mark.requirement("R-3.2", "R-3.4", "P-22")
def test_an_object_is_opened_only_when_it_changed(store: Store) -> None:
    store.put("current.json", b"one")
    source = store.source()
    first = source.open()
    assert first is not None
    with first:
        assert receive_pointer(first) == b"one"
    assert source.open(None, first.tag) is None
    store.put("current.json", b"two")
    second = source.open(None, first.tag)
    assert second is not None
    with second:
        assert second.tag != first.tag
        assert receive_pointer(second) == b"two"
    assert second.modified is not None
    assert abs(second.modified - time.time()) < 60
    source.close()


def test_what_lies_beside_it(store: Store, tmp_path: Path) -> None:
    store.put("current.json", b"{}")
    store.put("bundles/x.zip", DATA)
    source = store.source()
    opened = source.open("bundles/x.zip")
    assert opened is not None
    into = tmp_path / "copy.zip"
    with opened:
        receive(opened, into, max_bytes=len(DATA), sha256=sha256_hex(DATA), size=len(DATA))
    assert into.read_bytes() == DATA
    assert into.stat().st_mode & 0o777 == 0o600
    source.close()


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_bytes": 1000}, "E4301"),
        ({"max_bytes": 10**7, "sha256": "0" * 64}, "E4302"),
        ({"max_bytes": 10**7, "size": len(DATA) - 1}, "E4302"),
        ({"max_bytes": 10**7, "size": len(DATA) + 1}, "E4302"),
    ],
)
def test_what_does_not_fit_leaves_nothing(store: Store, tmp_path: Path, limits: dict[str, object], code: str) -> None:
    store.put("bundles/x.zip", DATA)
    opened = store.source().open("bundles/x.zip")
    assert opened is not None
    target = tmp_path / "target"
    target.mkdir()
    with opened, pytest.raises(BundleError) as caught:
        receive(opened, target / "copy.zip", **limits)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert list(target.iterdir()) == []


def test_a_pointer_that_is_too_large_is_not_read(store: Store) -> None:
    store.put("current.json", DATA)
    opened = store.source().open()
    assert opened is not None
    with opened, pytest.raises(BundleError) as caught:
        receive_pointer(opened)
    assert caught.value.code == "E4312"


def test_a_missing_object(store: Store) -> None:
    with pytest.raises(SourceError) as caught:
        store.source().open()
    assert caught.value.code == "E4404"
    assert "current.json" in str(caught.value)


def test_a_copy_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    store.put("bundles/x.zip", DATA)
    opened = store.source().open("bundles/x.zip")
    assert opened is not None
    with opened, pytest.raises(SourceError) as caught:
        receive(opened, tmp_path / "none" / "copy.zip", max_bytes=10**7)
    assert caught.value.code == "E4410"


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "pipe.json"):
        started = time.monotonic()
        with pytest.raises(SourceError) as caught:
            open_source(str(path), S3Settings()).open()
        assert caught.value.code == "E4400"
        assert time.monotonic() - started < 2, "nobody waits for the pipe's writer"


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "current.json"
    path.write_bytes(b"{}")
    path.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)  # root reads everything
    try:
        with pytest.raises(SourceError) as caught:
            open_source(str(path), S3Settings()).open()
    finally:
        os.seteuid(before)
    assert caught.value.code == "E4401"


def test_other_schemes_are_refused() -> None:
    for location in ("http://host/current.json", "file://elsewhere/current.json"):
        with pytest.raises(ConfigError):
            open_source(location, S3Settings())


# --- what can go wrong with S3 ----------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_environment: S3Server) -> str:
    name = s3_environment.new_bucket()
    s3_environment.client.put_object(Bucket=name, Key="current.json", Body=b"{}")
    s3_environment.client.put_object(Bucket=name, Key="big.zip", Body=DATA)
    return name


def source_of(s3: S3Server, bucket: str) -> Source:
    settings = S3Settings(endpoint_url=s3.endpoint_url, connect_timeout=0.5, read_timeout=0.5)
    return open_source(f"s3://{bucket}/current.json", settings)


def failure(source: Source, key: str | None = None) -> SourceError:
    def read() -> None:
        opened = source.open(key)
        assert opened is not None
        with opened:
            list(opened.chunks)

    with pytest.raises(SourceError) as caught:
        read()
    return caught.value


def test_no_bucket(s3_environment: S3Server) -> None:
    error = failure(source_of(s3_environment, "no-such-bucket-here"))
    assert error.code == "E4404"
    assert "NoSuchBucket" in str(error)


def test_no_credentials(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    error = failure(source_of(s3, bucket))
    assert error.code == "E4401"
    assert "AWS_ACCESS_KEY_ID" in str(error)


def test_an_unknown_profile(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    error = failure(source_of(s3, bucket))
    assert error.code == "E4401"
    assert "no-such-profile" in str(error)


def test_wrong_credentials(s3: S3Server, bucket: str) -> None:
    with s3.fault("forbidden"):
        error = failure(source_of(s3, bucket))
    assert error.code == "E4401"
    assert "InvalidAccessKeyId" in str(error)


def test_the_store_is_broken(s3: S3Server, bucket: str) -> None:
    with s3.fault("broken"):
        assert failure(source_of(s3, bucket)).code == "E4400"


def test_the_store_is_away_and_comes_back(s3: S3Server, bucket: str) -> None:
    source = source_of(s3, bucket)
    assert source.open() is not None
    with s3.fault("refuse"):
        error = failure(source)
        assert error.code == "E4400"
        assert s3.endpoint_url in str(error)
    assert source.open() is not None


def test_the_store_does_not_answer(s3: S3Server, bucket: str) -> None:
    source = source_of(s3, bucket)
    started = time.monotonic()
    with s3.fault("hang"):
        assert failure(source).code == "E4400"
    assert time.monotonic() - started < 10, "time-outs and tries are bounded"


def test_the_connection_is_cut(s3: S3Server, bucket: str) -> None:
    with s3.fault("cut", after=100_000):
        assert failure(source_of(s3, bucket), "big.zip").code == "E4400"


def test_not_modified_moves_no_body(s3: S3Server, bucket: str) -> None:
    source = source_of(s3, bucket)
    opened = source.open("big.zip")
    assert opened is not None
    with opened:
        list(opened.chunks)
    s3.requests.clear()
    assert source.open("big.zip", opened.tag) is None
    assert [(request.method, request.status) for request in s3.requests] == [("GET", 304)]
