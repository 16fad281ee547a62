"""What LiteLLM's schema has no column of yet: Decimal, mapped enums and names, lists of every type, native types.

Asked as prisma-client-py asks, in GraphQL over HTTP, of an engine with a schema of its own:
https://www.prisma.io/docs/orm/reference/prisma-schema-reference .
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from prisma.engine.utils import get_open_port

from engine import stand_in_engine
from engine.conformance_schema import SCALARS
from engine.conformance_schema import models as litellms
from engine.harness import eventually

SCHEMA = """
datasource client {
  provider = "postgresql"
  url      = env("DATABASE_URL")
}

enum Colour {
  RED   @map("r")
  GREEN @map("light green")

  @@map("colours")
}

model Thing {
  id      BigInt    @id @map("thing_id")
  price   Decimal   @map("p") @db.Decimal(60, 30)
  prices  Decimal[]
  colour  Colour
  colours Colour[]
  bigs    BigInt[]
  raws    Bytes[]
  exact   DateTime  @db.Timestamptz(6)
  day     DateTime? @db.Date
  times   DateTime[]
  docs    Json[]
  uuid    String?   @db.Uuid
  small   Int?      @db.SmallInt
  parts   Part[]

  @@unique([colour, exact], name: "by_colour")
  @@map("things")
}

model Part {
  id    Int   @id @default(autoincrement())
  of    BigInt
  doc   Json
  thing Thing @relation(fields: [of], references: [id])
}
"""
TABLES = """
CREATE TYPE colours AS ENUM ('r', 'light green');
CREATE TABLE things (thing_id bigint PRIMARY KEY, p decimal(60, 30) NOT NULL, prices decimal[], colour colours NOT NULL,
  colours colours[], bigs bigint[], raws bytea[], exact timestamptz(6) NOT NULL, day date, times timestamp(3)[], docs jsonb[],
  uuid uuid, small smallint, UNIQUE (colour, exact));
CREATE TABLE "Part" (id serial PRIMARY KEY, of bigint NOT NULL REFERENCES things, doc jsonb NOT NULL);
"""
PRICE = "123456789012345678901234567890.123456789012345678901234567891"[:60]
ROW = f"""id: 9007199254740993, price: "{PRICE[:29]}.{"1" * 30}", prices: ["0.1", "-1e-20"], colour: "GREEN",
  colours: ["RED", "GREEN"], bigs: [9007199254740993, -1], raws: ["AP8=", ""], exact: "2026-05-01T01:02:03.456+00:00",
  day: "1969-12-31T00:00:00Z", times: ["2026-05-01T00:00:00.001Z"], docs: ["{{}}", "[1,\\"{{}}\\"]", "null"],
  uuid: "11111111-1111-4111-8111-111111111111", small: 7"""
FIELDS = "id price prices colour colours bigs raws exact day times docs uuid small"

Ask = Callable[[str], Any]


@pytest.fixture(scope="module")
def things(
    fresh_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Ask, psycopg.Connection[Any]]]:
    """An engine with the schema above, and psycopg on its database."""
    folder, url, port = tmp_path_factory.mktemp("things"), fresh_database(), get_open_port()
    (folder / "schema.prisma").write_text(SCHEMA, encoding="utf-8")
    with psycopg.connect(url, autocommit=True) as sql:
        sql.execute(TABLES)
        environment = {
            **os.environ,
            "PRISMA_DML_PATH": str(folder / "schema.prisma"),
            "OVERWRITE_DATASOURCES": json.dumps([{"name": "client", "url": url}]),
        }
        engine = subprocess.Popen([str(stand_in_engine.write(folder / "engine")), "-p", str(port)], env=environment)
        with httpx.Client(base_url=f"http://localhost:{port}") as http:

            def ask(text: str) -> Any:
                answer = http.post("/", json={"query": text}).json()
                return answer["data"]["result"] if "data" in answer else answer["errors"][0]["user_facing_error"]

            def ready() -> bool:
                try:
                    return http.get("/status").status_code == 200
                except httpx.TransportError:
                    return False

            try:
                eventually(ready, what="the engine's answer")
                ask(f"mutation {{ result: createOneThing(data: {{ {ROW} }}) {{ id }} }}")
                yield ask, sql
            finally:
                engine.terminate()
                engine.wait(20)


@pytest.mark.conformance("Values", "Decimal")
@pytest.mark.conformance("Values", "lists of every type")
@pytest.mark.conformance("Values", "enum with @map, @@map; columns and tables with @map, @@map")
async def test_values(things: tuple[Ask, psycopg.Connection[Any]]) -> None:
    ask, sql = things
    row = ask(f"query {{ result: findUniqueThing(where: {{id: 9007199254740993}}) {{ {FIELDS} }} }}")
    price = f"{PRICE[:29]}.{'1' * 30}"
    assert row == {
        "id": 9007199254740993, "price": price, "prices": ["0.1", "-0.00000000000000000001"],
        "colour": "GREEN", "colours": ["RED", "GREEN"], "bigs": [9007199254740993, -1], "raws": ["AP8=", ""],
        "exact": "2026-05-01T01:02:03.456Z", "day": "1969-12-31T00:00:00.000Z", "times": ["2026-05-01T00:00:00.001Z"],
        "docs": ["{}", '[1,"{}"]', "null"], "uuid": "11111111-1111-4111-8111-111111111111", "small": 7,
    }  # fmt: skip
    stored = sql.execute(
        "SELECT thing_id, p::text, prices::text, colour::text, colours::text, bigs, raws, exact AT TIME ZONE 'UTC', day::text,"
        " docs::text, uuid::text, small FROM things"
    ).fetchall()
    assert [str(value) for value in stored[0][:5]] == [
        "9007199254740993", price, "{0.1,-0.00000000000000000001}", "light green", '{r,"light green"}'
    ]  # fmt: skip
    assert stored[0][5:7] == ([9007199254740993, -1], [b"\x00\xff", b""])
    assert stored[0][8:] == ("1969-12-31", '{"{}","[1, \\"{}\\"]","null"}', "11111111-1111-4111-8111-111111111111", 7)


@pytest.mark.conformance("Values", "Decimal")
@pytest.mark.conformance("Values", "enum with @map, @@map; columns and tables with @map, @@map")
async def test_filters_and_keys(things: tuple[Ask, psycopg.Connection[Any]]) -> None:
    ask, _ = things

    def ids(where: str) -> Any:
        return [row["id"] for row in ask(f"query {{ result: findManyThing(where: {{{where}}}) {{ id }} }}")]

    one = [9007199254740993]
    assert ids('colour: "GREEN"') == ids('colour: {in: ["GREEN", "RED"]}') == ids('colours: {has: "RED"}') == one
    assert ids('colour: "RED"') == ids("id: 9007199254740992") == ids('price: {gt: "123456789012345678901234567890"}') == []
    assert ids('prices: {has: "0.10"}') == ids('price: {lt: "12345678901234567890123456789.2"}') == one
    assert ids("bigs: {hasEvery: [-1, 9007199254740993]}") == one
    assert ids('docs: {has: "{}"}') == ids('docs: {hasSome: ["[]", "null"]}') == one
    assert ids('docs: {has: "[]"}') == ids('docs: {equals: ["{}"]}') == []
    key = '{by_colour: {colour: "GREEN", exact: "2026-05-01T01:02:03.456Z"}}'
    assert ask(f"query {{ result: findUniqueThing(where: {key}) {{ id }} }}") == {"id": one[0]}
    groups = ask('query { result: groupByThing(by: ["colour"]) { colour _sum { price id } _avg { price } } }')
    assert groups == [{"colour": "GREEN", "_sum": groups[0]["_sum"], "_avg": groups[0]["_avg"]}]
    assert groups[0]["_sum"]["id"] == one[0]
    assert groups[0]["_sum"]["price"].startswith("12345678901234567890123456789.1111")
    assert ask('query { result: findManyThing(where: {colour: "r"}) { id } }')["error_code"] == "P2009"


@pytest.mark.conformance("Nested writes", "create")
async def test_json_below_a_key_of_64_bits(things: tuple[Ask, psycopg.Connection[Any]]) -> None:
    ask, _ = things
    made = ask(
        'mutation { result: createOnePart(data: {doc: "{}", thing: {connect: {id: 9007199254740993}}})'
        " { of doc thing { id docs parts { doc } } } }"
    )
    inner = {"id": 9007199254740993, "docs": ["{}", '[1,"{}"]', "null"], "parts": [{"doc": "{}"}]}
    assert made == {"of": 9007199254740993, "doc": "{}", "thing": inner}


def test_litellms_schema_has_only_types_that_are_tested() -> None:
    """One that is new, as Decimal would be, wants a look at the tests of values."""
    used = {column.type for model in litellms().values() for column in model.columns.values() if not column.values}
    assert used == SCALARS
    lists = {column.type for model in litellms().values() for column in model.columns.values() if column.list}
    assert lists == {"String"}
