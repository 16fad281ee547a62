"""LiteLLM's books: the rows that wait in a worker's memory, and how entries of a journal are booked once more.

An entry is the row as LiteLLM made it for its table of requests, so it holds what that table holds and no more, and the model
access groups that are charged too, which no row tells. Everything else that LiteLLM counts stands in the row.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, isfinite
from typing import Any

import orjson

from pointsman.spend_journal.segments import Segment

__all__ = ["Entry", "Lack", "Recovered", "book", "by_progress", "decode", "encode", "groups_of", "lacking", "row_of"]

logger = logging.getLogger("pointsman.spend_journal")

CHUNK = 500
"""Request ids a question."""
AS_STORED = 0.001
"""Seconds of a time in the tables, which drop what is finer."""

WRITTEN = 'SELECT request_id FROM "LiteLLM_SpendLogs" WHERE request_id = ANY($1::text[])'
ACTIVE = (
    "SELECT token, coalesce(extract(epoch FROM last_active), 0)::float8 AS at"
    ' FROM "LiteLLM_VerificationToken" WHERE token = ANY($1::text[])'
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that cost something.

    Attributes:
        row: as LiteLLM puts it into its table of requests.
        groups: model access groups.
    """

    row: dict[str, Any]
    groups: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Of the request, and of its row."""
        return str(self.row["request_id"])

    @property
    def spend(self) -> float:
        """Dollars."""
        return float(self.row["spend"])


@dataclass(frozen=True, slots=True)
class Lack:
    """What entries lack.

    Attributes:
        rows: not in the table.
        charges: not counted for their keys, users and teams.
        doubtful: of these nobody knows whether they are counted; they are not counted again.
    """

    rows: list[Entry] = field(default_factory=list)
    charges: list[Entry] = field(default_factory=list)
    doubtful: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Recovered:
    """What came of a claim: numbers of entries, and dollars; `unreadable` are lines."""

    entries: int = 0
    rows: int = 0
    charged: int = 0
    dollars: float = 0.0
    doubtful: int = 0
    doubtful_dollars: float = 0.0
    unreadable: int = 0

    def add(self, lack: Lack) -> None:
        """Add up what was done for a segment."""
        self.rows += len(lack.rows)
        self.charged += len(lack.charges)
        self.dollars += fsum(entry.spend for entry in lack.charges)
        self.doubtful += len(lack.doubtful)
        self.doubtful_dollars += fsum(entry.spend for entry in lack.doubtful)


def encode(row: Mapping[str, Any], groups: Sequence[str] = ()) -> bytes:
    """One line."""
    entry = {"row": row, "groups": groups} if groups else {"row": row}
    return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)


def decode(line: bytes) -> Entry | None:
    """None: it is the end or the beginning of a write that was cut off."""
    try:
        found = orjson.loads(line)
        row = found["row"]
        if not isinstance(row, dict) or not row["request_id"]:
            return None
        entry = Entry(row, tuple(str(group) for group in found.get("groups", ())))
        return entry if isfinite(entry.spend) else None
    except (ValueError, KeyError, TypeError):
        return None


def groups_of(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The model access groups that a request is charged to, as its callback is told."""
    from litellm.proxy.spend_tracking.spend_tracking_utils import get_request_model_access_groups

    return tuple(get_request_model_access_groups(kwargs))


def row_of(kwargs: Mapping[str, Any], response: Any, start: Any, end: Any) -> dict[str, Any] | None:
    """The row of a request that LiteLLM has booked, made once more; None where it cost nothing or nobody is charged.

    Only for one whose row is in the queue no longer: LiteLLM takes rows out to write them while the callback that put one in
    still waits for something else, and then only the counters are in memory.
    """
    from litellm.litellm_core_utils.core_helpers import get_litellm_metadata_from_kwargs
    from litellm.proxy import proxy_server
    from litellm.proxy.spend_tracking.spend_tracking_utils import get_logging_payload

    logged = kwargs.get("standard_logging_object") or kwargs
    cost = logged.get("response_cost")
    if (
        not isinstance(cost, int | float) or cost <= 0 or kwargs.get("cache_hit")
    ):  # of an answer from the cache the id is new each time
        return None
    if not get_litellm_metadata_from_kwargs(dict(kwargs)).get("user_api_key"):
        return None
    row = get_logging_payload(dict(kwargs), response, start, end, proxy_server.llm_router)
    return {**row, "spend": cost}


def by_progress(segments: Iterable[Segment]) -> list[Segment]:
    """Those that have come furthest first: of a request that stands in two, that one holds."""
    order = {"flushed": 0, "flushing": 1, "open": 2}
    return sorted(segments, key=lambda one: order[one.state])


def lacking(
    segment: Segment, entries: Iterable[Entry], written: Collection[str], active: Mapping[str, float], *, in_redis: bool = False
) -> Lack:
    """What is still to be done for the entries of a dead worker's segment: each row is there once, no key is charged twice.

    Of what was `open` nothing is counted. Of what was `flushing` that is not counted whose key has not been active since the
    flush began: LiteLLM's flush sets that in the transaction that counts the key's spend. Where another worker has flushed the
    same key meanwhile nobody can tell.

    Args:
        segment: theirs.
        entries: each request once.
        written: ids of requests whose rows are in the table.
        active: hash of a key that exists -> when it was last active (Unix time).
        in_redis: counters wait in Redis between a flush and the tables, so that nothing tells of them.
    """
    lack = Lack()
    for entry in entries:
        if entry.id not in written:
            lack.rows.append(entry)
        if segment.state == "open":
            lack.charges.append(entry)
        elif segment.state == "flushing":
            last = active.get(str(entry.row["api_key"]))
            untouched = last is not None and last < (segment.at or 0.0) - AS_STORED and not in_redis
            (lack.charges if untouched else lack.doubtful).append(entry)
    return lack


async def book(segment: Segment, lines: Iterable[bytes], handled: set[str], recovered: Recovered) -> None:
    """Give LiteLLM's writer what a segment's entries lack.

    Once the tables have answered it lets nothing else run on the loop, so a flush has all of the segment or nothing.

    Args:
        segment: of a worker that has died.
        lines: of it.
        handled: ids of requests that stood in other segments and are done; these are added, before their rows are queued.
        recovered: is added up.

    Raises:
        Exception: what Prisma's client raises where the database cannot be asked; nothing is booked then.
    """
    from litellm.proxy import proxy_server
    from litellm.proxy.db.db_transaction_queue.redis_update_buffer import RedisUpdateBuffer
    from litellm.proxy.utils import enqueue_spend_logs

    decoded = [decode(line) for line in lines]
    entries = {entry.id: entry for entry in decoded if entry is not None and entry.id not in handled}
    client = proxy_server.prisma_client
    written = {found["request_id"] for found in await _select(client, WRITTEN, entries)}
    tokens = {str(entry.row["api_key"]) for entry in entries.values()} if segment.state == "flushing" else set()
    active = {found["token"]: float(found["at"]) for found in await _select(client, ACTIVE, tokens)}
    in_redis = RedisUpdateBuffer.should_commit_spend_updates_to_redis()
    lack = lacking(segment, entries.values(), written, active, in_redis=in_redis)

    handled.update(entries)
    if lack.rows:
        await enqueue_spend_logs(client, [entry.row for entry in lack.rows])
    for entry in lack.charges:
        await _charge(entry)
    recovered.entries += len(entries)
    recovered.unreadable += decoded.count(None)
    recovered.add(lack)


async def _select(client: Any, query: str, names: Iterable[str]) -> list[dict[str, Any]]:
    wanted, found = list(names), []
    for start in range(0, len(wanted), CHUNK):
        found += await client.db.query_raw(query, wanted[start : start + CHUNK])
    return found


async def _charge(entry: Entry) -> None:
    """Count an entry where LiteLLM counts a request once it has made its row."""
    import litellm
    from litellm.proxy import proxy_server

    row = entry.row
    try:
        metadata = orjson.loads(row.get("metadata") or b"{}")
        await proxy_server.proxy_logging_obj.db_spend_update_writer._batch_database_updates(
            response_cost=entry.spend,
            user_id=row.get("user") or None,
            hashed_token=row.get("api_key") or None,
            team_id=row.get("team_id") or None,
            org_id=row.get("organization_id") or None,
            end_user_id=None if litellm.disable_end_user_cost_tracking else row.get("end_user") or None,
            project_id=metadata.get("user_api_key_project_id"),
            prisma_client=proxy_server.prisma_client,
            litellm_proxy_budget_name=proxy_server.litellm_proxy_budget_name,
            payload=row,
            request_model_access_groups=entry.groups,
        )
    except Exception:  # whatever it is: were it raised, those that are charged already would be charged again
        logger.exception("request %s is not charged to its key: LiteLLM cannot book it again", entry.id)
