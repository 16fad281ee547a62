"""Feedback on an answer, kept with its outcome: found by the decision's id, and only for who asked.

Not on the path of any request for an answer. Records are written behind the requests' backs, so feedback may come before its
decision is in the database; it is looked for again for a while. A connection a call, few at once, each step with an end.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from pointsman.database_url import libpq_url, own_schema, redact
from pointsman.errors import DatabaseError, RequestError
from pointsman.settings import DecisionSettings

__all__ = ["Feedback", "Given"]

_log = logging.getLogger(__name__)
CONNECTIONS = 1
"""At once, in the supervisor."""
CONNECT_SECONDS = 5
SECONDS = 10.0
"""What one look into the database may take."""
MAX_WAITING = 100
"""Of the instance, so that ids that nobody ever had do not fill its memory."""
PAUSE = 0.25
PATIENCE = 1.0
"""Seconds beyond two flushes of the writer that a decision is looked for."""

_SET = """
WITH asked AS (
    SELECT 1 FROM {decisions} WHERE decision_id = %(id)s AND key_hash = %(key)s LIMIT 1
), old AS (
    SELECT o.decision_id, o.created_at, o.feedback FROM {outcomes} o, asked WHERE o.decision_id = %(id)s FOR UPDATE OF o
)
UPDATE {outcomes} o SET feedback = %(score)s FROM old WHERE o.decision_id = old.decision_id AND o.created_at = old.created_at
RETURNING o.status, o.deployment_id, old.feedback, extract(epoch FROM now() - o.created_at)::float8
"""


@dataclass(frozen=True, slots=True)
class Given:
    """Feedback that was kept.

    Attributes:
        deployment_id: who gave the answer, or None.
        answered: there was an answer.
        before: what the answer was given before, or None.
        age: seconds since the answer ended.
    """

    deployment_id: str | None
    answered: bool
    before: float | None
    age: float


class Feedback:
    """See the module.

    Args:
        database_url: LiteLLM's DATABASE_URL, or None.
        settings: whether and how fast decisions are kept.
    """

    def __init__(self, database_url: str | None, settings: DecisionSettings) -> None:
        self._url = database_url if settings.enabled else None
        self._patience = 2 * settings.flush_interval + PATIENCE
        self._waiting = 0
        self._slots = asyncio.Semaphore(CONNECTIONS)

    async def give(self, decision_id: str, key_hash: str, score: float) -> Given:
        """Keep feedback; of the same answer the last one counts.

        Args:
            decision_id: whose.
            key_hash: who gives it.
            score: in [0, 1].

        Raises:
            RequestError: E4004, that key had no such decision, or it is no longer kept.
            DatabaseError: E4510, there is no database or it cannot be reached; the feedback is not kept.
        """
        if self._url is None:
            raise DatabaseError(
                "feedback is kept with decisions, and this gateway keeps none",
                code="E4510",
                mend="give it a database, and leave `pointsman.decisions.enabled` on",
            )
        if self._waiting >= MAX_WAITING:
            raise DatabaseError("too much feedback waits", code="E4510", mend="send it again a few seconds later")
        self._waiting += 1
        try:
            return await self._find(self._url, decision_id, key_hash, score)
        finally:
            self._waiting -= 1

    async def _find(self, url: str, decision_id: str, key_hash: str, score: float) -> Given:
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            found = await self._look(url, decision_id, key_hash, score)
            if found is not None:
                return found
            if asyncio.get_running_loop().time() >= deadline:
                # One and the same for what is not there and what is another's.
                raise RequestError(
                    "no decision of that id was made for this key",
                    code="E4004",
                    where="decision_id",
                    mend="send what the answer's header x-pointsman-decision-id said, with the key that asked",
                )
            await asyncio.sleep(PAUSE)

    async def _look(self, url: str, decision_id: str, key_hash: str, score: float) -> Given | None:
        try:
            async with self._slots, asyncio.timeout(SECONDS):
                return await _set(url, {"id": decision_id, "key": key_hash, "score": score})
        except (psycopg.Error, OSError, TimeoutError) as error:
            # Whoever gives feedback needs not know where the database is.
            _log.warning("feedback cannot be kept: %s", redact(f"{type(error).__name__}: {error}", url).strip())
            mend = "send it again when the database is back"
            raise DatabaseError("feedback cannot be kept now", code="E4510", mend=mend) from None


async def _set(url: str, values: dict[str, Any]) -> Given | None:
    schema = own_schema(url)
    statement = sql.SQL(_SET).format(
        decisions=sql.Identifier(schema, "pointsman_decisions"), outcomes=sql.Identifier(schema, "pointsman_outcomes")
    )
    connection = await psycopg.AsyncConnection.connect(
        libpq_url(url),
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        application_name="pointsman feedback",
        prepare_threshold=None,  # poolers in transaction mode
    )
    async with connection:
        cursor = await connection.execute(statement, values)
        row = await cursor.fetchone()
    if row is None:
        return None
    return Given(row[1], row[0] == "success", row[2], max(0.0, row[3]))
