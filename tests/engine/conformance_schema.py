"""LiteLLM's schema as data, read from the file that the client was generated from: models, columns, keys, relations.

From it come whole rows, so that no model and no column is left out and none needs a line here when LiteLLM adds one.
Grammar: https://www.prisma.io/docs/orm/reference/prisma-schema-reference
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from typing import Any

from prisma import Base64, Json

from pointsman.migrations.install import Layout

__all__ = ["Column", "Model", "Relation", "Rows", "models", "plain"]

_BLOCK = re.compile(r"^(model|enum) (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s+(\w+)(\[\])?(\?)?(.*)$")
_KEY = re.compile(r"^\s*@@(id|unique|map)\(\[?([^\])]*)")
SCALARS = frozenset({"String", "Int", "BigInt", "Float", "Boolean", "DateTime", "Json", "Bytes"})
NUMBERS = frozenset({"Int", "BigInt", "Float"})


@dataclass(frozen=True)
class Column:
    """A scalar field: its name in the client, its column, its type (of `SCALARS`, or an enum's name)."""

    name: str
    column: str
    type: str
    list: bool
    optional: bool
    default: str | None
    values: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        """Whether `create` wants it."""
        return not (self.optional or self.list or self.default)


@dataclass(frozen=True)
class Relation:
    """A relation field; `fields` are the columns that hold it on this side, empty on the other."""

    name: str
    model: str
    list: bool
    optional: bool
    fields: tuple[str, ...]
    references: tuple[str, ...]
    label: str | None
    cascade: bool


@dataclass
class Model:
    """One model with its table, its keys (the first one is the id) and everything in it."""

    name: str
    table: str
    columns: dict[str, Column] = field(default_factory=dict)
    relations: dict[str, Relation] = field(default_factory=dict)
    keys: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def accessor(self) -> str:
        """Its attribute on the client."""
        return self.name.lower()

    def where(self, row: dict[str, Any], key: tuple[str, ...] | None = None) -> dict[str, Any]:
        """What finds `row` by one of the keys, by default the id."""
        key = key or self.keys[0]
        values = {name: row[name] for name in key}
        return values if len(key) == 1 else {"_".join(key): values}

    def parents(self) -> list[Relation]:
        """The relations whose columns are on this side."""
        return [relation for relation in self.relations.values() if relation.fields]

    def other_side(self, relation: Relation) -> Relation:
        """The same relation as the other model has it."""
        for candidate in models()[relation.model].relations.values():
            if (
                candidate.model == self.name
                and candidate.label == relation.label
                and bool(candidate.fields) != bool(relation.fields)
            ):
                return candidate
        raise LookupError(f"{self.name}.{relation.name} has no other side")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _list_of(argument: str, text: str) -> tuple[str, ...]:
    found = re.search(rf"{argument}:\s*\[([^\]]*)\]", text)
    return _names(found[1]) if found else ()


@cache
def models() -> dict[str, Model]:
    """All models of the schema, by name."""
    text = re.sub(r"\s*//.*$", "", Layout.current().schema.read_text(encoding="utf-8"), flags=re.MULTILINE)
    blocks = _BLOCK.findall(text)
    enums = {name: tuple(body.split()) for kind, name, body in blocks if kind == "enum"}
    known = {name for kind, name, _ in blocks if kind == "model"}
    found = {}
    for kind, name, body in blocks:
        if kind != "model":
            continue
        model = Model(name, name)
        ids, uniques = [], []
        for line in body.splitlines():
            if key := _KEY.match(line):
                if key[1] == "map":
                    model.table = key[2].strip('"')
                else:
                    (ids if key[1] == "id" else uniques).append(_names(key[2]))
            elif (match := _FIELD.match(line)) and not line.lstrip().startswith("@@"):
                field_name, type_name, many, optional, rest = match.groups()
                if type_name in known:
                    label = re.search(r'@relation\("(\w+)"', rest) or re.search(r'@relation\(name: "(\w+)"', rest)
                    model.relations[field_name] = Relation(
                        field_name, type_name, bool(many), bool(optional), _list_of("fields", rest),
                        _list_of("references", rest), label[1] if label else None, "onDelete: Cascade" in rest,
                    )  # fmt: skip
                    continue
                mapped = re.search(r'(?<!@)@map\("(\w+)"\)', rest)
                default = re.search(r"@default\((.*)\)|(@updatedAt)", rest)
                model.columns[field_name] = Column(
                    field_name, mapped[1] if mapped else field_name, type_name, bool(many), bool(optional),
                    (default[1] or "@updatedAt") if default else None, enums.get(type_name, ()),
                )  # fmt: skip
                for mark, keys in (("@id", ids), ("@unique", uniques)):
                    if re.search(rf"(?<!@){mark}\b", rest):
                        keys.append((field_name,))
        model.keys = list(dict.fromkeys([*ids, *uniques]))
        found[name] = model
    return found


def plain(column: Column, value: Any) -> Any:
    """A value as it went in, as the client gave it back or as psycopg read it, in one form that compares."""
    if isinstance(value, Json):
        return value.data
    if isinstance(value, Base64):
        return value.decode()
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if column.list:
        return [] if value is None else list(value)
    return value


class Rows:
    """Makes rows: every column filled, other values for another `turn`, keys that begin with `tag`."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._number = int(sha256(tag.encode()).hexdigest()[:5], 16) * 64  # numbers are keys of some tables

    def value(self, column: Column, turn: int) -> Any:
        """One value of the column's type; no two turns give the same, but for Booleans."""
        self._number += 1
        number = self._number
        if column.list:
            return [f"{self.tag} {turn}", 'q"uo\\te', "\u2028ü", ""]
        match column.type:
            case "String":
                return f"{self.tag}-{number}-{turn} \"'\\ \u2028 {{}} ü🚆"
            case "Int":
                return (-1) ** turn * (2**30 + number)
            case "BigInt":
                return (-1) ** turn * (2**60 + number)
            case "Float":
                return (-1) ** turn * (number + 0.125)
            case "Boolean":
                return turn % 2 == 0
            case "DateTime":
                return datetime(1969 + turn, 12, 31, 23, 59, 59, 1000 * (number % 1000), tzinfo=UTC) + timedelta(minutes=number)
            case "Json":
                return Json({"n": number, "turn": turn, "deep": [{"$type": "x"}, None, 1.5, "ü\u2028"], "": {}})
            case "Bytes":
                return Base64.encode(bytes([number % 256, 0, 255]) + self.tag.encode())
            case _:
                return column.values[turn % len(column.values)]

    def scalars(self, model: Model, turn: int = 0, *, all_columns: bool = True) -> dict[str, Any]:
        """Values of the model's own columns, those that hold relations left out."""
        held = {name for relation in model.parents() for name in relation.fields}
        # A table of one row has that row's key as the default.
        fixed = {name for name in model.keys[0] if (model.columns[name].default or "").startswith('"')}
        return {
            column.name: self.value(column, turn)
            for column in model.columns.values()
            if column.name not in held and (all_columns or column.required or column.name in fixed)
        }

    async def whole(self, client: Any, model: Model, *, all_columns: bool = True) -> dict[str, Any]:
        """A row that can be created: as `scalars`, with the rows that it points to made first."""
        row = self.scalars(model, all_columns=all_columns)
        for relation in model.parents():
            needed = any(model.columns[name].required for name in relation.fields)
            if not (needed or all_columns):
                continue
            parent = models()[relation.model]
            made = await self.whole(client, parent, all_columns=False)
            created = await getattr(client, parent.accessor).create(data=made)
            row |= {own: getattr(created, theirs) for own, theirs in zip(relation.fields, relation.references, strict=True)}
        return row
