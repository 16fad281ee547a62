"""Filters, order, pages, distinct and groups, on six rows whose answers are known.

https://www.prisma.io/docs/orm/reference/prisma-client-reference#filter-conditions-and-operators for the conditions,
https://www.prisma.io/docs/orm/prisma-client/special-fields-and-types/working-with-json-fields for those on JSON,
https://www.prisma.io/docs/orm/prisma-client/queries/pagination and .../aggregation-grouping-summarizing for the rest.
"""

from __future__ import annotations

from typing import Any

import pytest
from prisma import Json, errors

WHO = {"created_by": "test", "updated_by": "test"}
MANY = [f"E{number}@x.Y" for number in range(40_000)]
SCALARS: list[tuple[str, dict[str, Any], str]] = [
    ("equals", {"user_email": "E1@x.Y"}, "1"),
    ("equals", {"spend": {"equals": 3.0}}, "2"),
    ("not", {"user_role": {"not": "a"}}, "135"),
    ("not", {"spend": {"not": {"gt": 3}}}, "012"),
    ("in", {"user_email": {"in": MANY[:1000]}}, "012345"),
    ("in", {"max_budget": {"in": [1.0, 2.0]}}, "12"),
    ("in", {"user_role": {"in": []}}, ""),
    ("in", {"user_email": {"in": MANY}}, "012345"),
    ("notIn", {"user_role": {"not_in": ["a"]}}, "135"),
    ("lt, lte, gt, gte", {"spend": {"gt": 1.5, "lte": 6}}, "234"),
    ("lt, lte, gt, gte", {"tpm_limit": {"gte": 2**60 + 4}}, "45"),
    ("lt, lte, gt, gte", {"user_email": {"lt": "E2"}}, "01"),
    ("contains, startsWith, endsWith", {"user_email": {"contains": "3@"}}, "3"),
    ("contains, startsWith, endsWith", {"user_email": {"startswith": "E1"}}, "1"),
    ("contains, startsWith, endsWith", {"user_email": {"endswith": ".Y"}}, "012345"),
    ("contains, startsWith, endsWith", {"user_email": {"contains": "_@%Y"}}, "012345"),  # LIKE's own signs, as documented
    ("mode: insensitive", {"user_email": {"equals": "e1@X.y", "mode": "insensitive"}}, "1"),
    ("mode: insensitive", {"user_email": {"contains": "e4@X", "mode": "insensitive"}}, "4"),
    ("mode: insensitive", {"user_email": {"in": ["e4@x.y"], "mode": "insensitive"}}, "4"),
    ("null", {"max_budget": None}, "5"),
    ("null", {"max_budget": {"equals": None}}, "5"),
    ("null", {"max_budget": {"not": None}}, "01234"),
    ("null", {"NOT": [{"max_budget": None}]}, "01234"),
    ("AND, OR, NOT", {"OR": [{"spend": 0}, {"spend": {"gte": 7.5}}]}, "05"),
    ("AND, OR, NOT", {"AND": []}, "012345"),
    ("AND, OR, NOT", {"NOT": [{"OR": [{"AND": [{"user_role": "a"}, {"spend": 0}]}, {"user_role": "b"}]}]}, "24"),
]
LISTS: list[tuple[dict[str, Any], str]] = [
    ({"has": "m1"}, "1"),
    ({"has_every": ["m", "m2"]}, "2"),
    ({"has_every": []}, "012345"),
    ({"has_some": ["m2", "m3"]}, "23"),
    ({"is_empty": True}, "0"),
    ({"is_empty": False}, "12345"),
    ({"equals": ["m", "m3"]}, "3"),
    ({"equals": []}, "0"),
]
JSONS: list[tuple[dict[str, Any], str]] = [
    ({"path": ["a", "b"], "equals": Json(3)}, "3"),
    ({"path": ["a", "b"], "not": Json(3)}, "01245"),
    ({"path": ["a", "b"], "gt": Json(3)}, "45"),
    ({"path": ["a", "b"], "lte": Json(1)}, "01"),
    ({"path": ["l", "1"], "equals": Json(2)}, "2"),
    ({"path": ["l"], "array_contains": Json([2])}, "2"),
    ({"path": ["l"], "array_contains": Json(["s", 4])}, "4"),
    ({"path": ["l"], "array_starts_with": Json(1)}, "012345"),
    ({"path": ["l"], "array_ends_with": Json("s")}, "012345"),
    ({"path": ["s"], "string_contains": "tr3"}, "3"),
    ({"path": ["s"], "string_starts_with": "Str"}, "012345"),
    ({"path": ["s"], "string_ends_with": "5"}, "5"),
    ({"path": ["n"], "equals": Json(None)}, "012345"),
    ({"path": ["none"], "equals": Json(None)}, ""),
    ({"path": ["big"], "equals": Json(10**17 + 3)}, "3"),
    ({"equals": Json({"a": 1})}, ""),
    ({"not": Json({"a": 1})}, "012345"),
]


@pytest.fixture
async def users(client: Any, tag: str) -> Any:
    """Six users, `tag-0` to `tag-5`."""
    for number in range(6):
        await client.litellm_usertable.create(
            data={
                "user_id": f"{tag}-{number}",
                "user_email": f"E{number}@x.Y",
                "user_role": "ab"[number % 2],
                "spend": number * 1.5,
                "max_budget": None if number == 5 else float(number),
                "models": [] if number == 0 else ["m", f"m{number}"],
                "tpm_limit": 2**60 + number,
                "metadata": Json(
                    {"a": {"b": number}, "l": [1, number, "s"], "s": f"Str{number}", "n": None, "big": 10**17 + number}
                ),
            }
        )
    return client.litellm_usertable


def which(rows: list[Any]) -> str:
    return "".join(row.user_id[-1] for row in rows)


@pytest.fixture
def mine(tag: str) -> dict[str, Any]:
    return {"user_id": {"startswith": f"{tag}-"}}


async def _check(users: Any, mine: dict[str, Any], filters: dict[str, Any], expected: str) -> None:
    found = await users.find_many(where={"AND": [mine, filters]}, order={"user_id": "asc"})
    assert which(found) == expected, str(filters)[:200]
    assert await users.count(where={"AND": [mine, filters]}) == len(expected)


@pytest.mark.conformance("Filters", "on scalars: equals, not, in, notIn, lt, lte, gt, gte, null")
@pytest.mark.conformance("Filters", "contains, startsWith, endsWith, mode: insensitive")
@pytest.mark.conformance("Filters", "AND, OR, NOT")
async def test_scalars(users: Any, mine: dict[str, Any]) -> None:
    for _, filters, expected in SCALARS:
        await _check(users, mine, filters, expected)
    assert await users.find_many(where={**mine, "OR": []}) == []
    assert len(await users.find_many(where={**mine, "NOT": []})) == 6


@pytest.mark.conformance("Filters", "on lists: has, hasEvery, hasSome, isEmpty, equals")
async def test_lists(users: Any, mine: dict[str, Any]) -> None:
    for filters, expected in LISTS:
        await _check(users, mine, {"models": filters}, expected)


@pytest.mark.conformance("Filters", "on Json: path, equals, not, gt, array_*, string_*")
async def test_json(users: Any, mine: dict[str, Any]) -> None:
    for filters, expected in JSONS:
        await _check(users, mine, {"metadata": filters}, expected)


@pytest.mark.conformance("Filters", "more values than Postgres has parameters")
async def test_more_values_than_parameters(users: Any, mine: dict[str, Any]) -> None:
    """Postgres takes 32767 parameters; Prisma splits `in` into several queries, and refuses what cannot be split (P2029)."""
    await _check(users, mine, {"user_email": {"in": MANY}}, "012345")
    data = [{"request_id": f"{mine['user_id']['startswith']}{n}", "guardrail_id": "g"} for n in range(12_000)]
    spans = [{**row, "start_time": "2026-05-01T00:00:00Z"} for row in data]
    from_schema = await users._client.litellm_spendlogguardrailindex.create_many(data=spans)
    assert from_schema == len(spans)
    with pytest.raises(errors.DataError) as caught:
        await users.find_many(where={"user_email": {"not_in": MANY}})
    assert caught.value.code == "P2029"


@pytest.mark.conformance("Pages", "take, skip, cursor, negative take")
async def test_pages(users: Any, mine: dict[str, Any], tag: str) -> None:
    async def page(**arguments: Any) -> str:
        return which(await users.find_many(where=mine, order={"user_id": "asc"}, **arguments))

    cursor = {"user_id": f"{tag}-3"}
    assert await page(take=2) == "01"
    assert await page(take=-2) == "45"
    assert await page(take=0) == ""
    assert await page(skip=4) == "45"
    assert await page(skip=1, take=2) == "12"
    assert await page(cursor=cursor) == "345"
    assert await page(cursor=cursor, skip=1, take=1) == "4"
    assert await page(cursor=cursor, take=-2) == "23"
    assert await page(cursor={"user_id": "nobody"}) == ""
    assert await users.count(where=mine, take=3, skip=1) == 3
    with pytest.raises(errors.DataError):
        await page(skip=-1)


@pytest.mark.conformance("Pages", "order by several, nulls first or last; distinct")
async def test_order_and_distinct(users: Any, mine: dict[str, Any]) -> None:
    async def ordered(order: Any, **arguments: Any) -> str:
        return which(await users.find_many(where=mine, order=order, **arguments))

    assert await ordered([{"user_role": "desc"}, {"spend": "desc"}]) == "531420"
    assert await ordered({"max_budget": {"sort": "desc", "nulls": "last"}}) == "432105"
    assert await ordered({"max_budget": {"sort": "asc", "nulls": "first"}}) == "501234"
    assert await ordered({"user_id": "asc"}, distinct=["user_role"]) == "01"
    assert await ordered({"user_id": "desc"}, distinct=["user_role"], take=1) == "5"
    with pytest.raises(errors.FieldNotFoundError):
        await ordered({"spend": "sideways"})


@pytest.mark.conformance("Groups", "having, order, take, skip, _count, sum, avg, min, max")
async def test_groups(users: Any, mine: dict[str, Any]) -> None:
    async def groups(**arguments: Any) -> list[dict[str, Any]]:
        return list(await users.group_by(**{"by": ["user_role"], "where": mine, **arguments}))

    by_role = {"user_role": "asc"}
    assert await groups(sum={"spend": True, "tpm_limit": True}, avg={"spend": True}, count=True, order=by_role) == [
        {"user_role": "a", "_sum": {"spend": 9.0, "tpm_limit": 3 * 2**60 + 6}, "_avg": {"spend": 3.0}, "_count": {"_all": 3}},
        {"user_role": "b", "_sum": {"spend": 13.5, "tpm_limit": 3 * 2**60 + 9}, "_avg": {"spend": 4.5}, "_count": {"_all": 3}},
    ]
    assert await groups(count={"_all": True, "max_budget": True}, having={"spend": {"_avg": {"gt": 4}}}, order=by_role) == [
        {"user_role": "b", "_count": {"_all": 3, "max_budget": 2}}
    ]
    either = {"OR": [{"user_role": {"equals": "a"}}, {"tpm_limit": {"_sum": {"equals": 3 * 2**60 + 9}}}]}
    assert await groups(having=either, order=by_role) == [{"user_role": "a"}, {"user_role": "b"}]
    assert await groups(having={"spend": {"_max": {"lt": 7}}}, min={"user_id": True}, max={"spend": True}) == [
        {"user_role": "a", "_min": {"user_id": mine["user_id"]["startswith"] + "0"}, "_max": {"spend": 6.0}}
    ]
    pair = {"by": ["user_role", "max_budget"], "order": [{"user_role": "asc"}, {"max_budget": "desc"}]}
    assert await groups(**pair, take=2, skip=1) == [
        {"user_role": "a", "max_budget": 2.0},
        {"user_role": "a", "max_budget": 0.0},
    ]
    assert await groups(order={"_sum": {"spend": "desc"}}, take=1) == [{"user_role": "b"}]
    assert await groups(where={"user_id": "nobody"}, count=True) == []
    lists = await groups(by=["models"], count=True, order={"models": "asc"})
    assert lists[0] == {"models": [], "_count": {"_all": 1}}
    with pytest.raises(errors.FieldNotFoundError):
        await groups(by=["nothing"])
    with pytest.raises(errors.FieldNotFoundError):
        await groups(sum={"user_role": True})


@pytest.mark.conformance("Operations", "count")
async def test_counts(users: Any, mine: dict[str, Any], tag: str) -> None:
    assert await users.count(where=mine, select={"_all": True, "max_budget": True}) == {"_all": 6, "max_budget": 5}
    assert await users.count(where=mine, cursor={"user_id": f"{tag}-4"}) == 2


@pytest.mark.conformance("Operations", "update")
async def test_steps(users: Any, mine: dict[str, Any], tag: str) -> None:
    """increment, decrement, multiply, divide, set, push; by null and by zero."""
    where = {"user_id": f"{tag}-1"}

    async def after(**data: Any) -> Any:
        return await users.update(where=where, data=data)

    assert (await after(spend={"increment": 0.25})).spend == 1.75
    assert (await after(spend={"multiply": 2})).spend == 3.5
    assert (await after(spend={"divide": 2})).spend == 1.75
    assert (await after(tpm_limit={"decrement": 2**60})).tpm_limit == 1
    assert (await after(max_parallel_requests={"increment": 1})).max_parallel_requests is None
    assert (await after(spend={"set": 5})).spend == 5
    assert (await after(max_budget={"set": None})).max_budget is None
    assert (await after(models={"push": ["x", "y"]})).models == ["m", "m1", "x", "y"]
    assert (await after(models={"push": "z"})).models[-1] == "z"
    assert (await after(models={"set": []})).models == []
    assert (await after()).models == []
    for data in ({"spend": {"divide": 0}}, {"tpm_limit": {"multiply": 2**63 - 1}, "spend": {"increment": 1}}):
        if "tpm_limit" in data:
            await after(tpm_limit=2**40)
        with pytest.raises(errors.DataError):
            await after(**data)
    assert (await users.find_unique(where=where)).spend == 5
