"""Code from a source: which wheels and pointers are taken; a version that does not load gives way to the one before."""

from __future__ import annotations

import asyncio
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import BundleError, ConfigError
from pointsman.mlops.keys import SigningKey
from pointsman.mlops.publish_code import publish_code
from pointsman.settings import ProcessSettings, S3Settings, StrategySettings
from pointsman.strategies.files import sha256_hex
from pointsman.strategies.pointer import Pointer, signed_bytes
from pointsman.strategies.remote.code import CodeSource, parse_code_pointer, sign_code
from pointsman.strategies.remote.owner import Owner
from pointsman.strategies.remote.wheel import MAX_FILES, open_wheel, unpack_wheel
from support.s3 import S3Server
from support.wheels import example_wheel, wheel

KEY = SigningKey("release-1", Ed25519PrivateKey.generate())
OPTIONS = {"models": ["weak", "strong"], "words": 5}


def opened(path: Path, max_bytes: int = 2**20) -> Any:
    return open_wheel(path, max_bytes=max_bytes, expect_sha256=sha256_hex(path.read_bytes()))


def test_a_wheel_is_unpacked_under_its_digest(tmp_path: Path) -> None:
    found = opened(example_wheel(tmp_path))
    assert (found.name, found.version) == ("length_strategy", "1.0.0")
    directory = unpack_wheel(found, tmp_path / "out")
    assert directory.name == found.sha256
    names = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert names == set(found.files) >= {"length_strategy.py", "length_strategy-1.0.0.dist-info/entry_points.txt"}


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"../out.py": ""}, "E4310"),
        ({"/out.py": ""}, "E4310"),
        ({"a/../../out.py": ""}, "E4310"),
        ({"a\\..\\out.py": ""}, "E4310"),
        ({"c:out.py": ""}, "E4310"),
        ({"a//b.py": ""}, "E4310"),
        ({"x" * 300: ""}, "E4310"),
        ({"mine.pth": "import os"}, "E4330"),
        ({"mine-1.0.data/scripts/run": "#!"}, "E4330"),
        ({"mine.so": b"\x7fELF"}, "E4330"),
        ({"mine/__pycache__/a.pyc": b""}, "E4330"),
        ({"model.PKL": b"\x80\x04"}, "E4330"),
        ({"model.pt": b"PK"}, "E4330"),
        ({"sitecustomize.py": ""}, "E4330"),
        ({"a.py": "", "A.py": ""}, "E4330"),
        ({"other-1.0.dist-info/METADATA": ""}, "E4330"),
        ({f"{number}.py": "" for number in range(MAX_FILES)}, "E4330"),
        ({"large.txt": "x" * (2**20 + 1)}, "E4301"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value))[:40],
)
def test_what_is_not_taken(tmp_path: Path, files: dict[str, str | bytes], code: str) -> None:
    with pytest.raises(BundleError) as caught:
        opened(wheel(tmp_path / "mine-1.0-py3-none-any.whl", files))
    assert caught.value.code == code


@pytest.mark.parametrize("tag", ["cp311-cp311-linux_x86_64", "py2-none-any", "py3-none-any\nTag: py2-none-any"])
def test_a_tag_that_is_not_taken(tmp_path: Path, tag: str) -> None:
    with pytest.raises(BundleError, match="py3-none-any"):
        opened(wheel(tmp_path / "w.whl", {"a.py": ""}, tag=tag))


def rewritten(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipInfo, bytes], None]) -> Path:
    other = path.with_name("other.whl")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            change(new, info, old.read(info))
    return other


def test_a_link_a_changed_file_and_one_that_is_not_listed(tmp_path: Path) -> None:
    path = wheel(tmp_path / "w.whl", {"a.py": "x = 1"})

    def link(new: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes) -> None:
        info.external_attr = (0o120777 if info.filename == "a.py" else 0o100600) << 16
        new.writestr(info, data)

    def changed(new: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes) -> None:
        new.writestr(info, b"x = 2" if info.filename == "a.py" else data)

    def added(new: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes) -> None:
        new.writestr(info, data)
        if info.filename == "a.py":
            new.writestr("b.py", "")

    for change, words in ((link, "no plain file"), (changed, "RECORD says"), (added, "does not list")):
        with pytest.raises(BundleError, match=words):
            opened(rewritten(path, change))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = wheel(tmp_path / "w.whl", {"zeros.txt": b"\0" * (40 * 2**20)})
    assert path.stat().st_size < 2**20
    with pytest.raises(BundleError) as caught:
        opened(path, 2**30)
    assert caught.value.code == "E4301"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_wheel_is_refused_or_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = example_wheel(tmp_path_factory.mktemp("w"))
    good, content = opened(path), bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = opened(path)
    except BundleError:
        return
    assert found.files == good.files


def test_pointers_of_code_and_of_bundles_cannot_stand_for_each_other() -> None:
    fields = {"strategy": "s", "sha256": "0" * 64, "size": 5, "sequence": 1, "published_at": "now", "key_id": "k"}
    code = sign_code(KEY.private, wheel="code/a.whl", **fields)
    assert parse_code_pointer(code.encoded(), "here") == code
    bundle = Pointer(bundle="a.zip", manifest_sha256="0" * 64, **{**fields, "key_id": None})
    assert code.signed_bytes().split(b"\n")[0] != signed_bytes(bundle).split(b"\n")[0]
    for wrong in (bundle.encoded(), b"{}", b"\x80\x04.", code.encoded().replace(b"a.whl", b"../a.whl")):
        with pytest.raises(BundleError) as caught:
            parse_code_pointer(wrong, "here")
        assert caught.value.code == "E4312"


def test_it_is_published_signed_or_not_at_all(tmp_path: Path) -> None:
    path = example_wheel(tmp_path)
    for more in ({"key": None, "strategy": "mine"}, {"key": KEY, "strategy": None}):
        with pytest.raises(ConfigError):
            publish_code(path, str(tmp_path / "to"), **more)  # type: ignore[arg-type]
    assert not (tmp_path / "to").exists()
    for number in (1, 2):
        assert publish_code(path, str(tmp_path / "to"), strategy="mine", key=KEY).sequence == number
    with pytest.raises(BundleError) as caught:
        publish_code(path, str(tmp_path / "to"), strategy="other", key=KEY)
    assert caught.value.code == "E4305"


class Served:
    """A strategy whose code comes from a directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "scratch").mkdir(exist_ok=True)
        self.settings = StrategySettings(
            source=str(base / "published/current.json"),
            kind="custom",
            entry_point="length",
            options=OPTIONS,
            allow_signed_code=True,
            trusted_keys={KEY.key_id: KEY.public},
        )
        self.code = CodeSource("mine", self.settings, base / "kept", base / "scratch", self.restart)
        limits = ProcessSettings(python=sys.executable, deadline_ms=5_000)
        self.owner = Owner("mine", limits, {}, base / "scratch", self.code.spec)
        self.owner.on_loaded, self.owner.on_unloadable = self.code.proved, self.code.failed

    def restart(self) -> None:
        self.owner.restart()

    async def start(self) -> None:
        await self.code.start()
        self.owner.start()

    def publish(self, version: str, module: str | None = None, **more: Any) -> None:
        path = example_wheel(self.base, version=version, module=module)
        publish_code(path, str(self.base / "published"), **{"strategy": "mine", "key": KEY, **more})

    async def pick(self, text: str) -> str:
        scores = await self.owner.ask(text, None)
        return max(scores, key=scores.__getitem__)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - a state of another process
                await asyncio.sleep(0.02)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    made = Served(tmp_path)
    yield made
    await made.owner.stop()


INVERTED = """
class Inverted:
    models, scale = ["weak", "strong"], "quality"
    def score(self, texts, users):
        return [[0.0, 1.0] for _ in texts]
def make(models, words):
    return Inverted()
"""


async def test_a_new_version_takes_over_and_one_that_does_not_load_gives_way(served: Served, tmp_path: Path) -> None:
    served.publish("1.0.0")
    await served.start()
    await served.until(lambda: served.owner.ready)
    assert await served.pick("two words") == "weak"
    assert served.owner.about.version == "1.0.0"
    assert "length_strategy" not in sys.modules, "it is imported in its own process alone"

    served.publish("2.0.0", INVERTED)
    await served.code.poll()
    await served.until(lambda: served.owner.ready and served.owner.about.version == "2.0.0")
    assert await served.pick("two words") == "strong"
    assert served.owner.about.scale == "quality"

    served.publish("3.0.0", "raise RuntimeError('not today')")
    await served.code.poll()
    await served.until(lambda: served.code.error)
    assert "not today" in str(served.code.error)
    await served.until(lambda: served.owner.ready)
    assert (await served.pick("two words"), served.owner.about.version) == ("strong", "2.0.0")
    await served.code.poll()
    assert served.owner.ready, "it is not tried again"

    # What is on disk serves while the source is away.
    await served.owner.stop()
    (tmp_path / "published/current.json").unlink()
    again = Served(tmp_path)
    await again.start()
    try:
        await again.until(lambda: again.owner.ready)
        assert again.owner.about.version == "2.0.0"
        assert again.code.error is not None
    finally:
        await again.owner.stop()


async def test_what_is_not_signed_well_is_not_run(served: Served, tmp_path: Path) -> None:
    pointer = tmp_path / "published/current.json"
    served.publish("1.0.0")
    first = pointer.read_bytes()
    served.publish("2.0.0", INVERTED, key=SigningKey("release-1", Ed25519PrivateKey.generate()))
    await served.start()
    assert served.code.error is not None
    assert served.code.error.code == "E4303"
    assert served.code.current is None
    served.publish("2.0.0", INVERTED)
    await served.code.poll()
    await served.until(lambda: served.owner.ready)
    pointer.write_bytes(first)  # an old pointer, put back
    await served.code.poll()
    assert served.code.error.code == "E4304"
    assert served.owner.about.version == "2.0.0"
    pointer.write_bytes(pointer.read_bytes().replace(b'"mine"', b'"else"'))
    await served.code.poll()
    assert served.code.error.code == "E4303"


async def test_a_pointer_that_is_signed_for_another_strategy(served: Served, tmp_path: Path) -> None:
    served.publish("1.0.0", strategy="other")
    await served.start()
    assert (served.code.error.code, served.code.current) == ("E4305", None)  # type: ignore[union-attr]
    # Nor does a wheel of another digest pass for the one that was signed, however its pointer is put together.
    pointer = tmp_path / "published/current.json"
    pointer.unlink()
    served.publish("1.0.0")
    good = parse_code_pointer(pointer.read_bytes(), "here")
    for change in ({"sequence": 7}, {"sha256": "0" * 64}, {"wheel": "other.whl"}, {"strategy": "other"}, {"size": 1}):
        pointer.write_bytes(good.model_copy(update=change).encoded())
        await served.code.poll()
        assert (served.code.error.code, served.code.current) == ("E4303", None), change  # type: ignore[union-attr]


async def test_what_was_wrong_is_told_as_long_as_it_is(served: Served, tmp_path: Path) -> None:
    pointer, aside = tmp_path / "published/current.json", tmp_path / "aside"
    served.publish("1.0.0")
    await served.start()
    await served.until(lambda: served.owner.ready)

    async def told() -> str | None:
        await served.code.poll()
        return served.code.error.code if served.code.error is not None else None

    pointer.rename(aside)
    assert await told() is not None
    aside.rename(pointer)
    assert await told() is None, "the source is back"
    good = pointer.read_bytes()
    pointer.write_bytes(b"{}")
    assert await told() == "E4312"
    pointer.write_bytes(good)
    assert await told() is None
    served.publish("2.0.0", "raise RuntimeError('not today')")
    await served.code.poll()
    await served.until(lambda: served.code.error and served.owner.ready)
    pointer.rename(aside)
    assert await told() not in (None, "E4330")
    aside.rename(pointer)
    assert await told() == "E4330", "what is published still cannot be loaded"


@pytest.mark.alone
async def test_a_source_that_hangs_does_not_hold_the_start_up(
    served: Served, s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pointsman.strategies.remote.code.START_WAIT", 0.1)
    where = f"s3://{s3_environment.new_bucket()}/code/current.json"
    s3 = S3Settings(endpoint_url=s3_environment.endpoint_url, connect_timeout=0.5, read_timeout=0.5)
    publish_code(example_wheel(tmp_path), where, strategy="mine", key=KEY, s3=s3)
    # Looked at until there is something to run, although it is not to be reloaded.
    served.settings = served.settings.model_copy(
        update={"source": where, "s3": s3, "hot_reload": False, "reload_interval": 0.1}
    )
    code = CodeSource("mine", served.settings, tmp_path / "kept", tmp_path / "scratch", lambda: None)
    with s3_environment.fault("hang"):
        started = time.monotonic()
        await code.start()
        assert time.monotonic() - started < 0.45
    polling = asyncio.create_task(code.run())
    await served.until(lambda: code.current)
    async with asyncio.timeout(10):
        await polling  # it ends by itself
    assert code.error is None


async def test_a_directory_that_cannot_be_used(served: Served, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    served.publish("1.0.0")
    await served.start()
    assert served.code.error is not None
    assert served.code.current is None


async def test_what_is_kept_on_disk_is_damaged(served: Served, tmp_path: Path) -> None:
    (tmp_path / "kept/state.json").mkdir(parents=True)
    served.publish("1.0.0")
    await served.start()
    assert served.code.error is not None, "it cannot be saved; that is told, and nothing else falls"


async def test_a_wheel_that_is_not_the_signed_one(served: Served, tmp_path: Path) -> None:
    served.publish("1.0.0")
    (found,) = (tmp_path / "published").rglob("*.whl")
    found.write_bytes(found.read_bytes() + b"more")
    await served.start()
    assert served.code.error is not None
    assert served.code.error.code == "E4302"
    assert not list((tmp_path / "kept").glob("*.whl"))
