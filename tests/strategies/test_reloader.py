"""The reloader: what is published runs, what is bad does not, what is good stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pointsman.errors import BundleError, DatabaseError
from pointsman.mlops.keys import SigningKey
from pointsman.settings import S3Settings, StrategySettings
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.reloader import Reloader, Snapshot
from pointsman.strategies.rollout import DesiredState, FileRollout, PostgresRollout, Rule, blocked, pinned, unblocked
from support.bundles import CORRUPTIONS, corrupt, make_bundle, new_key, publish, rebuild
from support.s3 import S3Server
from support.stand import NAME, Stand

Make = Callable[..., Stand]


# --- loading --------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R-2.3", "R-3.1", "R-3.2", "R-3.3", "P-5")
async def test_a_new_bundle_is_swapped_in(stand: Make) -> None:
    one = stand()
    one.put(1)
    async with one.running():
        assert one.serving == "1"
        for number in (2, 3, 4):
            pointer = one.put(number)
            await one.until(lambda number=number: one.serving == str(number))
            assert one.reloader.status().sequence == pointer.sequence
    assert [snapshot.version for snapshot in one.snapshots] == ["1", "2", "3", "4"]
    assert [snapshot.generation for snapshot in one.snapshots] == [1, 2, 3, 4]
    for snapshot in one.snapshots:
        assert load_bundle(Path(snapshot.path), expect_sha256=snapshot.sha256).version == snapshot.version
        assert Path(snapshot.path).stat().st_mode & 0o777 == 0o600


async def test_the_status_is_json(stand: Make) -> None:
    one = stand()
    one.put(1)
    await one.reloader.start()
    status = one.reloader.status()
    body = json.loads(json.dumps(status.as_json()))
    assert body["name"] == NAME
    assert (body["kind"], body["version"], body["degraded"], body["last_error"]) == ("knn", "1", False, None)
    assert body["sha256"] == one.snapshots[0].sha256
    assert body["etag"] is None
    assert abs(body["mtime"] - time.time()) < 60
    assert abs(body["loaded_at"] - time.time()) < 60
    assert abs(body["last_check"] - time.time()) < 60


async def test_nothing_is_there_yet(stand: Make) -> None:
    one = stand()
    async with one.running():
        assert one.reloader.status().degraded
        assert one.error == "E4404"
        one.put(1)
        await one.until(lambda: one.serving == "1")
        await one.until(lambda: one.error is None)


async def test_without_hot_reload_it_is_loaded_once(stand: Make) -> None:
    one = stand(hot_reload=False)
    async with one.running():
        assert one.reloader.status().degraded, "nothing there yet"
        one.put(1)
        await one.until(lambda: one.serving == "1")
        one.put(2)
        polls = one.counter("polls")
        await one.until(lambda: one.counter("polls") >= polls + 3)
        assert one.serving == "1"
        status = await one.reloader.reload()
        assert status.version == "2", "asked for, it is loaded"


async def test_a_bare_bundle_is_immutable(stand: Make, tmp_path: Path) -> None:
    path = tmp_path / "store.zip"
    one = stand(str(path), require_signature=False)
    async with one.running():
        assert one.error == "E4404"
        path.write_bytes(one.version(1).read_bytes())
        await one.until(lambda: one.serving == "1")
        path.write_bytes(one.version(2).read_bytes())
        polls = one.counter("polls")
        await one.until(lambda: one.counter("polls") >= polls + 3)
        assert one.serving == "1"


async def test_a_bare_bundle_has_no_signature(stand: Make, tmp_path: Path) -> None:
    make_bundle(tmp_path, "1")
    one = stand(str(tmp_path / "knn-1.zip"))
    await one.reloader.start()
    assert one.error == "E4303"
    assert "mlops publish" in str(one.reloader.status().last_error)
    assert one.snapshots == []


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.joblib"])
async def test_a_pickle_names_the_way_out(stand: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    one = stand(str(tmp_path / name))
    await one.reloader.start()
    assert one.error == "E4205"
    assert "pointsman strategies import" in str(one.reloader.status().last_error)


async def test_another_kind_is_refused(stand: Make) -> None:
    one = stand(kind="svm")
    one.put(1)
    await one.reloader.start()
    assert (one.serving, one.error) == (None, "E4305")


# --- what is bad ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
async def test_a_bad_bundle_is_refused_and_the_good_one_stays(stand: Make, kind: str) -> None:
    one = stand()
    one.put(1)
    await one.reloader.start()
    one.bad(corrupt(one.version(2), kind).read_bytes())
    status = await one.reloader.reload()
    assert status.version == "1"
    # A pointer cannot promise zero bytes, so that an empty file has the wrong size before anything else.
    assert status.last_error_code == ("E4302" if kind == "empty" else CORRUPTIONS[kind])
    assert status.counters["rejected"] == 1
    assert status.sequence == 2, "its pointer was good, so that an older one is a replay"
    assert sorted(path.name for path in one.cache.iterdir()) == sorted([f"{status.sha256}.zip", "state.json"])
    one.put(3)
    assert (await one.reloader.reload()).version == "3"
    assert one.error is None
    assert len(one.snapshots) == 2


def flipped(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


BAD_POINTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "not signed": ("E4303", {"key": None}),
    "unknown key": ("E4303", {"key": new_key("stranger")}),
    "wrong key of a known name": ("E4303", {"key": new_key("test")}),
    "tampered": ("E4303", {"change": lambda pointer: pointer.model_copy(update={"size": pointer.size + 1})}),
    "another strategy's": ("E4305", {"strategy": "other"}),
    "same sequence": ("E4304", {"sequence": 1}),
    "no pointer": ("E4312", {"damage": lambda encoded: encoded[:40]}),
    "size does not fit": ("E4302", {"size": 10}),
    "digest does not fit": ("E4302", {"sha256": "0" * 64}),
    "manifest does not fit": ("E4302", {"manifest_sha256": "0" * 64}),
    "too large": ("E4301", {"size": 300 * 2**20}),
}


@pytest.mark.requirement("P-22")
@pytest.mark.parametrize("kind", BAD_POINTERS)
async def test_a_bad_pointer_is_refused_and_the_good_one_stays(stand: Make, kind: str) -> None:
    code, how = BAD_POINTERS[kind]
    one = stand()
    one.put(1)
    await one.reloader.start()
    data = one.version(2).read_bytes()
    one.bad(data, **{"bundle": "bundles/next.zip", **how})
    status = await one.reloader.reload()
    assert (status.version, status.last_error_code, status.counters["rejected"]) == ("1", code, 1)


async def test_another_strategys_bundle_under_our_pointer(stand: Make, tmp_path: Path) -> None:
    one = stand()
    foreign = make_bundle(tmp_path, "9", name="other")
    one.bad(foreign.read_bytes())
    await one.reloader.start()
    assert (one.serving, one.error) == (None, "E4305")


async def test_a_replay_is_refused_also_after_a_restart(stand: Make, tmp_path: Path) -> None:
    one = stand()
    one.put(1)
    old = (tmp_path / "store" / "current.json").read_bytes()
    await one.reloader.start()
    one.put(2)
    await one.reloader.reload()
    (tmp_path / "store" / "current.json").write_bytes(old)
    status = await one.reloader.reload()
    assert (status.version, status.last_error_code) == ("2", "E4304")
    again = stand()
    await again.reloader.start()
    assert (again.serving, again.error) == ("2", "E4304")


async def test_a_replay_is_refused_by_a_fresh_instance_of_the_fleet(
    stand: Make, tmp_path: Path, key: SigningKey, database_url: str
) -> None:
    """It never saw the newer pointer, but the fleet did."""
    store = tmp_path / "store"
    settings = StrategySettings(source=str(store / "current.json"), trusted_keys={key.key_id: key.public})
    first = Stand(tmp_path / "first", key, settings, PostgresRollout(database_url))
    first.directory.mkdir()
    first.put(1)
    old = (store / "current.json").read_bytes()
    first.put(2)
    await first.reloader.start()
    assert first.serving == "2"
    (store / "current.json").write_bytes(old)
    second = Stand(tmp_path / "second", key, settings, PostgresRollout(database_url))
    await second.reloader.start()
    assert (second.serving, second.error) == (None, "E4304")


async def test_a_replay_is_refused_also_when_the_newer_bundle_was_bad(stand: Make, tmp_path: Path) -> None:
    one = stand()
    one.put(1)
    await one.reloader.start()
    one.put(2)
    second = (tmp_path / "store" / "current.json").read_bytes()
    one.bad(corrupt(one.version(3), "nan").read_bytes())
    await one.reloader.reload()
    (tmp_path / "store" / "current.json").write_bytes(second)
    status = await one.reloader.reload()
    assert (status.version, status.last_error_code, status.sequence) == ("1", "E4304", 3)
    one.put(4, sequence=4)
    assert (await one.reloader.reload()).version == "4"


async def test_what_is_refused_is_told_once_and_not_fetched_again(
    stand: Make, s3_environment: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    server = s3_environment
    bucket = server.new_bucket()
    settings = S3Settings(endpoint_url=server.endpoint_url, connect_timeout=1, read_timeout=2)
    one = stand(f"s3://{bucket}/knn/current.json", s3=settings)
    one.put(1, s3=server)
    async with one.running():
        assert one.serving == "1"
        one.bad(corrupt(one.version(2), "nan").read_bytes(), s3=server)
        await one.until(lambda: one.error == "E4308")
        server.requests.clear()
        caplog.clear()
        polls = one.counter("polls")
        await one.until(lambda: one.counter("polls") >= polls + 4)
        assert {request.status for request in list(server.requests)} == {304}, "only asked whether it changed"
        assert one.counter("rejected") == 1
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
        assert one.serving == "1"


async def test_a_damaged_object_that_is_mended_under_the_same_pointer(stand: Make, tmp_path: Path) -> None:
    """The pointer does not change, the bundle does: it is looked at again."""
    one = stand()
    one.put(1)
    async with one.running():
        pointer = one.put(2)
        good = (tmp_path / "store" / pointer.bundle).read_bytes()
        one.bad(flipped(good), bundle="bundles/three.zip", sha256=pointer.sha256, size=pointer.size)
        await one.until(lambda: one.error == "E4302" or one.serving == "2")
        three = one.version(3).read_bytes()
        one.bad(
            flipped(three),
            bundle="bundles/mended.zip",
            sha256=load_bundle(one.version(3)).sha256,
            manifest_sha256=load_bundle(one.version(3)).manifest_sha256,
        )
        await one.until(lambda: one.error == "E4302")
        assert one.serving != "3"
        (tmp_path / "store" / "bundles" / "mended.zip").write_bytes(three)
        await one.until(lambda: one.serving == "3")
        assert one.error is None


# --- away -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3_stand(stand: Make, s3_environment: S3Server) -> Callable[[], Stand]:
    bucket = s3_environment.new_bucket()
    settings = S3Settings(endpoint_url=s3_environment.endpoint_url, connect_timeout=0.5, read_timeout=0.5)
    return lambda: stand(f"s3://{bucket}/knn/current.json", s3=settings)


@pytest.mark.requirement("R-3.4", "P-22")
async def test_s3_is_polled_by_etag(s3_stand: Callable[[], Stand], s3: S3Server) -> None:
    one = s3_stand()
    one.put(1, s3=s3)
    async with one.running():
        assert one.serving == "1"
        etag = one.reloader.status().etag
        assert etag
        s3.requests.clear()
        polls = one.counter("polls")
        await one.until(lambda: one.counter("polls") >= polls + 3)
        assert {(request.method, request.status) for request in list(s3.requests)} == {("GET", 304)}
        one.put(2, s3=s3)
        await one.until(lambda: one.serving == "2")
        assert one.reloader.status().etag != etag


@pytest.mark.parametrize("fault", ["refuse", "hang", "broken", "forbidden"])
async def test_an_outage_changes_nothing(s3_stand: Callable[[], Stand], s3: S3Server, fault: str) -> None:
    one = s3_stand()
    one.put(1, s3=s3)
    async with one.running():
        assert one.serving == "1"
        with s3.fault(fault):
            await one.until(lambda: one.counter("failures") >= 2)
            assert one.serving == "1"
            assert one.error == ("E4401" if fault == "forbidden" else "E4400")
            assert not one.reloader.status().degraded
        one.put(2, s3=s3)
        await one.until(lambda: one.serving == "2")
        assert one.error is None
        assert one.counter("rejected") == 0


async def test_a_download_that_breaks_off_is_tried_again(s3_stand: Callable[[], Stand], s3: S3Server) -> None:
    one = s3_stand()
    one.put(1, s3=s3)
    with s3.fault("cut", after=1200):
        await one.reloader.start()
        assert one.error == "E4400"
    status = await one.reloader.reload()
    assert status.version == "1"
    assert status.counters["rejected"] == 0, "the network's fault is not the bundle's"


async def test_a_restart_without_the_source_serves_the_last_good(s3_stand: Callable[[], Stand], s3: S3Server) -> None:
    one = s3_stand()
    one.put(1, s3=s3)
    await one.reloader.start()
    with s3.fault("refuse"):
        again = s3_stand()
        await again.reloader.start()
        assert again.serving == "1"
        assert again.error == "E4400"
        assert again.snapshots[0].generation > one.snapshots[-1].generation, "rises over restarts"


async def test_a_fresh_instance_without_the_source_starts_degraded_and_catches_up(
    s3_stand: Callable[[], Stand], s3: S3Server
) -> None:
    one = s3_stand()
    one.put(1, s3=s3)
    s3.stop()
    try:
        started = time.monotonic()
        async with one.running():
            assert time.monotonic() - started < 5
            assert one.reloader.status().degraded
            s3.start()
            await one.until(lambda: one.serving == "1")
    finally:
        s3.start()


async def test_a_source_that_hangs_does_not_hold_the_start_up(
    s3_stand: Callable[[], Stand], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.strategies.reloader.START_WAIT", 0.1)
    one = s3_stand()
    one.put(1, s3=s3)
    with s3.fault("hang"):
        await one.reloader.start()
        assert one.serving is None
        assert one.error is None, "it is still asking"
    task = asyncio.create_task(one.reloader.run())
    try:
        await one.until(lambda: one.serving == "1")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_damaged_copy_on_disk_is_not_served(stand: Make, tmp_path: Path) -> None:
    one = stand()
    for number in (1, 2):
        one.put(number)
        await one.reloader.reload()
    copy = Path(one.snapshots[-1].path)
    copy.write_bytes(flipped(copy.read_bytes()))
    pointer = tmp_path / "store" / "current.json"
    moved = pointer.rename(tmp_path / "elsewhere.json")
    again = stand()
    await again.reloader.start()
    assert again.serving == "1", "the good one before it"
    moved.rename(pointer)
    assert (await again.reloader.reload()).version == "2", "fetched again"


async def test_a_key_that_is_no_longer_trusted(stand: Make) -> None:
    one = stand()
    one.put(1)
    await one.reloader.start()
    again = stand(trusted_keys={})
    await again.reloader.start()
    assert (again.serving, again.error) == (None, "E4303")


async def test_a_cache_directory_that_cannot_be_used(stand: Make, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    one = stand()
    one.put(1)
    await one.reloader.start()
    assert (one.serving, one.error) == (None, "E4602")
    (tmp_path / "cache").unlink()
    assert (await one.reloader.reload()).version == "1", "taken up when it is mended"


async def test_a_receiver_that_fails_gets_it_again(stand: Make) -> None:
    one = stand()
    one.put(1)
    got: list[Snapshot] = []

    async def publish_badly(snapshot: Snapshot) -> None:
        if not got:
            got.append(snapshot)
            raise RuntimeError("no")
        got.append(snapshot)

    reloader = Reloader(NAME, one.settings, one.cache, one.rollout, publish_badly)
    await reloader.start()
    assert reloader.status().last_error_code == "E4600"
    await reloader.reload()
    assert reloader.status().last_error is None
    assert [snapshot.generation for snapshot in got] == [1, 1]


# --- rolling back ---------------------------------------------------------------------------------------------------------


async def test_a_rollback_holds_against_the_next_poll(stand: Make) -> None:
    one = stand()
    for number in (1, 2, 3):
        one.put(number)
        await one.reloader.reload()
    bad = one.reloader.status().sha256
    status = await one.reloader.rollback("ops", "worse answers")
    assert (status.version, status.blocked) == ("2", (bad,))
    for _ in range(3):
        assert (await one.reloader.reload()).version == "2"
    assert one.error == "E4311", "says that the source still proposes it"
    again = stand()
    await again.reloader.start()
    assert again.serving == "2", "and after a restart"
    status = await again.reloader.rollback("ops", "this one too")
    assert status.version == "1"
    with pytest.raises(BundleError) as caught:
        await again.reloader.rollback("ops", "and this")
    assert caught.value.code == "E4313"
    assert again.serving == "1", "nothing changed"
    again.put(4)
    assert (await again.reloader.reload()).version == "4", "a new bundle ends it"
    assert again.error is None


async def test_a_rollback_without_anything(stand: Make) -> None:
    one = stand()
    await one.reloader.start()
    with pytest.raises(BundleError) as caught:
        await one.reloader.rollback("ops", "why not")
    assert caught.value.code == "E4313"
    one.put(1)
    await one.reloader.reload()
    with pytest.raises(BundleError) as caught:
        await one.reloader.rollback("ops", "why not")
    assert caught.value.code == "E4313"
    assert one.serving == "1"


async def test_unblocked_and_pinned(stand: Make) -> None:
    one = stand()
    for number in (1, 2):
        one.put(number)
        await one.reloader.reload()
    first, second = (snapshot.sha256 for snapshot in one.snapshots)
    await one.reloader.rollback("ops", "worse")
    await one.rollout.change(NAME, unblocked(second, "ops", "was innocent"))
    assert (await one.reloader.reload()).version == "2", "fetched again: its copy was removed"
    await one.rollout.change(NAME, pinned(first, "ops", "for the audit"))
    status = await one.reloader.reload()
    assert (status.version, status.pinned) == ("1", first)
    one.put(3)
    assert (await one.reloader.reload()).version == "1", "pinned is pinned"
    await one.rollout.change(NAME, pinned(None, "ops", "audit done"))
    assert (await one.reloader.reload()).version == "3"


async def test_a_fleet_follows_a_rollback(tmp_path: Path, key: SigningKey, database_url: str) -> None:
    settings = StrategySettings(source=str(tmp_path / "store" / "current.json"), trusted_keys={key.key_id: key.public})
    fleet = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        fleet.append(Stand(tmp_path / str(number), key, settings, PostgresRollout(database_url)))
    for number in (1, 2):
        fleet[0].put(number)
        for one in fleet[:2]:
            await one.reloader.reload()
    await fleet[2].reloader.start()  # a fresh one, which only ever saw the second
    assert [one.serving for one in fleet] == ["2", "2", "2"]
    await fleet[0].reloader.rollback("ops", "worse")
    for one in fleet[1:]:
        assert (await one.reloader.reload()).version == "1", "the fresh one fetches it by its digest"
    with pytest.raises(BundleError) as caught:
        await fleet[1].reloader.rollback("ops", "there is nothing before it")
    assert caught.value.code == "E4313"
    assert [one.serving for one in fleet] == ["1", "1", "1"]


async def test_two_operators_at_once_roll_back_one_step(tmp_path: Path, key: SigningKey, database_url: str) -> None:
    settings = StrategySettings(source=str(tmp_path / "store" / "current.json"), trusted_keys={key.key_id: key.public})
    fleet = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        fleet.append(Stand(tmp_path / str(number), key, settings, PostgresRollout(database_url)))
    for number in (1, 2, 3):
        fleet[0].put(number)
        for one in fleet:
            await one.reloader.reload()
    results = await asyncio.gather(*(one.reloader.rollback("ops", "both saw it") for one in fleet))
    assert [status.version for status in results] == ["2", "2"]
    assert len((await fleet[0].rollout.read(NAME)).blocked_sha256) == 1


async def test_a_blocked_bundle_is_withdrawn_even_if_there_is_no_other(stand: Make) -> None:
    one = stand()
    one.put(1)
    await one.reloader.start()
    digest = one.snapshots[0].sha256

    def block_only(state: DesiredState) -> Any:
        from pointsman.strategies.rollout import Change

        new = state.model_copy(update={"blocked_sha256": frozenset({digest}), "generation": state.generation + 1})
        return Change(new, "block", digest, "another instance", "bad")

    await one.rollout.change(NAME, block_only)
    status = await one.reloader.reload()
    assert status.degraded
    assert one.snapshots[-1].path == ""
    assert one.snapshots[-1].generation > one.snapshots[0].generation


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_keeps_new_bundles_out_but_never_a_blocked_one_in(stand: Make) -> None:
    one = stand()
    for number in (1, 2):
        one.put(number)
        await one.reloader.reload()
    second = one.snapshots[-1].sha256
    one.put(3)
    with full_disk():
        status = await one.reloader.reload()
        assert (status.version, status.last_error_code) == ("2", "E4602")
    assert (await one.reloader.reload()).version == "3"
    third = one.snapshots[-1].sha256
    await one.rollout.change(NAME, blocked(third, second, "another instance", "worse"))
    with full_disk():
        status = await one.reloader.reload()
        assert (status.version, status.last_error_code) == ("2", "E4602"), "left, though that could not be saved"
        again = stand()
        await again.reloader.start()
        assert again.serving == "2", "a start needs no space either"
    status = await one.reloader.reload()
    assert (status.version, status.last_error_code) == ("2", "E4311")
    again = stand()
    await again.reloader.start()
    assert again.serving == "2", "saved since"


class Unreliable(FileRollout):
    """A desired state that can be away."""

    away = False

    async def read(self, strategy: str) -> DesiredState:
        if self.away:
            raise DatabaseError("away")
        return await super().read(strategy)

    async def change(self, strategy: str, rule: Rule) -> DesiredState:
        if self.away:
            raise DatabaseError("away")
        return await super().change(strategy, rule)


async def test_the_last_desired_state_holds_while_the_database_is_away(stand: Make, tmp_path: Path, key: SigningKey) -> None:
    settings = StrategySettings(source=str(tmp_path / "store" / "current.json"), trusted_keys={key.key_id: key.public})
    rollout = Unreliable(tmp_path / "rollout.json")
    one = Stand(tmp_path, key, settings, rollout)
    for number in (1, 2):
        one.put(number)
        await one.reloader.reload()
    await one.reloader.rollback("ops", "worse")
    rollout.away = True
    status = await one.reloader.reload()
    assert (status.version, status.last_error_code) == ("1", "E4500")
    again = Stand(tmp_path, key, settings, rollout)
    await again.reloader.start()
    assert again.serving == "1", "what is blocked is known from disk"
    with pytest.raises(DatabaseError):
        await again.reloader.rollback("ops", "again")
    assert again.serving == "1"
    again.put(3)
    assert (await again.reloader.reload()).version == "3", "new bundles are taken up meanwhile"
    rollout.away = False
    await again.reloader.reload()
    assert (await rollout.read(NAME)).max_sequence == again.reloader.status().sequence, "told when it is back"


async def test_an_instance_that_never_saw_the_desired_state_waits_for_it(tmp_path: Path, key: SigningKey) -> None:
    """It cannot know what is blocked."""
    settings = StrategySettings(source=str(tmp_path / "store" / "current.json"), trusted_keys={key.key_id: key.public})
    rollout = Unreliable(tmp_path / "rollout.json")
    rollout.away = True
    one = Stand(tmp_path, key, settings, rollout)
    one.put(1)
    await one.reloader.start()
    assert (one.serving, one.error) == (None, "E4500")
    rollout.away = False
    assert (await one.reloader.reload()).version == "1"


@pytest.mark.alone
async def test_a_rollback_does_not_wait_for_a_download(s3_stand: Callable[[], Stand], s3: S3Server) -> None:
    one = s3_stand()
    for number in (1, 2):
        one.put(number, s3=s3)
        await one.reloader.reload()
    one.put(3, s3=s3)
    with s3.fault("hang"):
        reload = asyncio.create_task(one.reloader.reload())
        await one.until(one.reloader._polling.locked)
        started = time.monotonic()
        assert (await one.reloader.rollback("ops", "now")).version == "1"
        assert time.monotonic() - started < 0.4
        await reload
    assert one.serving == "1"


async def test_copies_are_pruned(stand: Make) -> None:
    one = stand()
    for number in range(1, 10):
        one.put(number)
        await one.reloader.reload()
    kept = {path.stem for path in one.cache.glob("*.zip")}
    assert kept == {snapshot.sha256 for snapshot in one.snapshots[-5:]}


async def test_leftovers_of_an_interrupted_run_are_removed(stand: Make) -> None:
    one = stand()
    one.cache.mkdir(parents=True)
    (one.cache / ".incoming-123.tmp").write_bytes(b"half")
    (one.cache / "state.json").write_bytes(b"{")
    one.put(1)
    await one.reloader.start()
    assert one.serving == "1"
    assert not (one.cache / ".incoming-123.tmp").exists()
    assert one.cache.stat().st_mode & 0o777 == 0o700


async def test_without_required_signatures(stand: Make) -> None:
    one = stand(require_signature=False, trusted_keys={})
    publish(one.version(1), one.settings.source)
    assert (await one.reloader.reload()).version == "1"
    one.bad(rebuild(one.version(2).read_bytes(), manifest=lambda content: content.pop("models")), key=None)
    assert (await one.reloader.reload()).last_error_code == "E4306", "everything else is checked all the same"


@pytest.mark.requirement("P-5")
async def test_sixteen_readers_never_see_a_gap(stand: Make) -> None:
    """Manual reloads, rollbacks and publications at once: the snapshots form one rising line, each of a verified bundle."""
    one = stand()
    one.put(1)
    async with one.running():

        async def publish_some() -> None:
            for number in range(2, 8):
                await asyncio.to_thread(one.put, number)
                await asyncio.sleep(0.02)

        async def bother() -> None:
            for _ in range(5):
                await one.reloader.reload()

        async def roll_back() -> None:
            await one.until(lambda: one.counter("swaps") >= 2)
            await one.reloader.rollback("ops", "chaos")

        await asyncio.gather(publish_some(), *(bother() for _ in range(16)), roll_back())
        await one.until(lambda: one.serving == "7" or one.error == "E4311")
    generations = [snapshot.generation for snapshot in one.snapshots]
    assert generations == list(range(1, len(generations) + 1))
