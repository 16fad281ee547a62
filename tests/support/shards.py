"""Slow tests belong to named shards; a plain run leaves them out, `--shard NAME` runs those of one and nothing else.

`python -m support.shards` (with `tests` on the path) lists them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.marks import scan

__all__ = ["shards"]


def shards() -> dict[str, int]:
    """The names of all shards, each with its number of tests."""
    counts: dict[str, int] = {}
    for mark in scan():
        if mark.name == "slow":
            counts[mark.arguments[0]] = counts.get(mark.arguments[0], 0) + 1
    return dict(sorted(counts.items()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="", help="run the slow tests of this shard, and only those")


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--shard")
    if chosen and chosen not in shards():
        raise pytest.UsageError(f"there is no shard {chosen!r}; there are: {', '.join(shards()) or 'none'}")


def _names(path: Path, shard: str) -> bool:
    """Whether a file may hold tests of that shard: it says the name, if only in a mark that `scan` does not see."""
    return f'"{shard}"' in path.read_text(encoding="utf-8")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file that has nothing of the shard: to import all of them takes longer than many a shard's tests."""
    chosen = config.getoption("--shard")
    return True if chosen and collection_path.match("test_*.py") and not _names(collection_path, chosen) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("--shard")
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("slow")
        wanted = marker is None if not chosen else marker is not None and chosen in marker.args
        (kept if wanted else left_out).append(item)
        if marker is not None and not all(_names(item.path, shard) for shard in marker.args):
            raise pytest.UsageError(f"{item.nodeid}: the shard's name must stand in the file itself; else --shard passes it by")
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


if __name__ == "__main__":
    for name, count in shards().items():
        print(f"  {name}  ({count} tests)")
