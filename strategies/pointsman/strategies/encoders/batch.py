"""Lets threads that encode at the same time share one call of the model, without making anybody wait who is alone.

The first to come runs at once. Who comes meanwhile queues; when the run is over, the first of them runs for all that queued.
Only threads wait here, never the event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pointsman.strategies.base import Matrix

__all__ = ["Batcher"]

R = TypeVar("R")


class _Job(Generic[R]):
    __slots__ = ("error", "result", "rows", "turn")

    def __init__(self, rows: Sequence[R]) -> None:
        self.rows = rows
        self.result: Matrix | None = None
        self.error: BaseException | None = None
        self.turn = threading.Event()


class Batcher(Generic[R]):
    """See the module.

    Args:
        run: rows to vectors, (len(rows), d). Where a shared run fails, each caller's rows are run alone, so that nobody fails
            for another's.
        most: rows of a shared run. A caller's own rows are never divided.
    """

    def __init__(self, run: Callable[[Sequence[R]], Matrix], most: int) -> None:
        self._run, self._most = run, most
        self._lock = threading.Lock()
        self._waiting: list[_Job[R]] = []
        self._busy = False

    def __call__(self, rows: Sequence[R]) -> Matrix:
        """The vectors of a caller's rows."""
        job = _Job(rows)
        with self._lock:
            alone = not self._busy
            if alone:
                self._busy = True
            else:
                self._waiting.append(job)
        if not alone:
            job.turn.wait()
            if job.error is not None:
                raise job.error
            if job.result is not None:
                return job.result
        # It is this thread's turn to run.
        jobs = [job]
        try:
            with self._lock:
                size = len(rows)
                while self._waiting and size + len(self._waiting[0].rows) <= self._most:
                    size += len(self._waiting[0].rows)
                    jobs.append(self._waiting.pop(0))
            self._serve(jobs)
        finally:
            self._hand_over(jobs)
        if job.error is not None:
            raise job.error
        assert job.result is not None  # noqa: S101 - narrows the type; without an error there is a result
        return job.result

    def _serve(self, jobs: Sequence[_Job[R]]) -> None:
        try:
            vectors = self._run([row for job in jobs for row in job.rows])
            at = 0
            for job in jobs:
                job.result = vectors[at : at + len(job.rows)]
                at += len(job.rows)
        except BaseException as error:  # noqa: BLE001 - handed to whoever's rows they are, whatever it is
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                for job in jobs:
                    self._serve([job])

    def _hand_over(self, done: Sequence[_Job[R]]) -> None:
        with self._lock:
            following = self._waiting.pop(0) if self._waiting else None
            self._busy = following is not None
        for job in done[1:]:
            job.turn.set()
        if following is not None:
            following.turn.set()  # without a result: it is its turn
