"""Values of every column type survive the way to Postgres and back: given, read by the client and read by psycopg are the same.

Types: https://www.prisma.io/docs/orm/reference/prisma-schema-reference#model-field-scalar-types . Where Prisma itself keeps
less than Postgres could, the test says so and where that is known.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prisma import Base64, Json, errors
from psycopg import sql as compose

from engine.conformance_schema import Model, models, plain

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=1500, derandomize=False)

# Postgres keeps no NUL, UTF-8 no half of a surrogate pair.
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    [
        "",
        " ",
        '"',
        "\\",
        "\\u0041",
        "\u2028",
        "a\u2029 \x85b",
        "\ufeff",
        "\U0010ffff",
        '{"$type":"BigInt","value":"1"}',
        "\r\n",
        "'; --",
        "$1",
    ]
)
# jsonb keeps decimals, the engine 64-bit integers and doubles: a double from 2**53 on may come back as an integer of its value.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e15, 1e15) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)
TIMES = st.datetimes(
    datetime(1, 1, 2),
    datetime(9999, 12, 30),
    timezones=st.builds(
        timezone, st.timedeltas(timedelta(hours=-14), timedelta(hours=14)).map(lambda d: timedelta(minutes=d.seconds // 60))
    ),
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e308, max_value=1e308, allow_subnormal=False)
BIG = st.integers(-(2**63), 2**63 - 1)
INT = st.integers(-(2**31), 2**31 - 1)

RUN, OBSERVATION, FUNNEL = "LiteLLM_WorkflowRun", "LiteLLM_AutoRouterBaselineObservation", "LiteLLM_ShadowEvalFunnel"
PERMISSION, CONTENT, JOB = "LiteLLM_ObjectPermissionTable", "LiteLLM_ManagedFileContentTable", "LiteLLM_CronJob"
SETTLEMENT = "LiteLLM_BackgroundInteractionSettlement"

RoundTrip = Callable[[str, dict[str, Any]], Awaitable[tuple[dict[str, Any], dict[str, Any]]]]


@pytest.fixture
def there_and_back(client: Any, sql: Any, tag: str) -> RoundTrip:
    """Stores values in a new row; answers what the client reads and what psycopg reads."""
    numbers = count()
    needed: dict[str, dict[str, Any]] = {
        RUN: {"workflow_type": "t"},
        OBSERVATION: {"scope": "s", "started_at": 0.0, "revision": 0, "data": ""},
        SETTLEMENT: {"custom_llm_provider": "p", "create_context": Json({})},
    }

    async def store(name: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        model = models()[name]
        (key,) = model.keys[0]
        row = f"{tag}-{next(numbers)}"
        table = getattr(client, model.accessor)
        created = await table.create(data={key: row, **needed.get(name, {}), **values})
        found = await table.find_unique(where={key: row})
        assert found == created
        return _columns(model, found, values), _stored(sql, model, key, row, values)

    return store


def _columns(model: Model, row: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(model.columns[name], getattr(row, name)) for name in values}


def _stored(sql: Any, model: Model, key: str, row: str, values: dict[str, Any]) -> dict[str, Any]:
    columns = compose.SQL(", ").join(compose.Identifier(name) for name in values)
    query = compose.SQL("SELECT {} FROM {} WHERE {} = %s").format(
        columns, compose.Identifier(model.table), compose.Identifier(key)
    )
    return {
        name: plain(model.columns[name], value)
        for name, value in zip(values, sql.execute(query, (row,)).fetchone(), strict=True)
    }


async def check_text(there_and_back: RoundTrip, value: str) -> None:
    assert await there_and_back(OBSERVATION, {"data": value}) == ({"data": value}, {"data": value})


async def check_json(there_and_back: RoundTrip, value: Any) -> None:
    assert await there_and_back(RUN, {"input": Json(value)}) == ({"input": value}, {"input": value})


async def check_time(there_and_back: RoundTrip, value: datetime) -> None:
    """The client keeps milliseconds: https://github.com/RobertCraigie/prisma-client-py/issues/129 ."""
    kept = {"claimed_at": value.astimezone(UTC).replace(microsecond=value.microsecond // 1000 * 1000)}
    assert await there_and_back(SETTLEMENT, {"claimed_at": value}) == (kept, kept)


async def check_float(there_and_back: RoundTrip, value: float) -> None:
    """Prisma keeps 16 significant digits, on the way in and out: https://github.com/prisma/prisma/issues/22249 ."""
    read, stored = await there_and_back(OBSERVATION, {"started_at": value})
    assert math.isclose(stored["started_at"], value, rel_tol=1e-15)
    assert read["started_at"] == float(f"{stored['started_at']:.15e}")


async def check_integers(there_and_back: RoundTrip, big: int, small: int) -> None:
    assert await there_and_back(OBSERVATION, {"revision": big}) == ({"revision": big}, {"revision": big})
    assert await there_and_back(FUNNEL, {"shed": small}) == ({"shed": small}, {"shed": small})


async def check_list(there_and_back: RoundTrip, value: list[str]) -> None:
    assert await there_and_back(PERMISSION, {"agents": value}) == ({"agents": value}, {"agents": value})


async def check_bytes(there_and_back: RoundTrip, value: bytes) -> None:
    assert await there_and_back(CONTENT, {"content": Base64.encode(value)}) == ({"content": value}, {"content": value})


@pytest.mark.conformance("Values", "String")
@FEW
@given(value=TEXT)
async def test_text(there_and_back: RoundTrip, value: str) -> None:
    await check_text(there_and_back, value)


@pytest.mark.conformance("Values", "Json")
@FEW
@given(value=JSON)
async def test_json(there_and_back: RoundTrip, value: Any) -> None:
    await check_json(there_and_back, value)


@pytest.mark.conformance("Values", "DateTime")
@FEW
@given(value=TIMES)
async def test_times(there_and_back: RoundTrip, value: datetime) -> None:
    await check_time(there_and_back, value)


@pytest.mark.conformance("Values", "Float")
@FEW
@given(value=FLOATS)
async def test_floats(there_and_back: RoundTrip, value: float) -> None:
    await check_float(there_and_back, value)


@pytest.mark.conformance("Values", "Int, BigInt")
@FEW
@given(big=BIG, small=INT)
async def test_integers(there_and_back: RoundTrip, big: int, small: int) -> None:
    await check_integers(there_and_back, big, small)


@pytest.mark.conformance("Values", "String[]")
@FEW
@given(value=st.lists(TEXT, max_size=5))
async def test_lists(there_and_back: RoundTrip, value: list[str]) -> None:
    await check_list(there_and_back, value)


@pytest.mark.conformance("Values", "Bytes")
@FEW
@given(value=st.binary(max_size=300))
async def test_bytes(there_and_back: RoundTrip, value: bytes) -> None:
    await check_bytes(there_and_back, value)


@pytest.mark.slow("conformance")
@pytest.mark.conformance("Values", "all types at random")
@MANY
@given(text=TEXT, value=JSON, when=TIMES, number=FLOATS, big=BIG, small=INT, items=st.lists(TEXT, max_size=5), raw=st.binary())
async def test_many_more(
    there_and_back: RoundTrip,
    text: str,
    value: Any,
    when: datetime,
    number: float,
    big: int,
    small: int,
    items: list[str],
    raw: bytes,
) -> None:
    await check_text(there_and_back, text)
    await check_json(there_and_back, value)
    await check_time(there_and_back, when)
    await check_float(there_and_back, number)
    await check_integers(there_and_back, big, small)
    await check_list(there_and_back, items)
    await check_bytes(there_and_back, raw)


@pytest.mark.conformance("Values", "DateTime")
@pytest.mark.parametrize(
    "value",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1582, 10, 10, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2000, 2, 29, 12, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
    ids=str,
)
async def test_times_at_the_edges(there_and_back: RoundTrip, value: datetime) -> None:
    await check_time(there_and_back, value)


@pytest.mark.conformance("Values", "Float")
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e22, 1e308, 5e-324, -1e-300, 2.0**53, 123456789012345678])
async def test_floats_at_the_edges(there_and_back: RoundTrip, value: float) -> None:
    await check_float(there_and_back, value)


@pytest.mark.conformance("Values", "Float: NaN, Infinity, -0.0")
async def test_floats_that_are_no_numbers(client: Any, sql: Any, there_and_back: RoundTrip, tag: str) -> None:
    """GraphQL has no NaN: the client sends a bare word, which no engine takes for a Float. The sign of zero is lost."""
    read, stored = await there_and_back(OBSERVATION, {"started_at": -0.0})
    assert [math.copysign(1, row["started_at"]) for row in (read, stored)] == [1, 1]
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(errors.FieldNotFoundError):
            await there_and_back(OBSERVATION, {"started_at": value})
    # Put there by others it does no harm.
    await client.litellm_autorouterbaselineobservation.create(
        data={"request_id": tag, "scope": "s", "started_at": 1.0, "revision": 0, "data": ""}
    )
    sql.execute("UPDATE \"LiteLLM_AutoRouterBaselineObservation\" SET started_at = 'NaN' WHERE request_id = %s", (tag,))
    with pytest.raises(errors.DataError):
        await client.litellm_autorouterbaselineobservation.find_unique(where={"request_id": tag})
    assert await client.litellm_autorouterbaselineobservation.count(where={"request_id": tag}) == 1


@pytest.mark.conformance("Values", "Int, BigInt: out of range")
async def test_integers_out_of_range(there_and_back: RoundTrip) -> None:
    for value in (2**31, -(2**31) - 1, 2**53 + 1, 2**63, 10**40, 10**400):
        with pytest.raises(errors.DataError):
            await there_and_back(FUNNEL, {"shed": value})
    for value in (2**63, -(2**63) - 1, 10**40, -(10**400)):
        with pytest.raises(errors.DataError):
            await there_and_back(OBSERVATION, {"revision": value})


@pytest.mark.conformance("Values", "String: NUL")
async def test_nul_is_refused_by_postgres(there_and_back: RoundTrip) -> None:
    """LiteLLM looks for the SQLSTATE, and tells such a row from a dead database: `is_prisma_data_error`."""
    from litellm.proxy.db.exception_handler import PrismaDBExceptionHandler as Handler

    for model, values, state in (
        (OBSERVATION, {"data": "a\x00b"}, "22021"),
        (RUN, {"input": Json({"a": "\x00"})}, "22P05"),
        (RUN, {"input": Json({"\x00": "a"})}, "22P05"),
        (PERMISSION, {"agents": ["\x00"]}, "22021"),
    ):
        with pytest.raises(errors.DataError) as caught:
            await there_and_back(model, values)
        assert Handler.is_prisma_data_error(caught.value)
        assert Handler.postgres_sqlstate(caught.value) == state
        assert not Handler.is_database_service_unavailable_error(caught.value)


@pytest.mark.conformance("Values", "10 MB in one value")
async def test_long_values(there_and_back: RoundTrip) -> None:
    text = ("x" * 1000 + '"\\\u2028é') * 10_000
    short = text[:1_000_000]
    for model, values in (
        (OBSERVATION, {"data": text}),
        (RUN, {"input": Json({"a": [short]})}),
        (PERMISSION, {"agents": [short]}),
    ):
        expected = {name: plain(models()[model].columns[name], value) for name, value in values.items()}
        read, stored = await there_and_back(model, values)
        assert read == expected  # one by one: pytest would print both
        assert stored == expected


@pytest.mark.conformance("Values", "Json: null, depth, large numbers")
async def test_json_at_the_edges(client: Any, there_and_back: RoundTrip, tag: str) -> None:
    """The engine's JSON goes 127 levels deep; deeper text, and Python's NaN, are refused, not the end of the engine."""
    deep: Any = "x"
    for _ in range(126):
        deep = [deep]
    for value in (
        {},
        [],
        "",
        0,
        -0.0,
        1.5,
        2**63 - 1,
        2**63,
        0.1 + 0.2,
        {"": {"": None}},
        {"$type": "Json", "value": "{}"},
        deep,
    ):
        await check_json(there_and_back, value)
    read, stored = await there_and_back(RUN, {"input": Json(10**30)})
    assert (read, stored) == ({"input": 1e30}, {"input": 10**30})
    for text in ("NaN", '{"a": Infinity}', "x", "", "1e999", '"\\ud800"', "[" * 200 + "]" * 200):
        with pytest.raises(errors.DataError) as caught:
            await there_and_back(RUN, {"input": text})
        assert caught.value.code == "P2009"
    with pytest.raises(errors.DataError):
        await there_and_back(RUN, {"input": Json(math.nan)})
    assert await client.litellm_workflowrun.count(where={"run_id": {"startswith": tag}}) == 13


@pytest.mark.conformance("Values", "null, absent, empty")
async def test_nothing_in_all_its_forms(client: Any, sql: Any, tag: str) -> None:
    """An absent Json column is SQL's NULL, `Json(None)` and a bare None are JSON's; an empty list is none of them."""
    table = client.litellm_workflowrun
    for name, given_ in (("absent", {}), ("json", {"input": Json(None)}), ("bare", {"input": None})):
        row = await table.create(data={"run_id": f"{tag}-{name}", "workflow_type": "t", **given_})
        assert row.input is None
    kinds = dict(
        sql.execute(
            "SELECT run_id, coalesce(jsonb_typeof(input), 'nothing') FROM \"LiteLLM_WorkflowRun\" WHERE run_id LIKE %s",
            (f"{tag}-%",),
        ).fetchall()
    )
    assert kinds == {f"{tag}-absent": "nothing", f"{tag}-json": "null", f"{tag}-bare": kinds[f"{tag}-bare"]}
    permission = await client.litellm_objectpermissiontable.create(data={"object_permission_id": tag, "agents": []})
    assert (permission.agents, permission.mcp_tool_search_enabled) == ([], None)
    listed = sql.execute(
        'SELECT agents FROM "LiteLLM_ObjectPermissionTable" WHERE object_permission_id = %s', (tag,)
    ).fetchone()
    assert listed == ([],)
    with pytest.raises(errors.MissingRequiredValueError):
        await client.litellm_objectpermissiontable.update(where={"object_permission_id": tag}, data={"agents": None})


@pytest.mark.conformance("Values", "enum")
async def test_enums(client: Any, sql: Any, tag: str) -> None:
    for value in ("ACTIVE", "INACTIVE"):
        job = await client.litellm_cronjob.create(
            data={"cronjob_id": f"{tag}{value}", "pod_id": "p", "ttl": datetime.now(UTC), "status": value}
        )
        assert job.status == value
        stored = sql.execute('SELECT status::text FROM "LiteLLM_CronJob" WHERE cronjob_id = %s', (f"{tag}{value}",)).fetchone()
        assert stored == (value,)
        assert await client.litellm_cronjob.count(where={"cronjob_id": {"startswith": tag}, "status": value}) == 1
    with pytest.raises(errors.FieldNotFoundError):
        await client.litellm_cronjob.find_first(where={"status": "active"})
