"""What waits to be written or sent: bounded by count and by size, the oldest go first, and each that goes is counted."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

__all__ = ["MAX_WAITING", "Waiting"]

T = TypeVar("T")
MAX_WAITING = 64 * 1024 * 1024
"""Characters that may wait in one queue, whatever its count allows: with `privacy.capture_prompts` records hold prompts."""


class Waiting(Generic[T]):
    """A queue that many threads fill and one empties.

    Args:
        count: items that may wait.
        size: what they may weigh together.
    """

    def __init__(self, count: int, size: int = MAX_WAITING) -> None:
        self.dropped = 0
        """Items that were never taken out."""
        self._count, self._size, self._weight = count, size, 0
        self._items: deque[tuple[T, int]] = deque()
        # Held for a few instructions. Reentrant, for what a garbage collection or a signal logs comes in the midst of them.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, weight: int) -> None:
        """Add one; the oldest make room for it."""
        with self._lock:
            self._items.append((item, weight))
            self._weight += weight
            while len(self._items) > self._count or (self._weight > self._size and len(self._items) > 1):
                self._weight -= self._items.popleft()[1]
                self.dropped += 1

    def take(self, most: int) -> list[T]:
        """Take out the oldest, at most so many."""
        with self._lock:
            taken = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._weight -= sum(weight for _, weight in taken)
        return [item for item, _ in taken]

    def lose(self, count: int) -> None:
        """Count items that were taken out and lost."""
        with self._lock:
            self.dropped += count

    def clear(self) -> None:
        """Drop what waits."""
        with self._lock:
            self.lose(len(self._items))
            self._items.clear()
            self._weight = 0
