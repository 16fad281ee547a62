"""Workers book as LiteLLM does, flush, fail, die at any step and claim what the dead left: nothing is lost or counted twice."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pointsman.spend_journal.books import Entry, by_progress, decode, encode, lacking
from pointsman.spend_journal.segments import Journal, Segment

KEYS = ("a", "b")
LIMIT = 1 << 20
WORKER = st.integers(0, 1)
STAGE = st.sampled_from(["none", "ended", "begun", "committed", "missed", "failed", "failed late"])


@dataclass
class Flush:
    """LiteLLM's job, between its begin and its end."""

    costs: list[Entry]
    committed: bool = False


@dataclass
class Worker:
    """LiteLLM's memory in one process, and its journal."""

    journal: Journal
    rows: list[str] = field(default_factory=list)
    popped: list[str] = field(default_factory=list)
    costs: list[Entry] = field(default_factory=list)
    late: bool = False
    claimed: list[Segment] = field(default_factory=list)
    flush: Flush | None = None


class Machine(RuleBasedStateMachine):
    """The tables, and up to two workers."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="journal-"))
        self.clock = itertools.count(1)
        self.workers: list[Worker] = []
        self.requests: dict[str, str] = {}
        self.rows: set[str] = set()
        self.charges: Counter[str] = Counter()
        self.active = dict.fromkeys(KEYS, 0.0)
        self.excused: set[str] = set()
        """Dropped by LiteLLM itself when a flush failed, or told as doubtful."""
        self.given: set[str] = set()
        """A flush began that had them."""

    def teardown(self) -> None:
        for worker in list(self.workers):
            self.kill(worker)
        last = self.start()
        last.claimed += last.journal.claim()
        self.book(last)
        self.stop(last)
        assert self.rows == set(self.requests)
        assert {name for name in self.requests if not self.charges[name]} <= self.excused
        assert list(self.root.iterdir()) == [], "a graceful end leaves nothing"
        shutil.rmtree(self.root)

    @invariant()
    def nothing_is_charged_twice(self) -> None:
        assert not self.charges or max(self.charges.values()) == 1

    def start(self) -> Worker:
        worker = Worker(Journal(self.root, LIMIT))
        self.workers.append(worker)
        return worker

    def some(self, number: int) -> Worker:
        return self.workers[number % len(self.workers)]

    def kill(self, worker: Worker, torn: bytes = b"") -> None:
        """As the kernel does it: descriptors are closed, files stay; a write may have been cut off."""
        if torn and worker.journal.segments and worker.journal.segments[-1].state == "open":
            with worker.journal.segments[-1].path.open("ab") as stream:
                stream.write(torn)
        if worker.journal._descriptor is not None:
            os.close(worker.journal._descriptor)
        os.close(worker.journal._lock)
        self.workers.remove(worker)

    def flush(self, worker: Worker, until: str) -> None:
        """Let a flush begin where none is under way, and bring it up to a stage."""
        if until == "none":
            return
        if worker.flush is None:
            worker.journal.begin(float(next(self.clock)))
            if until == "missed":
                worker.journal.undo()
                return
            worker.flush, worker.costs = Flush(worker.costs), []
            self.given |= {entry.id for entry in worker.flush.costs}
        if until in ("committed", "ended", "failed late") and not worker.flush.committed:
            self.commit(worker)
        if until == "ended":
            if worker.rows or worker.late:  # both writers of rows take one lock, this one only if there is something to write
                self.rows.update(worker.popped + worker.rows)
                worker.popped, worker.rows = [], []
            worker.late = bool(worker.popped)
        elif not worker.flush.committed:
            self.excused |= {entry.id for entry in worker.flush.costs} if until.startswith("failed") else set()
        if until in ("ended", "failed", "failed late"):
            worker.journal.end(good=until == "ended")
            worker.flush = None

    def commit(self, worker: Worker) -> None:
        assert worker.flush is not None
        self.charges.update(entry.id for entry in worker.flush.costs)
        for entry in worker.flush.costs:
            self.active[entry.row["api_key"]] = float(next(self.clock))
        worker.flush.committed = True

    def stop(self, worker: Worker) -> None:
        if worker.flush is not None:
            if not worker.flush.committed:
                self.commit(worker)
            worker.journal.end(good=True)
        worker.journal.seal(float(next(self.clock)))
        worker.flush = Flush(worker.costs)
        self.commit(worker)
        self.rows.update(worker.rows + worker.popped)
        worker.journal.close(keep=False)
        self.workers.remove(worker)

    def book(self, worker: Worker) -> None:
        handled: set[str] = set()
        for segment in by_progress(worker.claimed):
            read = [entry for line in segment.lines() if (entry := decode(line)) is not None and entry.id not in handled]
            lack = lacking(segment, read, self.rows, self.active)
            handled.update(entry.id for entry in read)
            worker.rows += [entry.id for entry in lack.rows]
            worker.costs += lack.charges
            doubtful = {entry.id for entry in lack.doubtful}
            assert doubtful <= self.given
            self.excused |= doubtful
            worker.journal.booked([segment])
        worker.claimed.clear()

    @initialize()
    def two_workers(self) -> None:
        self.start()
        self.start()

    @precondition(lambda self: len(self.workers) < 2)
    @rule()
    def a_worker_starts(self) -> None:
        self.start()

    @precondition(lambda self: self.workers)
    @rule(number=WORKER, keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3))
    def requests_are_booked(self, number: int, keys: list[str]) -> None:
        worker = self.some(number)
        for key in keys:
            name = f"r{len(self.requests)}"
            self.requests[name] = key
            row = {"request_id": name, "api_key": key, "spend": 1.0}
            worker.rows.append(name)
            worker.costs.append(Entry(row))
            assert worker.journal.append(encode(row))

    @precondition(lambda self: self.workers)
    @rule(number=WORKER, how=st.sampled_from(["written", "written", "back"]))
    def rows_are_taken_and_then_written_or_put_back(self, number: int, how: str) -> None:
        worker = self.some(number)
        if not worker.popped:
            worker.popped, worker.rows = worker.rows, []
        elif how == "written":
            self.rows.update(worker.popped)
            worker.popped = []
        else:
            worker.popped, worker.rows = [], worker.popped + worker.rows

    @precondition(lambda self: self.workers)
    @rule(number=WORKER, until=STAGE)
    def a_flush_gets_so_far(self, number: int, until: str) -> None:
        self.flush(self.some(number), until)

    @precondition(lambda self: self.workers)
    @rule(number=WORKER, until=STAGE, torn=st.sampled_from([b"", b'{"row":{"request_id":"r', b"\x00\xff", b"{}\n[]\n7\n"]))
    def a_worker_is_killed(self, number: int, until: str, torn: bytes) -> None:
        worker = self.some(number)
        self.flush(worker, until)
        self.kill(worker, torn)

    @precondition(lambda self: self.workers)
    @rule(number=WORKER, booked=st.sampled_from([True, True, False]))
    def a_worker_claims(self, number: int, booked: bool) -> None:
        worker = self.some(number)
        worker.claimed += worker.journal.claim()
        if booked:
            self.book(worker)

    @precondition(lambda self: self.workers)
    @rule(number=WORKER, away=st.booleans())
    def a_worker_ends_gracefully(self, number: int, away: bool) -> None:
        worker = self.some(number)
        if not away:
            self.stop(worker)
        elif worker.flush is None:  # the database is away: the last flush drops its costs, and the rows cannot be written
            worker.journal.seal(float(next(self.clock)))
            self.given |= {entry.id for entry in worker.costs}
            worker.journal.close(keep=True)
            self.workers.remove(worker)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSpendJournal = Machine.TestCase
