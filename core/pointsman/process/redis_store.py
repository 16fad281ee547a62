"""Facts of instances in Redis: one stream a topic, which each instance appends to and reads on from where it was.

A stream and no pub/sub, because a message to somebody who is just not connected would be lost, and because who joins reads what
was told lately; no hash, because reading it again and again costs as much as there are facts, and two writers would overwrite
each other. An entry's id is the time at Redis, so that its age is known without the clocks of two machines being compared. What
comes from Redis is input of strangers: it is bounded, parsed, judged by the shelves, and what means nothing is counted.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pointsman.process.facts import Fact
from pointsman.process.mirror import Told
from pointsman.process.redis_target import RedisTarget

__all__ = ["RedisStore"]

MAX_ENTRIES = 10_000
"""Of a stream, about; fewer where they are large."""
MAX_STREAM = 16 * 2**20
"""Bytes of a stream, about: were all its entries as large as the last."""
MAX_BYTES = 1_000_000
"""Of one entry that is read."""
READ = 64
"""Entries read at a time."""
ROUNDS = 64
"""Reads of one `collect`; what is left comes with the next."""
SECONDS = 1.0
"""After which a `collect` reads no further: one that was cut off for taking too long would begin anew for ever."""
CLOCK_SECONDS = 30.0
"""How old a comparison of Redis' clock with ours may be."""
START = b"0-0"


class RedisStore:
    """A `mirror.SharedStore`.

    Args:
        target: where Redis is.
        retention: topic -> seconds that its entries are kept.
        prefix: of the keys.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        target: RedisTarget,
        retention: Mapping[str, float],
        prefix: str = "pointsman",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target, self._retention, self._clock = target, dict(retention), clock
        # In a cluster all streams are on one node (a hash tag), so that one command reads them.
        self._keys = {topic: f"{{{prefix}}}:facts:{topic}" for topic in retention}
        self._read = {key.encode(): START for key in self._keys.values()}
        self._topics = {key.encode(): topic for topic, key in self._keys.items()}
        self._me = secrets.token_hex(8)
        self._client: Any = None
        self._ahead: tuple[float, float] | None = None
        """Redis' time minus ours, and when that was measured."""
        self.refused = 0
        """Entries that were no facts."""

    async def publish(self, topic: str, facts: Sequence[Fact]) -> None:
        """Append them."""
        key = self._keys[topic]
        entry = {"by": self._me, "facts": json.dumps(list(facts), separators=(",", ":"))}
        most = min(MAX_ENTRIES, max(1, MAX_STREAM // len(entry["facts"])))
        await self._connected().xadd(key, entry, maxlen=most, approximate=True)
        await self._connected().expire(key, int(self._retention[topic]))

    async def collect(self) -> list[Told]:
        """What others have appended since the last call; at the first, what is kept."""
        client, found, began = self._connected(), list[Told](), self._clock()
        ahead = await self._compared(client)
        for _ in range(ROUNDS):
            answer = await client.xread(dict(self._read), count=READ)
            streams = answer.items() if isinstance(answer, dict) else answer or ()
            most = 0
            for name, raw in streams:
                entries = raw[0] if raw and isinstance(raw[0], list) else raw  # RESP3 wraps them once more
                most = max(most, len(entries))
                for number, fields in entries:
                    self._read[name] = number
                    if (told := self._told(self._topics[name], number, fields, ahead)) is not None:
                        found.append(told)
            if most < READ or self._clock() - began > SECONDS:
                break
        return found

    def _told(self, topic: str, number: bytes, fields: Mapping[bytes, bytes], ahead: float) -> Told | None:
        if fields.get(b"by") == self._me.encode():
            return None
        raw = fields.get(b"facts", b"")
        age = self._clock() + ahead - int(number.partition(b"-")[0]) / 1000
        if age > self._retention[topic]:
            return None  # it was to be gone
        try:
            facts = json.loads(raw) if len(raw) <= MAX_BYTES else None
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, list):
            self.refused += 1
            return None
        return Told(topic, facts, max(0.0, age))

    async def _compared(self, client: Any) -> float:
        """Redis' time minus ours; a stream whose end lies before where we read (another server) is read from its beginning."""
        now = self._clock()
        if self._ahead is None or now - self._ahead[1] > CLOCK_SECONDS:
            seconds, micros = await client.time()
            self._ahead = (seconds + micros / 1e6 - self._clock(), now)
            for name, read in self._read.items():
                last = await client.xrevrange(name.decode(), count=1)
                if last and _order(last[0][0]) < _order(read):
                    self._read[name] = START
        return self._ahead[0]

    async def trim(self) -> None:
        """Drop entries that are older than their topic is kept."""
        client = self._connected()
        ahead = await self._compared(client)
        for topic, key in self._keys.items():
            oldest = int((self._clock() + ahead - self._retention[topic]) * 1000)
            await client.xtrim(key, minid=max(0, oldest), approximate=True)

    async def reset(self) -> None:
        """After an error: another connection, and everything that is kept is read again."""
        await self.close()
        self._ahead = None
        self._read = dict.fromkeys(self._read, START)

    async def close(self) -> None:
        """Give the connections back."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _connected(self) -> Any:
        self._client = self._client or self._target.client()
        return self._client


def _order(number: bytes) -> tuple[int, int]:
    before, _, after = number.partition(b"-")
    return int(before), int(after or 0)
