"""Raw queries: every type that Postgres can answer with, and every parameter that the client can send.

https://www.prisma.io/docs/orm/prisma-client/using-raw-sql/raw-queries#raw-query-type-mapping ; the client's side of it:
prisma/_raw_query.py. Times are ISO texts, decimals floats, bytes base64, JSON already read.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from prisma import Base64, Json, errors

ANSWERS: dict[str, Any] = {
    "1::smallint": 1,
    "2147483647::int": 2**31 - 1,
    "9223372036854775807::bigint": 2**63 - 1,
    "12::oid": 12,
    "0.1::real": 0.1,
    "0.30000000000000004::float8": 0.1 + 0.2,
    "1e300::float8": 1e300,
    "12345678901234567890.123::numeric": 12345678901234567890.123,
    "0.000000001::numeric": 1e-9,
    "'$1.50'::money": 1.5,
    "true": True,
    "'x'::char(3)": "x  ",
    "'ü\u2028'::varchar": "ü\u2028",
    "'a'::name": "a",
    "''": "",
    "'\\x00ff'::bytea": "AP8=",
    "'11111111-1111-4111-8111-111111111111'::uuid": "11111111-1111-4111-8111-111111111111",
    "'2024-01-02'::date": "2024-01-02",
    "'01:02:03.456'::time": "01:02:03.456",
    "'2024-01-02 03:04:05.678901'::timestamp": "2024-01-02T03:04:05.678901+00:00",
    "'2024-01-02 03:04:05.678901+02'::timestamptz": "2024-01-02T01:04:05.678901+00:00",
    "'1969-12-31 23:59:59.999'::timestamp": "1969-12-31T23:59:59.999+00:00",
    "'{\"a\": [1, null]}'::json": {"a": [1, None]},
    "'[null]'::jsonb": [None],
    "'null'::jsonb": None,
    "'\"x\"'::jsonb": "x",
    "'1 day'::interval": "1 day",
    "'127.0.0.1'::inet": "127.0.0.1",
    "B'101'": "101",
    "'(1,2)'::point": "(1,2)",
    "'[1,2)'::int4range": "[1,2)",
    "'a b'::tsvector": "'a' 'b'",
    "ROW(1, 'a')": "(1,a)",
    "NULL": None,
    "NULL::int": None,
    "'ACTIVE'::\"JobStatus\"": "ACTIVE",
    "ARRAY[1, NULL]": [1, None],
    "ARRAY[9007199254740993]": [2**53 + 1],
    "ARRAY[1.5]": [1.5],
    "ARRAY[0.1::float8]": [0.1],
    "ARRAY[true, false]": [True, False],
    "'{}'::text[]": [],
    "ARRAY['a\"b,c', 'NULL', NULL, '', 'ü{}']": ['a"b,c', "NULL", None, "", "ü{}"],
    "ARRAY['{\"a\": 1}'::jsonb, NULL]": [{"a": 1}, None],
    "ARRAY['\\x00'::bytea]": ["AA=="],
    "ARRAY['2024-01-02'::timestamp]": ["2024-01-02T00:00:00+00:00"],
    "ARRAY['2024-01-02'::date]": ["2024-01-02"],
    "ARRAY['11111111-1111-4111-8111-111111111111'::uuid]": ["11111111-1111-4111-8111-111111111111"],
}
WHEN = datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
PARAMETERS: list[tuple[str, Any, Any]] = [
    ("$1::text", "ü\u2028\"'\\", "ü\u2028\"'\\"),
    ("$1", "untyped", "untyped"),
    ("$1::text", 5, "5"),
    ("$1::text", None, None),
    ("$1::int", 5, 5),
    ("$1::bigint", 2**63 - 1, 2**63 - 1),
    ("$1::bigint", -(2**63), -(2**63)),
    ("$1 + 1", 5, 6),
    ("$1::float8", 0.1, 0.1),
    ("$1::float8", 5, 5.0),
    ("$1::numeric", "12345678901234567890.5", 12345678901234567890.5),
    ("$1::bool", True, True),
    ("$1::bool", None, None),
    ("$1::timestamptz", WHEN, "2024-01-02T01:04:05.678+00:00"),
    ("$1::timestamp", WHEN, "2024-01-02T01:04:05.678+00:00"),
    ("$1::timestamp", "2024-01-02 03:04:05.678901", "2024-01-02T03:04:05.678901+00:00"),
    ("$1::date", "2024-01-02", "2024-01-02"),
    ("$1::date", datetime(2024, 1, 2, tzinfo=UTC), "2024-01-02"),
    ("$1::uuid", "11111111-1111-4111-8111-111111111111", "11111111-1111-4111-8111-111111111111"),
    ("decode($1, 'base64')", Base64.encode(b"\x00\xff"), "AP8="),
    ("convert_from(decode($1, 'base64'), 'utf8')", Base64.encode(b"hi"), "hi"),
    ("$1::jsonb", Json({"a": [1, None, {"ü": "\u2028"}]}), {"a": [1, None, {"ü": "\u2028"}]}),
    ("$1::jsonb", '{"a": 1}', {"a": 1}),
    ("$1::jsonb", Json([1, 2]), [1, 2]),
    ("$1::jsonb", Json("x"), "x"),
    ("$1::jsonb", Json(None), None),
    ("$1::text[]", ["a", "b,c", 'd"e', "", None], ["a", "b,c", 'd"e', "", None]),
    ("$1::text[]", [], []),
    ("$1::int[]", [1, 2], [1, 2]),
    ("$1::float8[]", [0.5, 1], [0.5, 1.0]),
    ("$1::bool[]", [True, False], [True, False]),
    ("$1::bigint[]", [2**62], [2**62]),
    ("$1::timestamptz[]", [WHEN], ["2024-01-02T01:04:05.678+00:00"]),
    ("5 = ANY($1::int[])", [4, 5], True),
    ('$1::"JobStatus"', "ACTIVE", "ACTIVE"),
    ("$1::inet", "10.0.0.0/8", "10.0.0.0/8"),
    ("$1::interval", "90 minutes", "01:30:00"),
]


@pytest.mark.conformance("Raw queries", "types of the answer")
async def test_answers(client: Any) -> None:
    for expression, expected in ANSWERS.items():
        assert await client.query_raw(f"SELECT {expression} AS a") == [{"a": expected}], expression


@pytest.mark.conformance("Raw queries", "types of parameters")
async def test_parameters(client: Any) -> None:
    for expression, value, expected in PARAMETERS:
        assert await client.query_raw(f"SELECT {expression} AS a", value) == [{"a": expected}], (expression, value)


@pytest.mark.conformance("Raw queries", "rows, counts, no rows")
async def test_rows_and_counts(client: Any, tag: str) -> None:
    table = f'"raw_{tag}"'
    assert await client.execute_raw(f"CREATE TABLE {table} (a int, b text)") == 0
    assert await client.execute_raw(f"INSERT INTO {table} VALUES (1, 'x'), (2, NULL)") == 2  # noqa: S608
    assert await client.query_raw(f"INSERT INTO {table} VALUES (3, 'z') RETURNING a, b") == [{"a": 3, "b": "z"}]  # noqa: S608
    assert await client.query_raw(f"INSERT INTO {table} VALUES (4, NULL)") == []  # noqa: S608
    assert await client.execute_raw(f"UPDATE {table} SET b = $1 WHERE a > $2", "y", 1) == 3  # noqa: S608
    assert await client.query_first(f"SELECT b FROM {table} WHERE a = $1", 2) == {"b": "y"}  # noqa: S608
    assert await client.query_first(f"SELECT b FROM {table} WHERE false") is None  # noqa: S608
    assert await client.query_raw(f"SELECT FROM {table} WHERE a = 1") == [{}]
    assert await client.query_raw("SELECT 1 AS a, 2 AS a") == [{"a": 2}]
    assert await client.query_raw('SELECT 1 AS "ü\u2028\\"') == [{"ü\u2028\\": 1}]
    assert await client.execute_raw(f"DELETE FROM {table}") == 4  # noqa: S608
    assert await client.execute_raw(f"DROP TABLE {table}") == 0


@pytest.mark.conformance("Raw queries", "many parameters")
async def test_as_many_parameters_as_postgres_takes(client: Any) -> None:
    holders = ", ".join(f"${number}::int" for number in range(1, 32768))
    rows = await client.query_raw(f"SELECT array_length(ARRAY[{holders}], 1) AS a", *range(32767))
    assert rows == [{"a": 32767}]


@pytest.mark.conformance("Raw queries", "arrays of enums, more than one dimension")
async def test_arrays_that_are_not_taken_apart(client: Any) -> None:
    """Types that a database makes itself have no fixed number; their arrays stay text. Two dimensions are refused."""
    assert await client.query_raw("SELECT ARRAY['ACTIVE'::\"JobStatus\"] AS a") in ([{"a": "{ACTIVE}"}], [{"a": ["ACTIVE"]}])
    with pytest.raises(errors.RawQueryError):
        await client.query_raw("SELECT ARRAY[ARRAY[1], ARRAY[2]] AS a")


@pytest.mark.conformance("Raw queries", "times that Python has no value for")
@pytest.mark.parametrize("value", ["infinity'::timestamp", "10000-01-01'::timestamp", "0044-03-15 BC'::date", "24:00'::time"])
async def test_times_beyond_python(client: Any, value: str) -> None:
    """Refused (P2010), and the next query is answered."""
    with pytest.raises(errors.RawQueryError):
        await client.query_raw(f"SELECT '{value} AS a")
    assert await client.query_raw(f"SELECT ('{value})::text AS a") != []


@pytest.mark.conformance("Raw queries", "NaN and Infinity")
async def test_numbers_that_json_has_not(client: Any) -> None:
    """In an answer they are null; as a parameter Python writes them bare, which is no JSON (P2009); as text they arrive."""
    assert await client.query_raw("SELECT 'NaN'::float8 AS a, '-Infinity'::float8 AS b") == [{"a": None, "b": None}]
    with pytest.raises(errors.FieldNotFoundError):
        await client.query_raw("SELECT $1::float8 AS a", float("nan"))
    assert await client.query_raw("SELECT $1::float8 = 'NaN' AS a", "NaN") == [{"a": True}]
