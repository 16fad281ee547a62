"""What does not work yet and why, as strict marks: the day that it works, the test says so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["COMPLETION_STREAM_FAILOVER", "except_for"]

COMPLETION_STREAM_FAILOVER = pytest.mark.xfail(
    strict=True,
    reason="LiteLLM connects for a streamed text completion when its first event is read, which is past its router's retries",
)


def except_for(way: str, mark: pytest.MarkDecorator, ways: Iterable[str]) -> list[Any]:
    """The names of `ways` as parameters, one of them with a mark."""
    return [pytest.param(name, marks=mark) if name == way else name for name in ways]
