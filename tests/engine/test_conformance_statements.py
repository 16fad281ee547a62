"""LiteLLM's own SQL, as it stands in its source, through the engine and psycopg: the same rows, counts and SQLSTATEs."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from prisma import Base64, Json, Prisma, errors

from engine.conformance_schema import Column, Model, Rows, models
from engine.conformance_statements import Statement, holes, statements

DAY = datetime(2026, 5, 1, tzinfo=UTC)
# What is passed for a parameter of each type: first what the seeded rows hold, then something else.
SAMPLES: dict[str, tuple[Any, Any]] = {
    "text": ("seed", "2026-05-01"),
    "name": ("seed", "LiteLLM_UserTable"),
    "text[]": (["seed"], []),
    "jsonb": ("[]", '{"seed": 1}'),
    "timestamp with time zone": (DAY - timedelta(days=1), DAY + timedelta(days=1)),
    "timestamp without time zone": (DAY - timedelta(days=1), DAY + timedelta(days=1)),
    "bigint": (1, 2**40),
    "integer": (1, 0),
    "double precision": (1.5, 0.0),
    "boolean": (True, False),
    "date": (DAY, DAY + timedelta(days=1)),
}


class _Seeds(Rows):
    """Rows in which every text is `seed`, so that statements find them."""

    def value(self, column: Column, turn: int) -> Any:
        if column.list:
            return ["seed"]
        if column.type == "String":
            return "2026-05-01" if column.name == "date" else "seed"
        if column.name == "request_tags":
            return Json(["seed"])
        if column.values:
            return column.values[0]
        samples = {"Int": 1, "BigInt": 1, "Float": 1.5, "Boolean": True, "DateTime": DAY, "Json": Json({"seed": 1})}
        return samples.get(column.type) or Base64.encode(b"seed")

    def all_of(self, model: Model) -> dict[str, Any]:
        """Every column, those that point to the other seeds too."""
        return {column.name: self.value(column, 0) for column in model.columns.values()}


async def _seed(client: Prisma) -> None:
    rows, left = _Seeds("seed"), dict(models())
    while left:
        ready = [model for model in left.values() if not {relation.model for relation in model.parents()} & set(left)]
        for model in ready:
            await getattr(client, model.accessor).create(data=rows.all_of(model))
            del left[model.name]


@pytest.fixture
async def seeded(new_database: Callable[[], str], own_engine: Any) -> AsyncIterator[tuple[Prisma, psycopg.Connection[Any]]]:
    """A database of its own with a row in every table and LiteLLM's views, by the engine and by psycopg."""
    url = new_database()
    client = own_engine(url).client()
    await client.connect()
    await _seed(client)
    for statement in statements():
        if re.match(r"\s*CREATE (OR REPLACE )?VIEW", statement.text) and "create_views" in statement.where:
            await client.execute_raw(statement.text)
    with psycopg.connect(url, options="-c timezone=UTC") as connection:
        yield client, connection
    await client.disconnect()


def _parameters(connection: psycopg.Connection[Any], statement: Statement) -> list[str]:
    """The types that Postgres gives the statement's parameters."""
    count = max((int(number) for number in re.findall(r"\$(\d+)", statement.text)), default=0)
    if not count:
        return []
    with connection.transaction(force_rollback=True):
        connection.execute(f"PREPARE it AS {statement.text}")
        (types,) = connection.execute(
            "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'it'"
        ).fetchone() or ([],)
        connection.execute("DEALLOCATE it")
    return list(types)


def _by_psycopg(connection: psycopg.Connection[Any], statement: Statement, values: list[Any]) -> tuple[str, Any]:
    sent = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    try:
        with connection.transaction(force_rollback=True):
            cursor = psycopg.RawCursor(connection)
            cursor.execute(statement.text, sent)
            if cursor.description is None:
                return "changed", max(cursor.rowcount, 0)
            names = [column.name for column in cursor.description]
            return "rows", [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    except psycopg.Error as error:
        return "refused", error.sqlstate


async def _by_engine(client: Prisma, statement: Statement, values: list[Any], rows: bool) -> tuple[str, Any]:
    manager = client.tx()
    transaction = await manager.start()
    try:
        if rows:
            return "rows", await transaction.query_raw(statement.text, *values)
        return "changed", await transaction.execute_raw(statement.text, *values)
    except errors.DataError as error:
        return "refused", (error.meta or {}).get("code")
    finally:
        await manager.rollback()


def _same(theirs: Any, ours: Any) -> bool:
    """Whether a value is psycopg's in the form that a raw query has it: JSON's types, times as text, numbers as floats."""
    match theirs:
        case None | bool() | str() | int():
            return bool(theirs == ours) and type(theirs) is type(ours)
        case float() | Decimal():
            return isinstance(ours, float | int) and math.isclose(theirs, ours, rel_tol=1e-14)
        case datetime():
            read = datetime.fromisoformat(ours)
            theirs = theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC)
            return abs(read - theirs) < timedelta(minutes=5 if theirs > DAY + timedelta(days=30) else 0, milliseconds=1)
        case date():
            return bool(ours == theirs.isoformat())
        case bytes():
            return base64.b64decode(ours) == theirs
        case list():
            return isinstance(ours, list) and len(ours) == len(theirs) and all(map(_same, theirs, ours))
        case dict():
            return (
                isinstance(ours, dict) and theirs.keys() == ours.keys() and all(_same(theirs[key], ours[key]) for key in theirs)
            )
    return str(theirs) == str(ours)


def _alike(theirs: tuple[str, Any], ours: tuple[str, Any]) -> bool:
    if theirs[0] != ours[0] or theirs[0] != "rows":
        return theirs == ours
    in_order = [sorted(rows, key=repr) for rows in (theirs[1], ours[1])] if len(theirs[1]) > 1 else [theirs[1], ours[1]]
    return len(theirs[1]) == len(ours[1]) and all(map(_same, *in_order))


@pytest.mark.conformance("Raw queries", "LiteLLM's own statements")
async def test_litellms_statements(seeded: tuple[Prisma, psycopg.Connection[Any]]) -> None:
    client, connection = seeded
    wrong, outcomes = [], {"rows": 0, "changed": 0, "refused": 0}
    for statement in statements():
        types = _parameters(connection, statement)
        for turn in (0, 1) if types else (0,):
            values = [SAMPLES[name][turn] for name in types]
            theirs = _by_psycopg(connection, statement, values)
            returns_rows = theirs[0] == "rows" or (theirs[0] == "refused" and re.match(r"\s*(SELECT|WITH)", statement.text))
            ours = await _by_engine(client, statement, values, bool(returns_rows))
            outcomes[theirs[0]] += 1
            if not _alike(theirs, ours):
                wrong.append(f"{statement.where} {values}\n  psycopg: {str(theirs)[:500]}\n  engine:  {str(ours)[:500]}")
    assert not wrong, f"{len(wrong)} of {sum(outcomes.values())}:\n" + "\n".join(wrong)
    # So that a reader that finds nothing, or samples that fit nothing, are no pass.
    assert len(statements()) >= 150
    assert len(holes()) <= 80, holes()
    assert outcomes["rows"] >= 100
    assert outcomes["changed"] >= 30
    assert outcomes["refused"] <= 40
