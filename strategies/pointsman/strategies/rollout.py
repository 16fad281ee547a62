"""What the fleet is to run: one row a strategy in Postgres, or a file on an instance without a database.

Every instance reads it at each poll; whoever rolls back, pins or unblocks writes it once, for all. It holds no bundles, only
digests. Changes are rules on `DesiredState` (pure functions); the two keepers only make them atomic and durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pointsman.errors import BundleError, DatabaseError, ProcessError
from pointsman.strategies.files import canonical_json, strict_json, write_atomic

if TYPE_CHECKING:
    from typing import LiteralString

    import psycopg
    from psycopg import sql

__all__ = [
    "Change",
    "DesiredState",
    "FileRollout",
    "PostgresRollout",
    "Rollout",
    "accepted",
    "blocked",
    "open_rollout",
    "pinned",
    "unblocked",
]

CONNECT_TIMEOUT = 3
TIMEOUT = 8.0
"""Seconds, to connect and for a call as a whole. A poll must not wait for a database that is away. (Not `statement_timeout`:
poolers refuse it as a start-up parameter, and a `SET` would leak to their next client.)"""

CONNECTIONS = 2
"""At most at once, however many strategies there are: an instance keeps to a number of connections that can be stated."""


class DesiredState(BaseModel):
    """See the table `pointsman_rollout` for the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str
    generation: int = 0
    pinned_sha256: str | None = None
    target_sha256: str | None = None
    blocked_sha256: frozenset[str] = Field(default_factory=frozenset)
    shadow_sha256: str | None = None
    canary_share: float = 0.0
    max_sequence: int = 0
    pointer_sha256: str | None = None
    actor: str = ""
    reason: str = ""
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A new state and the line for the history; `state` equal to the old one means: nothing to do."""

    state: DesiredState
    action: str
    sha256: str | None
    actor: str
    reason: str


Rule = Callable[[DesiredState], Change]


def _raised(state: DesiredState, actor: str, reason: str, **values: Any) -> DesiredState:
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return state.model_copy(
        update={**values, "generation": state.generation + 1, "actor": actor, "reason": reason, "updated_at": now}
    )


def blocked(sha256: str, target: str, actor: str, reason: str) -> Rule:
    """Never run `sha256` again, and go to `target`. If it is blocked already (two operators at once), nothing changes."""

    def rule(state: DesiredState) -> Change:
        if sha256 in state.blocked_sha256:
            return Change(state, "block", sha256, actor, reason)
        if target in state.blocked_sha256:
            raise BundleError(
                f"the bundle to return to, {target[:12]}, is blocked itself",
                code="E4313",
                where=state.strategy,
                mend="publish a good bundle",
            )
        pin = None if state.pinned_sha256 == sha256 else state.pinned_sha256
        values = {"blocked_sha256": state.blocked_sha256 | {sha256}, "target_sha256": target, "pinned_sha256": pin}
        return Change(_raised(state, actor, reason, **values), "block", sha256, actor, reason)

    return rule


def unblocked(sha256: str, actor: str, reason: str) -> Rule:
    """Let a bundle run again that was rolled back."""

    def rule(state: DesiredState) -> Change:
        if sha256 not in state.blocked_sha256:
            return Change(state, "unblock", sha256, actor, reason)
        values = {"blocked_sha256": state.blocked_sha256 - {sha256}}
        return Change(_raised(state, actor, reason, **values), "unblock", sha256, actor, reason)

    return rule


def pinned(sha256: str | None, actor: str, reason: str) -> Rule:
    """Run this bundle whatever the pointer says; None: follow the pointer again."""

    def rule(state: DesiredState) -> Change:
        action = "pin" if sha256 else "unpin"
        if sha256 is not None and sha256 in state.blocked_sha256:
            raise BundleError(
                f"the bundle {sha256[:12]} is blocked", code="E4311", where=state.strategy, mend="unblock it first"
            )
        if sha256 == state.pinned_sha256:
            return Change(state, action, sha256, actor, reason)
        return Change(_raised(state, actor, reason, pinned_sha256=sha256), action, sha256, actor, reason)

    return rule


def accepted(sequence: int, pointer_sha256: str, actor: str) -> Rule:
    """Remember the newest verified pointer. No decision of anybody, so the generation stays."""

    def rule(state: DesiredState) -> Change:
        new = state
        if sequence > state.max_sequence:
            new = state.model_copy(update={"max_sequence": sequence, "pointer_sha256": pointer_sha256})
        return Change(new, "accept", None, actor, f"sequence {sequence}")

    return rule


class Rollout(Protocol):
    """Keeper of the desired states."""

    async def read(self, strategy: str) -> DesiredState:
        """The present state; a strategy that nobody touched has the default one.

        Raises:
            DatabaseError: E4500, the database is away; callers keep the last state that they know.
        """

    async def change(self, strategy: str, rule: Rule) -> DesiredState:
        """Apply a rule, atomically among all instances, and write the history. The state after it.

        Raises:
            DatabaseError: E4500, nothing was changed. BundleError: the rule refused.
        """

    async def close(self) -> None:
        """Give everything back."""


_COLUMNS = tuple(DesiredState.model_fields)


class PostgresRollout:
    """Keeps them in Postgres. Each call has a connection of its own: one every poll, and none to look after in between."""

    def __init__(self, database_url: str) -> None:
        from pointsman.database_url import libpq_url, own_schema

        self._schema = own_schema(database_url)
        self._url = database_url
        self._conninfo = libpq_url(database_url)
        self._turns = asyncio.Semaphore(CONNECTIONS)

    async def read(self, strategy: str) -> DesiredState:
        """See `Rollout.read`."""

        async def work(connection: psycopg.AsyncConnection[Any]) -> DesiredState:
            return await _select(connection, self._schema, strategy, lock=False)

        return await self._run(work)

    async def change(self, strategy: str, rule: Rule) -> DesiredState:
        """See `Rollout.change`."""

        async def work(connection: psycopg.AsyncConnection[Any]) -> DesiredState:
            async with connection.transaction():
                insert = "INSERT INTO {}.pointsman_rollout (strategy) VALUES (%s) ON CONFLICT (strategy) DO NOTHING"
                await connection.execute(_named(insert, self._schema), (strategy,))
                before = await _select(connection, self._schema, strategy, lock=True)
                change = rule(before)
                if change.state != before:
                    await _update(connection, self._schema, change)
                return change.state

        return await self._run(work)

    async def close(self) -> None:
        """Nothing is held open."""

    async def _run(self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[DesiredState]]) -> DesiredState:
        import psycopg

        from pointsman.database_url import address, unreachable

        try:
            async with (
                asyncio.timeout(TIMEOUT),
                self._turns,
                await psycopg.AsyncConnection.connect(
                    self._conninfo, autocommit=True, connect_timeout=CONNECT_TIMEOUT, application_name="pointsman rollout"
                ) as connection,
            ):
                return await work(connection)
        except TimeoutError as error:
            raise DatabaseError("the database did not answer in time", where=address(self._url)) from error
        except psycopg.errors.UndefinedTable as error:
            raise DatabaseError(
                "the table pointsman_rollout is missing", where=address(self._url), mend="run `pointsman db migrate`"
            ) from error
        except psycopg.OperationalError as error:
            raise unreachable(self._url, error) from error
        except psycopg.Error as error:
            raise DatabaseError(f"the desired state cannot be read or written: {error}", where=address(self._url)) from error


def _named(statement: LiteralString, schema: str) -> sql.Composed:
    """`statement` with our schema at each `{}`: behind a pooler in transaction mode no search path lasts."""
    from psycopg import sql

    return sql.SQL(statement).format(*[sql.Identifier(schema)] * statement.count("{}"))


async def _select(connection: psycopg.AsyncConnection[Any], schema: str, strategy: str, *, lock: bool) -> DesiredState:
    from psycopg.rows import dict_row

    query: LiteralString = "SELECT * FROM {}.pointsman_rollout WHERE strategy = %s"
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_named(query + " FOR UPDATE" if lock else query, schema), (strategy,))
        row = await cursor.fetchone()
    if row is None:
        return DesiredState(strategy=strategy)
    row["updated_at"] = row["updated_at"].astimezone(UTC).isoformat(timespec="microseconds")
    # A newer version's columns are none of ours: instances of two versions share the table during an upgrade.
    return DesiredState.model_validate({name: row[name] for name in _COLUMNS if name in row})


async def _update(connection: psycopg.AsyncConnection[Any], schema: str, change: Change) -> None:
    state = change.state
    await connection.execute(
        _named(
            "UPDATE {}.pointsman_rollout SET generation = %s, pinned_sha256 = %s, target_sha256 = %s, blocked_sha256 = %s,"
            " shadow_sha256 = %s, canary_share = %s, max_sequence = %s, pointer_sha256 = %s, actor = %s, reason = %s,"
            " updated_at = coalesce(nullif(%s, '')::timestamptz, updated_at) WHERE strategy = %s",
            schema,
        ),
        (
            state.generation,
            state.pinned_sha256,
            state.target_sha256,
            sorted(state.blocked_sha256),
            state.shadow_sha256,
            state.canary_share,
            state.max_sequence,
            state.pointer_sha256,
            state.actor,
            state.reason,
            state.updated_at,
            state.strategy,
        ),
    )
    await connection.execute(
        _named(
            "INSERT INTO {}.pointsman_rollout_history (strategy, generation, action, sha256, actor, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            schema,
        ),
        (state.strategy, state.generation, change.action, change.sha256, change.actor, change.reason),
    )


class FileRollout:
    """Keeps them in one file, for one instance. The file is small; reading and writing it takes far less than a millisecond.

    Raises (from `read`, `change`):
        ProcessError: E4602, the file cannot be read or written, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()

    async def read(self, strategy: str) -> DesiredState:
        """See `Rollout.read`."""
        return self._load().get(strategy) or DesiredState(strategy=strategy)

    async def change(self, strategy: str, rule: Rule) -> DesiredState:
        """See `Rollout.change`. Its history is the log."""
        async with self._lock:
            states = self._load()
            before = states.get(strategy) or DesiredState(strategy=strategy)
            after = rule(before).state
            if after != before:
                states[strategy] = after
                self._store(states)
            return after

    async def close(self) -> None:
        """Nothing is held open."""

    def _load(self) -> dict[str, DesiredState]:
        try:
            items = strict_json(self._path.read_bytes())
            return {item["strategy"]: DesiredState.model_validate(item) for item in items}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ProcessError(
                f"the desired state cannot be read: {error.strerror or error}", code="E4602", where=str(self._path)
            ) from error
        except (ValueError, ValidationError, TypeError, KeyError) as error:
            # Not silently empty: that would unblock what was rolled back.
            raise ProcessError(
                f"the desired state is damaged: {error}",
                code="E4602",
                where=str(self._path),
                mend="restore the file, or remove it, which forgets rollbacks and pins",
            ) from error

    def _store(self, states: dict[str, DesiredState]) -> None:
        # Sets have no order; sorted, the same states give the same bytes.
        items = [{**state.model_dump(mode="json"), "blocked_sha256": sorted(state.blocked_sha256)} for state in states.values()]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(self._path, canonical_json(items))
        except OSError as error:
            raise ProcessError(
                f"the desired state cannot be written: {error.strerror or error}",
                code="E4602",
                where=str(self._path),
                mend="check the permissions of the data directory and the space left on it",
            ) from error


def open_rollout(database_url: str | None, cache_dir: Path) -> Rollout:
    """The keeper of an instance: Postgres if there is a database, else `cache_dir/rollout.json`."""
    return PostgresRollout(database_url) if database_url else FileRollout(cache_dir / "rollout.json")
