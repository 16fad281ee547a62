"""Every operation of the client on every model of LiteLLM's schema, each column held against what psycopg reads.

The operations are those of https://www.prisma.io/docs/orm/reference/prisma-client-reference#model-queries, as far as
prisma-client-py offers them: https://prisma-client-py.readthedocs.io/en/stable/reference/operations/ .
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prisma import errors
from psycopg import sql as compose
from psycopg.rows import dict_row

from engine.conformance_schema import NUMBERS, Column, Model, Rows, models, plain

Check = Callable[[Model], Awaitable[None]]


async def every_model(check: Check) -> None:
    """Run `check` on each model, a few at a time; all that fail are named together."""
    gate = asyncio.Semaphore(4)

    async def one(model: Model) -> None:
        async with gate:
            await check(model)

    results = await asyncio.gather(*(one(model) for model in models().values()), return_exceptions=True)
    failed = [(name, error) for name, error in zip(models(), results, strict=True) if error is not None]
    assert not failed, "\n".join(f"{name}: {type(error).__name__}: {str(error)[:600]}" for name, error in failed)


def in_table(sql: Any, model: Model, where: dict[str, Any]) -> dict[str, Any] | None:
    """The row that psycopg reads, by the client's names; None when there is none."""
    condition = compose.SQL(" AND ").join(
        compose.SQL("{} = {}").format(compose.Identifier(model.columns[name].column), compose.Placeholder(name))
        for name in where
    )
    query = compose.SQL("SELECT * FROM {} WHERE {}").format(compose.Identifier(model.table), condition)
    with sql.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, where).fetchall()
    assert len(rows) <= 1
    return {column.name: plain(column, rows[0][column.column]) for column in model.columns.values()} if rows else None


def read(model: Model, row: Any) -> dict[str, Any]:
    """A row of the client in comparable form."""
    return {column.name: plain(column, getattr(row, column.name)) for column in model.columns.values()}


def given(model: Model, row: dict[str, Any]) -> dict[str, Any]:
    """What was asked to be stored, in comparable form."""
    return {name: plain(model.columns[name], value) for name, value in row.items()}


def key_of(model: Model, row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) if not isinstance(row, dict) else row[name] for name in model.keys[0]}


async def made(client: Any, model: Model, tag: str) -> tuple[Rows, dict[str, Any], Any]:
    """A row with every column: the maker, what was given, what `create` answered."""
    rows = Rows(f"{tag}{model.name[8:]}")
    row = await rows.whole(client, model)
    return rows, row, await getattr(client, model.accessor).create(data=row)


@pytest.mark.conformance("Operations", "create")
async def test_create_with_every_column(client: Any, sql: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        _, row, created = await made(client, model, tag)
        stored = in_table(sql, model, key_of(model, created))
        assert read(model, created) == stored
        assert given(model, row) == {name: (stored or {})[name] for name in row}
        assert set(row) == set(model.columns)

    await every_model(check)


@pytest.mark.conformance("Operations", "create")
@pytest.mark.conformance("Values", "defaults")
async def test_create_with_required_columns_only(client: Any, sql: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        rows = Rows(f"{tag}{model.name[8:]}")
        row = await rows.whole(client, model, all_columns=False)
        created = await getattr(client, model.accessor).create(data=row)
        stored = in_table(sql, model, key_of(model, created))
        assert stored is not None
        assert read(model, created) == stored
        for column in model.columns.values():
            if column.name in row:
                continue
            value = stored[column.name]
            match column.default:
                case None:
                    assert value is None or value == [], column.name
                case "[]" | "{}" if column.list:
                    assert value == [], column.name
                case '"{}"' | '"[]"':
                    text = column.default.strip('"')
                    assert value == (json.loads(text) if column.type == "Json" else text), column.name
                case "0" | "0.0" | "1" | "-1":
                    assert value == float(column.default), column.name
                case _:
                    assert value is not None, column.name

    await every_model(check)


@pytest.mark.conformance("Operations", "find_unique")
async def test_find_unique_by_every_key(client: Any, tag: str) -> None:
    """By id, unique columns and compound keys: `where` has one entry for a whole key."""

    async def check(model: Model) -> None:
        _, row, created = await made(client, model, tag)
        table = getattr(client, model.accessor)
        for key in model.keys:
            assert await table.find_unique(where=model.where(row, key)) == created, key
            assert await table.find_unique_or_raise(where=model.where(row, key)) == created, key
            name = next((part for part in key if model.columns[part].type == "String"), None)
            if name is not None:
                other = model.where({**row, name: "nobody"}, key)
                assert await table.find_unique(where=other) is None
                with pytest.raises(errors.RecordNotFoundError):
                    await table.find_unique_or_raise(where=other)

    await every_model(check)


def equal_to(column: Column, value: Any) -> dict[str, Any] | Any:
    """The filter that finds a value in a column of its type."""
    return {"equals": value} if column.list or column.type == "Json" else value


@pytest.mark.conformance("Operations", "find_first")
@pytest.mark.conformance("Filters", "equals on every column")
async def test_find_first_by_every_column(client: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        _, row, created = await made(client, model, tag)
        table = getattr(client, model.accessor)
        mine = key_of(model, created)
        for column in model.columns.values():
            if column.type == "Bytes":
                found = await table.find_first(where={**mine, column.name: {"equals": row[column.name]}})
            else:
                found = await table.find_first(where={"AND": [mine, {column.name: equal_to(column, row[column.name])}]})
            assert found == created, column.name
        assert await table.find_first_or_raise(where=mine) == created
        nobody = {"AND": [mine, {"NOT": [mine]}]}
        assert await table.find_first(where=nobody) is None
        with pytest.raises(errors.RecordNotFoundError):
            await table.find_first_or_raise(where=nobody)

    await every_model(check)


@pytest.mark.conformance("Operations", "find_many")
@pytest.mark.conformance("Filters", "order by every column")
async def test_find_many_ordered_by_every_column(client: Any, sql: Any, tag: str) -> None:
    async def fill(model: Model) -> None:
        rows, _, _ = await made(client, model, tag)
        await getattr(client, model.accessor).create(data=await rows.whole(client, model))

    async def check(model: Model) -> None:
        table = getattr(client, model.accessor)
        assert len(await table.find_many(take=2)) == 2
        for column in model.columns.values():
            found = await table.find_many(order={column.name: "desc"}, take=3)
            order = compose.SQL("SELECT {0} FROM {1} ORDER BY {0} DESC LIMIT 3").format(
                compose.Identifier(column.column), compose.Identifier(model.table)
            )
            assert [plain(column, getattr(one, column.name)) for one in found] == [
                plain(column, value) for (value,) in sql.execute(order).fetchall()
            ], column.name

    await every_model(fill)  # all of them first: rows also make the rows that they point to
    await every_model(check)
    client.answers.clear()  # nothing to compare: which of equal rows come first is up to Postgres


@pytest.mark.conformance("Operations", "create_many")
async def test_create_many_and_skip_duplicates(client: Any, sql: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        rows = Rows(f"{tag}{model.name[8:]}")
        data = [await rows.whole(client, model) for _ in range(3)]
        table = getattr(client, model.accessor)
        assert await table.create_many(data=data[:2]) == 2
        for row in data[:2]:
            assert in_table(sql, model, key_of(model, row)) == given(model, row)
        assert await table.create_many(data=data, skip_duplicates=True) == 1
        assert await table.create_many(data=data, skip_duplicates=True) == 0
        with pytest.raises(errors.UniqueViolationError):
            await table.create_many(data=data)

    await every_model(check)


def changed(model: Model, rows: Rows, row: dict[str, Any]) -> dict[str, Any]:
    """Other values for every column that no key and no relation needs."""
    kept = {name for key in model.keys for name in key} | {name for relation in model.parents() for name in relation.fields}
    return {
        column.name: rows.value(column, 1)
        for column in model.columns.values()
        if column.name in row and column.name not in kept
    }


@pytest.mark.conformance("Operations", "update")
async def test_update_of_every_column(client: Any, sql: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        rows, row, created = await made(client, model, tag)
        table = getattr(client, model.accessor)
        new = changed(model, rows, row)
        for key in model.keys:
            updated = await table.update(where=model.where(row, key), data=new)
            stored = in_table(sql, model, key_of(model, created))
            assert read(model, updated) == stored == {**given(model, row), **given(model, new)}, key
        numbers = [name for name in new if model.columns[name].type in NUMBERS]
        stepped = await table.update(where=model.where(row), data={name: {"increment": 2} for name in numbers})
        assert {name: getattr(stepped, name) for name in numbers} == {name: new[name] + 2 for name in numbers}
        nulls = {name: None for name in new if model.columns[name].optional and model.columns[name].type != "Json"}
        emptied = await table.update(where=model.where(row), data=nulls)
        assert {name: getattr(emptied, name) for name in nulls} == nulls
        assert (
            await table.update(where=dict.fromkeys(model.keys[0], "nobody"), data={}) is None if _one_text_key(model) else True
        )

    await every_model(check)


def _one_text_key(model: Model) -> bool:
    return len(model.keys[0]) == 1 and model.columns[model.keys[0][0]].type == "String"


@pytest.mark.conformance("Operations", "update_many")
async def test_update_many(client: Any, sql: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        rows, row, created = await made(client, model, tag)
        table = getattr(client, model.accessor)
        new = changed(model, rows, row)
        mine = key_of(model, created)
        if new:
            assert await table.update_many(where=mine, data=new) == 1
        assert in_table(sql, model, mine) == {**given(model, row), **given(model, new)}
        assert await table.update_many(where={"AND": [mine, {"NOT": [mine]}]}, data=new) == 0

    await every_model(check)


@pytest.mark.conformance("Operations", "upsert")
async def test_upsert(client: Any, sql: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        rows = Rows(f"{tag}{model.name[8:]}")
        row = await rows.whole(client, model)
        new = changed(model, rows, row)
        table = getattr(client, model.accessor)
        for expected in (row, {**row, **new}, {**row, **new}):
            answered = await table.upsert(where=model.where(row), data={"create": row, "update": new})
            assert read(model, answered) == in_table(sql, model, key_of(model, row)) == given(model, expected)

    await every_model(check)


@pytest.mark.conformance("Operations", "delete")
async def test_delete(client: Any, sql: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        _, row, created = await made(client, model, tag)
        table = getattr(client, model.accessor)
        assert await table.delete(where=model.where(row)) == created
        assert in_table(sql, model, key_of(model, row)) is None
        assert await table.delete(where=model.where(row)) is None

    await every_model(check)


@pytest.mark.conformance("Operations", "delete_many")
@pytest.mark.conformance("Operations", "count")
async def test_count_and_delete_many(client: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        rows, _, created = await made(client, model, tag)
        other = await getattr(client, model.accessor).create(data=await rows.whole(client, model, all_columns=False))
        table = getattr(client, model.accessor)
        mine = {"OR": [key_of(model, created), key_of(model, other)]}
        assert await table.count(where=mine) == 2
        assert await table.count(where=mine, take=1) == 1
        counted = await table.count(where=mine, select={"_all": True} | dict.fromkeys(model.columns, True))
        assert counted["_all"] == 2
        for column in model.columns.values():
            # A list that was never given is NULL where the table has no default for it.
            values = [plain(column, getattr(one, column.name)) for one in (created, other)]
            assert counted[column.name] == 2 - values.count(None) or (column.list and counted[column.name] == 1), column.name
        assert await table.delete_many(where=mine) == 2
        assert await table.count(where=mine) == 0

    await every_model(check)


@pytest.mark.conformance("Operations", "group_by")
async def test_group_by_with_every_aggregate(client: Any, tag: str) -> None:
    async def check(model: Model) -> None:
        rows, first, created = await made(client, model, tag)
        table = getattr(client, model.accessor)
        second = await rows.whole(client, model)
        other = await table.create(data=second)
        numbers = [name for name in model.columns if model.columns[name].type in NUMBERS]
        plainly = [
            name
            for name, column in model.columns.items()
            if not column.list and column.type not in {"Json", "Bytes", "Boolean"}
        ]
        by = model.keys[0][0]
        groups = await table.group_by(
            by=[by],
            where={"OR": [key_of(model, created), key_of(model, other)]},
            count=True,
            order={by: "asc"},
            **({name: dict.fromkeys(numbers, True) for name in ("sum", "avg")} if numbers else {}),
            **{name: dict.fromkeys(plainly, True) for name in ("min", "max")},
        )
        assert [group[by] for group in groups] == sorted({first[by], second[by]})
        for group in groups:
            members = [row for row in (first, second) if row[by] == group[by]]
            assert group["_count"]["_all"] == len(members)
            for name in numbers:
                values = [row[name] for row in members]
                assert group["_sum"][name] == sum(values), name
                assert group["_avg"][name] == pytest.approx(sum(values) / len(values), rel=1e-12), name
                assert (group["_min"][name], group["_max"][name]) == (min(values), max(values)), name

    await every_model(check)


@pytest.mark.conformance("Operations", "query_raw, query_first, execute_raw")
async def test_raw_rows_become_models(client: Any, sql: Any, tag: str) -> None:
    """`query_raw` with a model reads every column's type back from a raw row."""

    async def check(model: Model) -> None:
        _, row, created = await made(client, model, tag)
        key = [(model.columns[name], row[name]) for name in model.keys[0]]
        where = " AND ".join(f'"{column.column}" = ${number}' for number, (column, _) in enumerate(key, 1))
        renamed = ", ".join(f'"{column.column}" AS "{column.name}"' for column in model.columns.values())
        target, values = f'"{model.table}"', [value for _, value in key]
        query = f"SELECT {renamed} FROM {target} WHERE {where}"  # noqa: S608 - names of the schema
        table = getattr(client, model.accessor)
        for (found,) in (await table.query_raw(query, *values), [await table.query_first(query, *values)]):
            assert read(model, found) == in_table(sql, model, key_of(model, created))
        assert await client.execute_raw(f'UPDATE {target} SET "{key[0][0].column}" = $1 WHERE {where}', *values) == 1  # noqa: S608 - names of the schema
        assert await client.execute_raw(f"DELETE FROM {target} WHERE {where}", *values) == 1  # noqa: S608 - names of the schema
        assert await client.query_first(query, *values) is None

    await every_model(check)
