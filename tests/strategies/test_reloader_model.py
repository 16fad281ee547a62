"""The reloader against a model of it, through any sequence of publications, outages, restarts and rollbacks.

The model says in a few lines what must be in service; the reloader works on real files. After each step: what is served was
verified and is not blocked, what was good stays, generations rise, and service never ends once it began.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pointsman.errors import BundleError
from pointsman.settings import StrategySettings
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.pointer import Pointer
from pointsman.strategies.rollout import unblocked
from pointsman.strategies.stage import KEEP
from support.bundles import corrupt, make_bundle, new_key, publish_raw
from support.stand import NAME, Stand

KEY, STRANGER = new_key(), new_key("stranger")
VERSIONS = 10
BAD_BUNDLES = ("nan", "bit_flip", "wrong_shape", "probe", "path", "truncated")
BAD_POINTERS: dict[str, dict[str, Any]] = {
    "unsigned": {"key": None},
    "stranger": {"key": STRANGER},
    "foreign": {"strategy": "other"},
    "tampered": {"change": lambda pointer: pointer.model_copy(update={"size": pointer.size + 1})},
    "garbage": {"damage": lambda encoded: encoded[: len(encoded) // 2]},
}


@cache
def workshop() -> Path:
    return Path(tempfile.mkdtemp(prefix="pointsman-model-"))


@cache
def good(version: int) -> bytes:
    return make_bundle(workshop(), str(version), name=NAME).read_bytes()


@cache
def bad(version: int, kind: str) -> bytes:
    good(version)
    return corrupt(workshop() / f"{NAME}-{version}.zip", kind).read_bytes()


@cache
def digest(version: int) -> str:
    return load_bundle(workshop() / f"{NAME}-{version}.zip").sha256 if good(version) else ""


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Any:
    yield
    shutil.rmtree(workshop(), ignore_errors=True)


@dataclass(frozen=True)
class Proposal:
    """What lies in the store: the pointer, and the version that its bundle really is (None: a bad bundle)."""

    pointer: Pointer
    version: int | None
    valid: bool


class Model(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="pointsman-model-run-"))
        self.store = self.directory / "store"
        self.source = StrategySettings(source=str(self.store / "current.json"), trusted_keys={KEY.key_id: KEY.public})
        self.stand = Stand(self.directory, KEY, self.source)
        self.generations: list[int] = []
        # The model.
        self.away = False
        self.published: list[Proposal] = []
        self.present: Proposal | None = None
        self.proposal: Proposal | None = None
        self.sequence, self.accepted = 0, ""
        self.serving: int | None = None
        self.kept: list[int] = []
        self.blocked: set[int] = set()
        self.target: int | None = None
        self.run(self.stand.reloader.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    def teardown(self) -> None:
        self.loop.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    # What may happen.

    def put(self, data: bytes, version: int | None, valid: bool, **how: Any) -> None:
        if self.away:
            return
        pointer = publish_raw(data, self.store, **{"strategy": NAME, "key": KEY, **how})
        self.present = Proposal(pointer, version, valid)
        self.published.append(self.present)

    @rule(version=st.integers(1, VERSIONS))
    def publish(self, version: int) -> None:
        self.put(good(version), version, valid=True)

    @rule(version=st.integers(1, VERSIONS), kind=st.sampled_from(BAD_BUNDLES))
    def publish_a_bad_bundle(self, version: int, kind: str) -> None:
        self.put(bad(version, kind), None, valid=True)

    @rule(version=st.integers(1, VERSIONS), kind=st.sampled_from(sorted(BAD_POINTERS)))
    def publish_a_bad_pointer(self, version: int, kind: str) -> None:
        self.put(good(version), version, valid=False, **BAD_POINTERS[kind])

    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Somebody puts an old pointer back."""
        old = [item for item in self.published if item.valid]
        if old and not self.away:
            self.present = data.draw(st.sampled_from(old))
            (self.store / "new").write_bytes(self.present.pointer.encoded())
            (self.store / "new").replace(self.store / "current.json")

    @rule()
    def outage(self) -> None:
        if not self.away and self.store.exists():
            self.store.rename(self.directory / "gone")
            self.away = True

    @rule()
    def back_again(self) -> None:
        if self.away:
            (self.directory / "gone").rename(self.store)
            self.away = False

    @rule(force=st.booleans())
    def ask(self, force: bool) -> None:
        self.poll(force)

    def poll(self, force: bool = False) -> None:
        self.run(self.stand.reloader._poll(source=True, force=force))
        self.model_poll()

    @rule()
    def restart(self) -> None:
        self.generations += [snapshot.generation for snapshot in self.stand.snapshots]
        self.stand = Stand(self.directory, KEY, self.source)
        self.run(self.stand.reloader.start())
        self.proposal = None
        if self.kept:
            self.model_serve(self.serving if self.serving is not None else self.kept[-1])
        self.model_poll()

    @rule()
    def roll_back(self) -> None:
        choices = [version for version in self.kept if version not in self.blocked and version != self.serving]
        if self.serving is None or not choices:
            with pytest.raises(BundleError) as caught:
                self.run(self.stand.reloader.rollback("model", "test"))
            assert caught.value.code == "E4313"
            return
        self.run(self.stand.reloader.rollback("model", "test"))
        self.blocked.add(self.serving)
        self.target = choices[-1]
        self.model_serve(self.target)

    @rule(data=st.data())
    def unblock(self, data: st.DataObject) -> None:
        if self.blocked:
            version = data.draw(st.sampled_from(sorted(self.blocked)))
            self.blocked.discard(version)
            self.run(self.stand.rollout.change(NAME, unblocked(digest(version), "model", "test")))
            self.poll()  # an instance learns of it at its next poll

    # What must come of it.

    def model_poll(self) -> None:
        present = self.present
        if not self.away and present is not None and present.valid:
            pointer = present.pointer
            if pointer.sequence > self.sequence or (pointer.sequence, pointer.digest) == (self.sequence, self.accepted):
                self.proposal, self.sequence, self.accepted = present, pointer.sequence, pointer.digest
        if self.proposal is None:
            return
        version = self.proposal.version
        if version in self.blocked:
            if self.target is not None and self.target not in self.blocked and not (self.away and self.target not in self.kept):
                self.model_serve(self.target)
        elif version is not None and (not self.away or version in self.kept or version == self.serving):
            self.model_serve(version)

    def model_serve(self, version: int) -> None:
        if version == self.serving and self.kept and self.kept[-1] == version:
            return
        others = [item for item in self.kept if item != version and item not in self.blocked]
        old = [item for item in others[: -(KEEP - 1)] if item == self.target]
        self.kept = [*old, *others[-(KEEP - 1) :], version]
        self.serving = version

    @invariant()
    def it_serves_what_it_must(self) -> None:
        status = self.stand.reloader.status()
        assert status.version == (None if self.serving is None else str(self.serving)), status
        assert status.sequence == self.sequence
        assert set(status.blocked) == {digest(version) for version in self.blocked}

    @invariant()
    def what_workers_got_is_verified_and_not_blocked(self) -> None:
        snapshot = self.stand.reloader.snapshot
        if snapshot is not None:
            bundle = load_bundle(Path(snapshot.path), expect_sha256=snapshot.sha256, expect_name=NAME)
            assert bundle.version == str(self.serving)
            # A block by a rollback takes effect within it; `unblock` never blocks.
            assert snapshot.sha256 not in {digest(version) for version in self.blocked}

    @invariant()
    def generations_rise_and_service_never_ends(self) -> None:
        line = [*self.generations, *(snapshot.generation for snapshot in self.stand.snapshots)]
        assert line == sorted(set(line))
        assert all(snapshot.path for snapshot in self.stand.snapshots)


def run(examples: int) -> None:
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.mark.requirement("P-5", "P-22")
def test_the_reloader_does_as_the_model_says() -> None:
    run(15)


@pytest.mark.slow("hotreload")
@pytest.mark.requirement("P-5", "P-22")
def test_and_for_longer() -> None:
    run(80)
