"""The journal of spend on real files, with real processes that are killed, LiteLLM's queue and a real scheduler."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from hypothesis import given
from hypothesis import strategies as st

from pointsman.settings import SpendSettings
from pointsman.spend_journal.books import Entry, decode, encode, lacking
from pointsman.spend_journal.keeper import FLUSH, JournalKeeper
from pointsman.spend_journal.segments import Journal, Segment, State
from pointsman.spend_journal.writer import Writer

LIMIT = 1 << 20
WORKER = """
import os, signal, sys
from pathlib import Path
from pointsman.spend_journal.segments import Journal
journal = Journal(Path(sys.argv[1]), 1 << 20)
for step in sys.argv[2:]:
    if step.startswith("begin"):
        journal.begin(float(step.partition("=")[2]))
    elif step == "end":
        journal.end(good=True)
    else:
        journal.append(step.encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(root: Path, *steps: str) -> None:
    """A process that keeps a journal, does the steps and is killed with -9."""
    done = subprocess.run([sys.executable, "-c", WORKER, str(root), *steps], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def row(name: str, key: str = "k", spend: float = 1.0) -> dict[str, Any]:
    return {"request_id": name, "api_key": key, "spend": spend, "litellm_call_id": f"c-{name}"}


def names(journal: Journal) -> list[str]:
    return sorted(path.name.partition(".")[2].partition("-")[0] for path in journal.folder.iterdir() if path.name != "lock")


@pytest.mark.requirement("R-4.1")
def test_what_a_killed_process_wrote_is_claimed_by_one_alone_with_how_far_it_came(tmp_path: Path) -> None:
    killed(tmp_path, "a\n", "begin=7", "end", "b\n", "begin=8.5", "c\n", "d\nto")
    one, two = Journal(tmp_path, LIMIT), Journal(tmp_path, LIMIT)
    claimed = one.claim()
    assert [(segment.state, segment.at, segment.lines()) for segment in claimed] == [
        ("flushed", None, [b"a"]),
        ("flushing", 8.5, [b"b"]),
        ("open", None, [b"c", b"d", b"to"]),
    ]
    assert two.claim() == one.claim() == []
    one.begin(9.0)
    one.end(good=True)
    assert names(one) == ["flushed", "flushing", "open"], "what is not booked yet goes with no flush"
    one.booked(claimed)
    one.begin(10.0)
    assert claimed[1].at == 8.5, "the flush that it may have been written by"
    one.end(good=True)
    assert names(one) == ["flushed", "flushed", "flushed"], "rows may still be on their way"
    one.begin(11.0)
    one.end(good=True)
    assert names(one) == []
    for journal in (one, two):
        journal.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journals", LIMIT)
    journal.append(b"a\n")
    paths = [tmp_path / "journals", journal.folder, *journal.folder.iterdir()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths[:2]] == [0o700, 0o700]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths[2:]} == {0o600}


def test_past_the_limit_nothing_is_taken_until_something_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 10)
    assert journal.append(b"12345678\n")
    assert not journal.append(b"1\n")
    journal.begin(1.0)
    assert not journal.append(b"1\n")
    journal.end(good=False)
    assert not journal.append(b"1\n")
    journal.begin(2.0)
    journal.end(good=True)
    assert journal.append(b"1\n")


def test_a_flush_that_left_something_behind_settles_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LIMIT)
    journal.append(b"a\n")
    journal.begin(1.0, whole=False)
    journal.end(good=True)
    assert names(journal) == ["flushing"]


def test_a_worker_that_could_not_write_at_its_end_leaves_its_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, LIMIT)
    journal.append(b"a\n")
    journal.seal(5.0)
    journal.append(b"b\n")
    journal.close(keep=True)
    found = Journal(tmp_path, LIMIT).claim()
    assert [(segment.state, segment.at, segment.lines()) for segment in found] == [
        ("flushing", 5.0, [b"a"]),
        ("flushing", 5.0, [b"b"]),
    ]


@pytest.mark.parametrize(
    ("state", "active", "in_redis", "expected"),
    [
        ("open", {"k": 99.0}, True, "charges"),
        ("flushing", {"k": 9.0}, False, "charges"),
        ("flushing", {"k": 10.0}, False, "doubtful"),
        ("flushing", {"k": 11.0}, False, "doubtful"),
        ("flushing", {}, False, "doubtful"),  # the key is gone: nothing tells
        ("flushing", {"k": 9.0}, True, "doubtful"),
        ("flushed", {"k": 9.0}, False, "rows"),
    ],
)
def test_counters_are_booked_only_where_they_cannot_have_been(
    tmp_path: Path, state: State, active: dict[str, float], in_redis: bool, expected: str
) -> None:
    entries = [Entry(row("there")), Entry(row("missing"))]
    segment = Segment(tmp_path, state, 10.0 if state == "flushing" else None)
    lack = lacking(segment, entries, {"there"}, active, in_redis=in_redis)
    assert [entry.id for entry in lack.rows] == ["missing"]
    found = {"charges": lack.charges, "doubtful": lack.doubtful}
    assert {name: len(some) for name, some in found.items() if some} == ({} if expected == "rows" else {expected: 2})


TEXT = st.text(st.characters(codec="utf-8"))


@given(
    st.dictionaries(TEXT, TEXT | st.integers(-(2**53), 2**53) | st.none() | st.booleans()), TEXT.filter(bool), st.lists(TEXT)
)
def test_an_entry_is_read_as_it_was_written_and_cut_off_not_at_all(
    fields: dict[str, Any], name: str, groups: list[str]
) -> None:
    whole = {**fields, **row(name)}
    line = encode(whole, groups)
    assert line.count(b"\n") == 1
    assert decode(line[:-1]) == Entry(whole, tuple(groups))
    assert [decode(line[:cut]) for cut in range(0, len(line) - 1, 7)] == [None] * len(range(0, len(line) - 1, 7))


def test_a_disk_that_fails_is_told_once_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "journals", LIMIT)
    writer = Writer(journal)
    shutil.rmtree(journal.folder)
    for _ in range(3):
        writer.put(b"a\n")
        asyncio.run(writer.ask(lambda _: None))  # each a write of its own
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    journal.folder.mkdir()
    writer.put(b"b\n")
    asyncio.run(writer.ask(lambda _: None))
    assert "after 3 that are not in it" in caplog.messages[-1]
    assert [segment.lines() for segment in journal.segments] == [[b"b"]]
    writer.stop()


class World:
    """LiteLLM's queues and scheduler; its job writes nothing, but may fail or be held up."""

    def __init__(self) -> None:
        self.client = SimpleNamespace(spend_log_transactions=[])
        self.costs: asyncio.Queue[None] = asyncio.Queue(10)
        self.scheduler = AsyncIOScheduler()
        self.runs = 0
        self.fails = False
        self.scheduler.add_job(self.update, "interval", seconds=3600, id=FLUSH)

    async def update(self) -> None:
        self.runs += 1
        self.client.spend_log_transactions.clear()
        if self.fails:
            raise OSError("no database")

    def flush(self) -> None:
        job = self.scheduler.get_job(FLUSH)
        job.modify(next_run_time=datetime.now(job.next_run_time.tzinfo))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    from litellm.proxy import proxy_server

    made = World()
    writer = SimpleNamespace(spend_update_queue=SimpleNamespace(update_queue=made.costs))
    monkeypatch.setattr(proxy_server, "prisma_client", made.client)
    monkeypatch.setattr(proxy_server, "scheduler", made.scheduler)
    monkeypatch.setattr(proxy_server, "proxy_logging_obj", SimpleNamespace(db_spend_update_writer=writer))
    monkeypatch.setattr("litellm._async_success_callback", [])
    return made


async def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def lines(root: Path, state: str) -> list[str]:
    found = [path.read_bytes().split(b"\n")[:-1] for path in sorted(root.glob(f"*/*.{state}*"))]
    return [entry.id for some in found for line in some if (entry := decode(line)) is not None]


async def test_it_keeps_step_with_litellms_queue_and_flush(world: World, tmp_path: Path) -> None:
    import litellm

    world.scheduler.start()
    keeper = JournalKeeper(str(tmp_path), SpendSettings())
    keeper.begin()
    (callback,) = litellm._async_success_callback
    queue = world.client.spend_log_transactions
    queue.append(row("a"))
    await callback.async_log_success_event({"litellm_call_id": "c-a"}, None, None, None)
    queue.append(row("b"))
    queue.insert(0, row("old"))  # came back, was never seen here and has been booked before: it stays unseen behind those known
    await callback.async_log_success_event({"litellm_call_id": "c-b"}, None, None, None)
    await until(lambda: lines(tmp_path, "open") == ["a", "b"])

    queue.append(row("c"))  # its callback has not come this far when the flush begins
    world.flush()
    await until(lambda: lines(tmp_path, "flushed") == ["a", "b", "c"])
    world.fails = True
    queue.append(row("d"))
    world.flush()
    await until(lambda: world.runs == 2 and lines(tmp_path, "flushing") == ["d"])
    world.fails = False
    world.flush()
    await until(lambda: lines(tmp_path, "flushed") == ["d"])
    queue.append(row("e"))
    await keeper._journal.seal()  # type: ignore[union-attr]
    assert lines(tmp_path, "flushing") == ["e"]
    queue.clear()
    await keeper.close()
    assert list(tmp_path.iterdir()) == []
    world.scheduler.shutdown(wait=False)


async def test_a_wall_clock_that_goes_back_does_not_keep_spend_from_being_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.scheduler.start()
    keeper = JournalKeeper(str(tmp_path), SpendSettings())
    monkeypatch.setattr("pointsman.spend_journal.keeper.INTERVAL", 0.05)
    keeper.begin()
    await asyncio.sleep(0.2)
    assert world.runs == 0
    assert keeper._journal is not None
    keeper._journal._clocks += 3600  # it was ahead by an hour
    await until(lambda: world.runs == 1)
    await asyncio.sleep(0.2)
    assert world.runs == 1
    await keeper.close()
    world.scheduler.shutdown(wait=False)


def test_without_a_database_there_is_none(tmp_path: Path, world: World) -> None:
    JournalKeeper(None, SpendSettings()).begin()
    JournalKeeper(str(tmp_path / "off"), SpendSettings(journal=False)).begin()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    JournalKeeper(str(tmp_path / "file" / "journals"), SpendSettings()).begin()
    assert "there is no spend journal" in caplog.text
