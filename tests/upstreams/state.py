"""What a fake upstream is told to do wrong, and what it remembers."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LOG_SIZE", "Fault", "Line", "Recorded", "Registry", "Upstream"]

LOG_SIZE = 5_000


class Fault(BaseModel):
    """What goes wrong, for the next `times` requests (all of them when None) whose raw body holds `match`.

    Delays are in seconds; a "chunk" is one server-sent event. `hang` and `stall_after_chunks` last until the fault is cleared
    or the client goes away. `garbage` answers 200 with what is not JSON. `cut_after_chunks` closes the connection inside the
    body (an answer that is not streamed is cut half-way, whatever the number). `error_after_chunks` sends the protocol's error
    event and ends. `drip` sends an answer that is not streamed a byte at a time, with so many seconds between two.
    """

    model_config = ConfigDict(extra="forbid")

    status: int | None = Field(None, ge=400, le=599)
    retry_after: float | None = None
    delay: float = 0.0
    chunk_delay: float = 0.0
    drip: float = 0.0
    hang: bool = False
    garbage: bool = False
    cut_after_chunks: int | None = None
    stall_after_chunks: int | None = None
    error_after_chunks: int | None = None
    times: int | None = None
    match: str | None = None


class Line(BaseModel):
    """What an upstream says to a chat whose raw body fits the regular expression `match`, in place of `served by NAME`.

    `{1}` in `answer` is the expression's first group.
    """

    model_config = ConfigDict(extra="forbid")

    match: str
    answer: str


@dataclass(slots=True)
class Recorded:
    """One request as it arrived, and how it was answered.

    `delivered` is `no` until a body began; then `complete`, `cut` (by a fault), or `disconnected`: a stream not at its end,
    because it is under way or the client left; `left`: the client left while the answer dripped.
    """

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    at: float = field(default_factory=time.time)
    response_id: str | None = None
    status: int | None = None
    fault: bool = False
    delivered: str = "no"


class Upstream:
    """One named upstream: its fault, its log (the last `LOG_SIZE`) and how many requests it ever got."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fault: Fault | None = None
        self.script: list[Line] = []
        self.cleared = asyncio.Event()
        self.log: deque[Recorded] = deque(maxlen=LOG_SIZE)
        self.count = 0
        self.active = 0

    def set_fault(self, fault: Fault | None) -> None:
        """Replace the fault; requests that hang because of the old one go on."""
        self.cleared.set()
        self.cleared = asyncio.Event()
        self.fault = fault

    def take_fault(self, raw: bytes) -> Fault | None:
        """The fault that this request suffers, counted against `times`."""
        fault = self.fault
        if fault is None or (fault.match is not None and fault.match.encode() not in raw):
            return None
        if fault.times is not None:
            if fault.times <= 0:
                return None
            fault.times -= 1
        return fault

    def line(self, raw: bytes) -> str | None:
        """What the script says to this request: its first line that fits."""
        text = raw.decode(errors="replace")
        for line in self.script:
            if found := re.search(line.match, text):
                return line.answer.replace("{1}", found.group(1) if found.groups() else "")
        return None

    def record(self, method: str, path: str, headers: dict[str, str], body: Any) -> Recorded:
        self.count += 1
        entry = Recorded(self.count, method, path, headers, body)
        self.log.append(entry)
        return entry

    def report(self, *, contains: str | None = None, since: int = 0) -> dict[str, Any]:
        """The log as JSON; `contains` filters on the body, `since` on the number."""
        entries = [asdict(e) for e in self.log if e.number > since and (contains is None or contains in str(e.body))]
        return {"name": self.name, "count": self.count, "active": self.active, "requests": entries}


class Registry:
    """Upstreams by name, made when first asked for."""

    def __init__(self) -> None:
        self._upstreams: dict[str, Upstream] = {}

    def __getitem__(self, name: str) -> Upstream:
        return self._upstreams.setdefault(name, Upstream(name))

    def clear_faults(self) -> None:
        for upstream in self._upstreams.values():
            upstream.set_fault(None)
            upstream.script = []

    def summary(self) -> dict[str, dict[str, Any]]:
        return {name: {"count": u.count, "active": u.active} for name, u in self._upstreams.items()}
