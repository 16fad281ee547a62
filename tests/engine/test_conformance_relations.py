"""Nested writes, `include` and relation filters on every relation of LiteLLM's schema, from both of its sides.

What the engine offers: https://www.prisma.io/docs/orm/reference/prisma-client-reference#nested-queries and
https://www.prisma.io/docs/orm/reference/prisma-client-reference#relation-filters . prisma-client-py types only some of it, but
passes all of it on, and so does this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from prisma import errors

from engine.conformance_schema import Model, Relation, Rows, models


@dataclass
class Pair:
    """A relation for one test: the model that holds the columns, the one pointed to, and what writes rows of both."""

    client: Any
    rows: Rows
    child: Model
    relation: Relation
    parent: Model

    @property
    def back(self) -> Relation:
        return self.child.other_side(self.relation)

    @property
    def optional(self) -> bool:
        """Whether the child can be without a parent."""
        return all(self.child.columns[name].optional for name in self.relation.fields)

    def table(self, model: Model) -> Any:
        return getattr(self.client, model.accessor)

    async def new_child(self) -> dict[str, Any]:
        """Data of a child as a nested write wants it: other parents by `connect`, none for this relation."""
        data = self.rows.scalars(self.child)
        for other in self.child.parents():
            needed = any(self.child.columns[name].required for name in other.fields)
            if other.name != self.relation.name and needed:
                parent = models()[other.model]
                made = await self.table(parent).create(data=await self.rows.whole(self.client, parent, all_columns=False))
                data[other.name] = {"connect": parent.where(made.model_dump())}
        return data

    async def new_parent(self) -> dict[str, Any]:
        """Data of a parent with what it needs itself."""
        data = self.rows.scalars(self.parent)
        for other in self.parent.parents():
            if any(self.parent.columns[name].required for name in other.fields):
                above = models()[other.model]
                made = await self.table(above).create(data=await self.rows.whole(self.client, above, all_columns=False))
                data[other.name] = {"connect": above.where(made.model_dump())}
        return data

    async def parent_row(self) -> Any:
        return await self.table(self.parent).create(data=await self.new_parent())

    async def children_of(self, parent: Any) -> list[Any]:
        """The parent's children now, in one order."""
        found = await self.table(self.parent).find_unique(
            where=self.parent.where(parent.model_dump()), include={self.back.name: True}
        )
        children = getattr(found, self.back.name)
        if not self.back.list:
            return [] if children is None else [children]
        return sorted(children, key=lambda row: str(self.key(row)))

    def key(self, row: Any) -> dict[str, Any]:
        return self.child.where(row.model_dump())

    def points_to(self, child: Any, parent: Any) -> bool:
        return [getattr(child, name) for name in self.relation.fields] == [
            getattr(parent, name) for name in self.relation.references
        ]


PAIRS = [(model, relation) for model in models().values() for relation in model.parents()]


async def every_relation(client: Any, tag: str, check: Callable[[Pair], Awaitable[None]]) -> None:
    """Run `check` on each relation, a few at a time; all that fail are named together."""
    gate = asyncio.Semaphore(4)

    async def one(child: Model, relation: Relation) -> None:
        async with gate:
            await check(Pair(client, Rows(f"{tag}{child.name[8:]}.{relation.name}"), child, relation, models()[relation.model]))

    results = await asyncio.gather(*(one(*pair) for pair in PAIRS), return_exceptions=True)
    failed = [(pair, error) for pair, error in zip(PAIRS, results, strict=True) if error is not None]
    assert not failed, "\n".join(
        f"{child.name}.{relation.name}: {type(error).__name__}: {str(error)[:500]}" for (child, relation), error in failed
    )


@pytest.mark.conformance("Nested writes", "create")
@pytest.mark.conformance("Reading relations", "include")
async def test_create_from_the_child_and_from_the_parent(client: Any, tag: str) -> None:
    async def check(pair: Pair) -> None:
        child = await pair.table(pair.child).create(
            data={**await pair.new_child(), pair.relation.name: {"create": await pair.new_parent()}},
            include={pair.relation.name: True},
        )
        parent = getattr(child, pair.relation.name)
        assert pair.points_to(child, parent)
        (only,) = await pair.children_of(parent)
        assert pair.key(only) == pair.key(child)

        given = await pair.new_child()
        new: Any = [given, await pair.new_child()] if pair.back.list else given
        parent = await pair.table(pair.parent).create(
            data={**await pair.new_parent(), pair.back.name: {"create": new}}, include={pair.back.name: True}
        )
        made = getattr(parent, pair.back.name)
        for row in made if pair.back.list else [made]:
            assert pair.points_to(row, parent)
        assert len(await pair.children_of(parent)) == (2 if pair.back.list else 1)

    await every_relation(client, tag, check)


@pytest.mark.conformance("Nested writes", "connect")
@pytest.mark.conformance("Nested writes", "connectOrCreate")
async def test_connect_and_connect_or_create(client: Any, tag: str) -> None:
    async def check(pair: Pair) -> None:
        parent = await pair.parent_row()
        found = pair.parent.where(parent.model_dump())
        child = await pair.table(pair.child).create(
            data={**await pair.new_child(), pair.relation.name: {"connect": found}}, include={pair.relation.name: True}
        )
        assert getattr(child, pair.relation.name) == parent
        data = {
            **await pair.new_child(),
            pair.relation.name: {"connectOrCreate": {"where": found, "create": await pair.new_parent()}},
        }
        if pair.back.list:
            assert pair.points_to(await pair.table(pair.child).create(data=data), parent)
        absent = await pair.new_parent()
        data = {
            **await pair.new_child(),
            pair.relation.name: {
                "connectOrCreate": {"where": pair.parent.where({**parent.model_dump(), **absent}), "create": absent}
            },
        }
        made = await pair.table(pair.child).create(data=data, include={pair.relation.name: True})
        assert getattr(made, pair.relation.name) != parent
        nobody = {name: "nobody" if isinstance(value, str) else -1 for name, value in found.items()}
        data = {**await pair.new_child(), pair.relation.name: {"connect": nobody}}
        with pytest.raises(errors.RecordNotFoundError):
            await pair.table(pair.child).create(data=data)
        if pair.optional or pair.back.list:
            other = await pair.parent_row()
            await pair.table(pair.parent).update(
                where=pair.parent.where(other.model_dump()), data={pair.back.name: {"connect": pair.key(child)}}
            )
            (moved,) = await pair.children_of(other)
            assert pair.points_to(moved, other)

    await every_relation(client, tag, check)


@pytest.mark.conformance("Nested writes", "disconnect, set")
async def test_disconnect_and_set(client: Any, tag: str) -> None:
    async def check(pair: Pair) -> None:
        if not pair.optional:
            return
        parent = await pair.parent_row()
        where = pair.parent.where(parent.model_dump())
        children = [
            await pair.table(pair.child).create(data={**await pair.new_child(), pair.relation.name: {"connect": where}})
            for _ in range(2 if pair.back.list else 1)
        ]
        left = await pair.table(pair.child).update(
            where=pair.key(children[0]), data={pair.relation.name: {"disconnect": True}}, include={pair.relation.name: True}
        )
        assert getattr(left, pair.relation.name) is None
        if pair.back.list:
            await pair.table(pair.parent).update(where=where, data={pair.back.name: {"disconnect": [pair.key(children[1])]}})
            assert await pair.children_of(parent) == []
            for wanted in (children, children[:1], []):
                await pair.table(pair.parent).update(
                    where=where, data={pair.back.name: {"set": [pair.key(child) for child in wanted]}}
                )
                now = await pair.children_of(parent)
                assert [pair.key(row) for row in now] == sorted((pair.key(child) for child in wanted), key=str)

    await every_relation(client, tag, check)


@pytest.mark.conformance("Nested writes", "update, upsert")
async def test_update_and_upsert(client: Any, tag: str) -> None:
    """`update` of a single relation is the data itself or {data}, of a list {where, data}."""

    async def check(pair: Pair) -> None:
        parent = await pair.parent_row()
        where = pair.parent.where(parent.model_dump())
        child = await pair.table(pair.child).create(data={**await pair.new_child(), pair.relation.name: {"connect": where}})
        new = _free(pair, pair.parent)
        for form in (new, {"data": _free(pair, pair.parent)}):
            updated = await pair.table(pair.child).update(
                where=pair.key(child), data={pair.relation.name: {"update": form}}, include={pair.relation.name: True}
            )
            assert _holds(getattr(updated, pair.relation.name), form["data"] if isinstance(form.get("data"), dict) else form)
        new = _free(pair, pair.child)
        form = [{"where": pair.key(child), "data": new}] if pair.back.list else new
        await pair.table(pair.parent).update(where=where, data={pair.back.name: {"update": form}})
        (now,) = await pair.children_of(parent)
        assert _holds(now, new)

        other = _free(pair, pair.child)
        upsert: dict[str, Any] = {"create": await pair.new_child(), "update": other}
        form = [{"where": pair.key(child), **upsert}] if pair.back.list else upsert
        await pair.table(pair.parent).update(where=where, data={pair.back.name: {"upsert": form}})
        (now,) = await pair.children_of(parent)
        assert _holds(now, other)
        empty = await pair.parent_row()
        data = await pair.new_child()
        upsert = {"create": data, "update": other}
        form = [{"where": pair.child.where({**child.model_dump(), **data}), **upsert}] if pair.back.list else upsert
        await pair.table(pair.parent).update(
            where=pair.parent.where(empty.model_dump()), data={pair.back.name: {"upsert": form}}
        )
        assert len(await pair.children_of(empty)) == 1

    await every_relation(client, tag, check)


def _free(pair: Pair, model: Model) -> dict[str, Any]:
    """New values for the columns that no key and no relation needs."""
    kept = {name for key in model.keys for name in key} | {name for relation in model.parents() for name in relation.fields}
    return {name: value for name, value in pair.rows.scalars(model, 1).items() if name not in kept}


def _holds(row: Any, expected: dict[str, Any]) -> bool:
    from engine.conformance_schema import plain

    columns = models()[row.__prisma_model__].columns
    return all(plain(columns[name], getattr(row, name)) == plain(columns[name], value) for name, value in expected.items())


@pytest.mark.conformance("Nested writes", "createMany, updateMany, deleteMany")
@pytest.mark.conformance("Nested writes", "delete")
async def test_many_and_delete(client: Any, tag: str) -> None:
    async def check(pair: Pair) -> None:
        parent = await pair.parent_row()
        where = pair.parent.where(parent.model_dump())
        table = pair.table(pair.parent)
        if not pair.back.list:
            await pair.table(pair.child).create(data={**await pair.new_child(), pair.relation.name: {"connect": where}})
            await table.update(where=where, data={pair.back.name: {"delete": True}})
            assert await pair.children_of(parent) == []
            return
        rows = [await pair.rows.whole(client, pair.child) for _ in range(2)]
        flat = [{name: value for name, value in row.items() if name not in pair.relation.fields} for row in rows]
        await table.update(where=where, data={pair.back.name: {"createMany": {"data": flat, "skipDuplicates": True}}})
        children = await pair.children_of(parent)
        assert len(children) == 2
        new = _free(pair, pair.child)
        await table.update(where=where, data={pair.back.name: {"updateMany": [{"where": {}, "data": new}]}})
        assert all(_holds(child, new) for child in await pair.children_of(parent))
        await table.update(where=where, data={pair.back.name: {"delete": [pair.key(children[0])]}})
        assert [pair.key(child) for child in await pair.children_of(parent)] == [pair.key(children[1])]
        await table.update(where=where, data={pair.back.name: {"deleteMany": [{}]}})
        assert await pair.children_of(parent) == []

    await every_relation(client, tag, check)


@pytest.mark.conformance("Reading relations", "include")
@pytest.mark.conformance("Reading relations", "filters: some, every, none, is, isNot")
async def test_include_and_filters(client: Any, tag: str) -> None:
    async def check(pair: Pair) -> None:
        full, empty = await pair.parent_row(), await pair.parent_row()
        where = pair.parent.where(full.model_dump())
        child = await pair.table(pair.child).create(data={**await pair.new_child(), pair.relation.name: {"connect": where}})
        this = {name: getattr(child, name) for name in pair.child.keys[0]}
        both = {"OR": [{name: getattr(row, name) for name in pair.parent.keys[0]} for row in (full, empty)]}
        name, table = pair.back.name, pair.table(pair.parent)

        async def parents(**filters: Any) -> list[bool]:
            return [row == full for row in await table.find_many(where={"AND": [both, {name: filters}]})]

        if pair.back.list:
            assert await parents(some=this) == [True]
            assert await parents(some={}) == [True]
            assert await parents(none=this) == [False]
            assert sorted(await parents(every=this)) == [False, True]
            found = await table.find_unique(where=where, include={name: {"where": {"NOT": [this]}, "take": 1}})
            assert getattr(found, name) == []
            order = {pair.child.keys[0][0]: "asc"}
            found = await table.find_unique(
                where=where, include={name: {"where": this, "order_by": order, "include": {pair.relation.name: True}}}
            )
            (inner,) = getattr(found, name)
            assert getattr(inner, pair.relation.name) == full
        else:
            assert await parents(**{"is": this}) == [True]
            assert await parents(is_not=this) == [False]
        theirs = {key: getattr(full, key) for key in pair.parent.keys[0]}
        children = pair.table(pair.child)
        assert await children.count(where={**this, pair.relation.name: {"is": theirs}}) == 1
        assert await children.count(where={**this, pair.relation.name: theirs}) == 1
        assert await children.count(where={**this, pair.relation.name: {"is_not": theirs}}) == 0
        ordered = await children.find_many(where=this, order={pair.relation.name: {pair.parent.keys[0][0]: "desc"}})
        assert len(ordered) == 1
        if pair.back.list:
            counted = await table.find_many(where=both, order={name: {"_count": "desc"}})
            assert [row == full for row in counted] == [True, False]

    await every_relation(client, tag, check)


@pytest.mark.conformance("Reading relations", "_count of relations")
async def test_count_of_relations(client: Any, tag: str) -> None:
    """prisma-client-py has no `_count` in `include`; asked for as the engine knows it, it is answered."""

    async def check(pair: Pair) -> None:
        if not pair.back.list:
            return
        parent = await pair.parent_row()
        where = pair.parent.where(parent.model_dump())
        for _ in range(2):
            await pair.table(pair.child).create(data={**await pair.new_child(), pair.relation.name: {"connect": where}})
        answer = await client._execute(
            method="find_unique",
            arguments={"where": where},
            model=type(parent),
            root_selection=[f"_count {{ {pair.back.name} }}"],
        )
        assert answer["data"]["result"] == {"_count": {pair.back.name: 2}}

    await every_relation(client, tag, check)


@pytest.mark.conformance("Nested writes", "onDelete: Cascade, SetNull, Restrict")
async def test_what_a_delete_does_to_the_others(client: Any, tag: str) -> None:
    async def check(pair: Pair) -> None:
        parent = await pair.parent_row()
        where = pair.parent.where(parent.model_dump())
        child = await pair.table(pair.child).create(data={**await pair.new_child(), pair.relation.name: {"connect": where}})
        if not pair.optional and not pair.relation.cascade:
            with pytest.raises(errors.ForeignKeyViolationError):
                await pair.table(pair.parent).delete(where=where)
            return
        await pair.table(pair.parent).delete(where=where)
        left = await pair.table(pair.child).find_unique(where=pair.key(child))
        assert (left is None) if pair.relation.cascade else ([getattr(left, name) for name in pair.relation.fields] == [None])

    await every_relation(client, tag, check)
