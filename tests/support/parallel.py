"""`make test` runs the tests in processes side by side (pytest-xdist), a file in one of them from its beginning to its end.

`@pytest.mark.alone` is for a test that holds a few milliseconds, or a ratio of times, to a bound: while it runs, the other
processes run none. Without xdist nothing is beside it anyway.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

__all__ = ["Room"]

_FOLDER = pytest.StashKey[str]()
_ROOM = pytest.StashKey["Room"]()


class Room:
    """Many may be in it together, or one alone. Record locks: who dies leaves it, and no child inherits a place.

    Args:
        folder: the same for all processes.
    """

    def __init__(self, folder: Path) -> None:
        self._door = (folder / "door").open("w+")
        self._room = (folder / "room").open("w+")

    @contextlib.contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Wait for a place. Who waits to be alone stands in the door, so that those who come later wait behind it."""
        fcntl.lockf(self._door, fcntl.LOCK_EX)
        try:
            fcntl.lockf(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.lockf(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.lockf(self._room, fcntl.LOCK_UN)


def pytest_configure(config: pytest.Config) -> None:
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[_ROOM] = Room(Path(workerinput["room"]))
        # As Hypothesis does in CI: how long an example takes says nothing while others have the processor.
        hypothesis.settings.register_profile("beside others", hypothesis.settings(deadline=None))
        hypothesis.settings.load_profile("beside others")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the process that distributes: tell a new one where the room is."""
    config: pytest.Config = node.config
    if _FOLDER not in config.stash:
        folder = tempfile.TemporaryDirectory(prefix="pytest-room-")
        config.add_cleanup(folder.cleanup)
        config.stash[_FOLDER] = folder.name
    node.workerinput["room"] = config.stash[_FOLDER]


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of pytest-timeout's: who waits for a place is not slow
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    room = item.config.stash.get(_ROOM, None)
    if room is None:
        return (yield)
    with room.entered(alone=item.get_closest_marker("alone") is not None):
        return (yield)
