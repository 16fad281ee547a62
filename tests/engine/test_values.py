"""Values survive the way to Postgres and back, whatever they are."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prisma import Json, Prisma

# Postgres keeps no NUL and UTF-8 no surrogates; jsonb keeps numbers as decimals, the engine as 64-bit integers or doubles, so
# that a double beyond 2**53 comes back as another integer of the same double.
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(-1e15, 1e15)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@EXAMPLES
@given(value=JSON)
async def test_json(db: Prisma, value: object) -> None:
    name = uuid4().hex
    row = await db.litellm_config.create(data={"param_name": name, "param_value": Json(value)})
    found = await db.litellm_config.find_unique(where={"param_name": name})
    assert found is not None
    raw = await db.query_raw('SELECT param_value FROM "LiteLLM_Config" WHERE param_name = $1', name)
    assert row.param_value == value
    assert found.param_value == value
    assert raw == [{"param_value": value}]


@EXAMPLES
@given(
    text=TEXT,
    items=st.lists(TEXT, max_size=4),
    big=st.integers(-(2**63), 2**63 - 1),
    number=st.floats(-1e15, 1e15),
    when=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),
    flag=st.booleans(),
)
async def test_columns(db: Prisma, text: str, items: list[str], big: int, number: float, when: datetime, flag: bool) -> None:
    when = when.replace(tzinfo=UTC, microsecond=when.microsecond // 1000 * 1000)  # the client keeps milliseconds
    name = uuid4().hex
    data: dict[str, Any] = {
        "team_alias": text,
        "models": items,
        "tpm_limit": big,
        "spend": number,
        "budget_reset_at": when,
        "blocked": flag,
    }
    await db.litellm_teamtable.create(data={"team_id": name, **data})
    found = await db.litellm_teamtable.find_first(
        where={"team_id": name, "team_alias": text, "tpm_limit": big, "budget_reset_at": when}
    )
    assert found is not None
    got = found.model_dump(include=set(data))
    assert math.isclose(got.pop("spend"), data.pop("spend"), rel_tol=1e-12, abs_tol=1e-300)
    assert got == data


@EXAMPLES
@given(text=TEXT, big=st.integers(-(2**63), 2**63 - 1), items=st.lists(TEXT, max_size=4), value=JSON)
async def test_raw_parameters(db: Prisma, text: str, big: int, items: list[str], value: object) -> None:
    rows = await db.query_raw(
        "SELECT $1::text AS t, $2::bigint AS b, $3::text[] AS a, $4::jsonb AS j, ARRAY[$2::bigint, NULL] AS ab",
        text,
        big,
        items,
        Json({"v": value}),
    )
    assert rows == [{"t": text, "b": big, "a": items, "j": {"v": value}, "ab": [big, None]}]


async def test_nothing_is_not_null(db: Prisma) -> None:
    """An absent optional JSON value is SQL NULL; a JSON null is JSON's."""
    names = [uuid4().hex, uuid4().hex]
    await db.litellm_config.create(data={"param_name": names[0]})
    await db.litellm_config.create(data={"param_name": names[1], "param_value": Json(None)})
    rows = await db.query_raw(
        'SELECT param_name, param_value IS NULL AS nothing FROM "LiteLLM_Config" WHERE param_name = ANY($1::text[])', names
    )
    assert {row["param_name"]: row["nothing"] for row in rows} == {names[0]: True, names[1]: False}


async def test_line_separators_in_strings(db: Prisma) -> None:
    """The client's own indentation gets into strings behind these characters; the engine takes it out again."""
    name = uuid4().hex
    text = 'a\u2028b\u2029 \u2028\u2028  \x85  c "\u2028 d'
    await db.litellm_teamtable.create(
        data={"team_id": name, "team_alias": text, "models": [text], "metadata": Json({text: [text]})}
    )
    found = await db.litellm_teamtable.find_unique(where={"team_id": name})
    assert found is not None
    assert (found.team_alias, found.models, found.metadata) == (text, [text], {text: [text]})
