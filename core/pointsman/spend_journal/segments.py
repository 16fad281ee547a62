"""The journal on disk: lines in segments, in a folder for each worker that lives or has died.

A worker holds `flock(2)` on the file `lock` of its folder; the kernel lets go of it when the worker dies, however it dies. Who
then gets the lock moves the segments into a folder of its own, one rename each: no segment is ever in two hands, and a claimant
that dies on the way leaves all of them to be found. A segment's name tells how far its entries have come:

- `000001.open`: none of their counters was given to the database.
- `000001.flushing-1763790000.123456`: LiteLLM's flush of the counters began then, and nobody has heard of its end.
- `000001.flushed`: the counters are written; rows may still be on their way. After the next flush it is deleted.

Nothing is synced: what a process has written outlives it, and a power cut may take it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Journal", "Segment", "State"]

State = Literal["open", "flushing", "flushed"]
LOCK = "lock"


@dataclass(slots=True, eq=False)
class Segment:
    """One file.

    Attributes:
        path: where it lies now.
        state: how far its entries have come.
        at: of `flushing`: when the flush began (Unix time).
        size: bytes written to it by this worker.
        booked: LiteLLM has its entries in memory; False between the claim and their booking.
        due: the flush that is under way covers it.
        late: claimed as `flushed`; no flush has ended since its rows were booked.
    """

    path: Path
    state: State = "open"
    at: float | None = None
    size: int = 0
    booked: bool = True
    due: bool = False
    late: bool = False

    def lines(self) -> list[bytes]:
        """What was written; the end of a write that was cut off is among it, for the reader to pass over."""
        return [line for line in self.path.read_bytes().split(b"\n") if line]


class Journal:
    """One worker's journal; not thread-safe, whoever made it calls it.

    Args:
        root: folder of all workers' folders; made where it is missing.
        limit: bytes that this worker's own entries may take; past it nothing more is taken.

    Raises (every method):
        OSError: the disk does not do as it is told. What was written before stays as it was.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self._root = root
        self._limit = limit
        self._segments: list[Segment] = []
        self._descriptor: int | None = None
        self._number = 0
        self._began: float | None = None
        self._sealed = False
        self._torn = False
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        hidden = root / f".{name}"  # nobody looks at it before it is locked
        hidden.mkdir(mode=0o700)
        self._lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.folder = hidden.rename(root / name)
        except OSError:
            os.close(self._lock)
            raise

    @property
    def size(self) -> int:
        """Bytes of this worker's own entries that are not known to be written."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> Sequence[Segment]:
        """Those that are not deleted, oldest first."""
        return tuple(self._segments)

    def append(self, lines: bytes) -> bool:
        """Write whole lines; False: they would be past the limit, and none is written."""
        state: State
        if self.size + len(lines) > self._limit:
            return False
        if self._descriptor is None:
            state, at = ("flushing", self._began) if self._sealed else ("open", None)
            segment = Segment(self._new(state, at), state, at)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(segment.path, flags, 0o600)
            self._segments.append(segment)
            self._torn = False
        data = b"\n" + lines if self._torn else lines
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        finally:
            self._torn = written < len(data) and (written > 0 or self._torn)
            self._segments[-1].size += written
        return True

    def begin(self, at: float, *, whole: bool = True) -> None:
        """LiteLLM's flush begins: what was written and booked until now goes with it.

        Args:
            at: Unix time; not later than anything that the flush writes.
            whole: it takes all that waits in LiteLLM's memory; else some may stay behind, and its end says nothing.
        """
        self._close_current()
        self._began = at
        for segment in self._segments:
            if segment.booked:
                if segment.state == "open":
                    self._mark(segment, "flushing", at)
                segment.due = whole

    def end(self, *, good: bool) -> None:
        """The flush is over. `good`: all its counters are written, and the rows that waited before the flush before it."""
        for segment in [segment for segment in self._segments if segment.due]:
            segment.due = False
            if not good:
                continue
            if segment.late:
                segment.late = False
            elif segment.state == "flushed":
                segment.path.unlink(missing_ok=True)
                self._segments.remove(segment)
            else:
                self._mark(segment, "flushed")
                segment.size = 0

    def undo(self) -> None:
        """The flush that was to begin has not begun."""
        for segment in self._segments:
            if segment.state == "flushing" and segment.due and segment.at == self._began:
                self._mark(segment, "open")
            segment.due = False

    def seal(self, at: float) -> None:
        """The worker ends: its last flush begins, and what is still written goes with that."""
        self.begin(at)
        self._sealed = True

    def claim(self) -> list[Segment]:
        """Take over the segments of workers that have died; they are not `booked`."""
        claimed: list[Segment] = []
        for folder in sorted(self._root.iterdir()):
            if folder != self.folder and not folder.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # another worker was first
                    claimed += self._claim(folder)
        return claimed

    def booked(self, segments: Iterable[Segment]) -> None:
        """LiteLLM has the entries of claimed segments in its memory."""
        for segment in segments:
            segment.booked = True

    def close(self, *, keep: bool) -> None:
        """The end. `keep`: leave what there is to the next one who claims."""
        self._close_current()
        try:
            if not keep:
                for segment in self._segments:
                    if segment.booked:
                        segment.path.unlink(missing_ok=True)
            if not any(path.name != LOCK for path in self.folder.iterdir()):
                (self.folder / LOCK).unlink(missing_ok=True)
                self.folder.rmdir()
        finally:
            os.close(self._lock)

    def _claim(self, folder: Path) -> list[Segment]:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return []  # it lives
            found = []
            for path in sorted(folder.iterdir()):
                if path.name == LOCK:
                    continue
                state, at = _read_name(path.name)
                segment = Segment(self._new(state, at), state, at, booked=False, late=state == "flushed")
                path.rename(segment.path)
                self._segments.append(segment)
                found.append(segment)
            (folder / LOCK).unlink()
            folder.rmdir()
            return found
        finally:
            os.close(lock)

    def _new(self, state: State, at: float | None) -> Path:
        self._number += 1
        return self.folder / f"{self._number:06d}.{_suffix(state, at)}"

    def _mark(self, segment: Segment, state: State, at: float | None = None) -> None:
        number = segment.path.name.partition(".")[0]
        segment.path = segment.path.rename(self.folder / f"{number}.{_suffix(state, at)}")
        segment.state, segment.at = state, at

    def _close_current(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _suffix(state: State, at: float | None) -> str:
    return f"{state}-{at:.6f}" if state == "flushing" else state


def _read_name(name: str) -> tuple[State, float | None]:
    """A name of nobody's making counts as `flushed`: the least that is done again."""
    state, _, at = name.partition(".")[2].partition("-")
    if state == "open":
        return "open", None
    with contextlib.suppress(ValueError):
        if state == "flushing":
            return "flushing", float(at)
    return "flushed", None
