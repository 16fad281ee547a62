"""Whether instances of the version before can go on working while, and after, a migration is applied: read off its text.

Three levels: `safe` adds something, or takes only a moment; `locks` keeps a table's users waiting for as long as its size
wants; `breaking` takes away, renames or narrows what the version before reads or writes. Tables that the same run makes have no
users yet, so there everything is safe. What is not known to be safe is called breaking. (Which locks: https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-NOTES).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from pointsman.migrations.sources import Migration
from pointsman.migrations.statements import split, without_comments

__all__ = ["Finding", "Level", "Review", "review"]

Level = Literal["safe", "locks", "breaking"]
_ORDER: tuple[Level, ...] = ("safe", "locks", "breaking")

_NAME = r'((?:"[^"]+"|[\w]+)(?:\.(?:"[^"]+"|\w+))?)'
_EXISTS = r"(?:IF\s+(?:NOT\s+)?EXISTS\s+)?"
_DECLARED = re.compile(r"^-- (rolling-safe|contract): (\S.*)$", re.MULTILINE)
_CREATE_TABLE = re.compile(rf"CREATE\s+(?:UNLOGGED\s+)?TABLE\s+{_EXISTS}{_NAME}(.*)", re.IGNORECASE | re.DOTALL)
_CREATE_INDEX = re.compile(
    rf"CREATE\s+(UNIQUE\s+)?INDEX\s+(CONCURRENTLY\s+)?{_EXISTS}(?:{_NAME}\s+)?ON\s+(?:ONLY\s+)?{_NAME}", re.IGNORECASE
)
_ALTER_TABLE = re.compile(rf"ALTER\s+TABLE\s+{_EXISTS}(?:ONLY\s+)?{_NAME}\s+(.*)", re.IGNORECASE | re.DOTALL)
_DROP_INDEX = re.compile(rf"DROP\s+INDEX\s+(?:CONCURRENTLY\s+)?{_EXISTS}{_NAME}", re.IGNORECASE)
_DROP_TRIGGER = re.compile(rf"DROP\s+TRIGGER\s+{_EXISTS}{_NAME}", re.IGNORECASE)
_ROWS = re.compile(rf"(UPDATE|DELETE\s+FROM|INSERT\s+INTO|TRUNCATE(?:\s+TABLE)?)\s+(?:ONLY\s+)?{_NAME}", re.IGNORECASE)
_HARMLESS = re.compile(
    r"(SELECT|SET|RESET|COMMENT|GRANT|ANALYZE|PERFORM|RAISE|NULL|CREATE\s+(?:OR\s+REPLACE\s+)?(?:TYPE|SCHEMA|SEQUENCE|EXTENSION|"
    r"VIEW|MATERIALIZED\s+VIEW|FUNCTION|PROCEDURE|TRIGGER|DOMAIN|STATISTICS|AGGREGATE)|ALTER\s+(?:DEFAULT\s+PRIVILEGES|INDEX))\b",
    re.IGNORECASE,
)
_DO = re.compile(r"DO\s+(\$\w*\$)(.*)\1", re.IGNORECASE | re.DOTALL)
_INSIDE = re.compile(
    r"\b(ALTER\s+(?:TABLE|TYPE|INDEX|SEQUENCE|VIEW)|CREATE\s+(?:UNIQUE\s+|OR\s+REPLACE\s+|UNLOGGED\s+)?[A-Z]+|DROP\s+[A-Z]+|"
    r"UPDATE\s|DELETE\s+FROM|INSERT\s+INTO|TRUNCATE|EXECUTE|LOCK\s|REVOKE)",
    re.IGNORECASE,
)
_VOLATILE = re.compile(r"\b(gen_random_uuid|uuid_generate_v\w+|random|clock_timestamp|timeofday|nextval)\s*\(", re.IGNORECASE)
_SERIAL = re.compile(r"\b(small|big)?serial\b|\bGENERATED\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement that is not safe.

    Attributes:
        level: `locks` or `breaking`.
        line: of the file.
        reason: in words.
    """

    level: Level
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Review:
    """Judgement of one file.

    Attributes:
        findings: what is not safe, in order.
        declared: `rolling-safe` or `contract` and what the file says beside it, or None.
        made: tables that it makes.
    """

    findings: tuple[Finding, ...]
    declared: tuple[str, str] | None
    made: frozenset[str]

    @property
    def level(self) -> Level:
        """The worst of the findings; `safe` when the file declares itself rolling-safe."""
        if self.declared is not None and self.declared[0] == "rolling-safe":
            return "safe"
        return max((one.level for one in self.findings), key=_ORDER.index, default="safe")


def review(migration: Migration, made: frozenset[str] = frozenset()) -> Review:
    """Judge a file.

    Args:
        migration: the file.
        made: tables that files before it in the same run make.
    """
    context = _Context(set(made), _plain(migration.text))
    findings: list[Finding] = []
    for statement in split(migration.text):
        for level, reason in _judge(_plain(statement.text), context):
            if level != "safe":
                findings.append(Finding(level, statement.line, reason))
    declared = _DECLARED.search(migration.text)
    return Review(tuple(findings), (declared[1], declared[2].strip()) if declared else None, frozenset(context.tables - made))


def _plain(text: str) -> str:
    return " ".join(without_comments(text).split())


def _key(name: str) -> str:
    """A table's name without its schema and quotes."""
    return name.rpartition(".")[2].strip('"') if not name.endswith('"') else name.rpartition('."')[2].strip('"')


@dataclass(frozen=True, slots=True)
class _Context:
    """Tables that the run has made so far, and the whole text of the file."""

    tables: set[str]
    text: str

    def has(self, table: str) -> bool:
        return _key(table) in self.tables


Verdicts = Iterator[tuple[Level, str]]


def _judge(statement: str, context: _Context) -> Verdicts:
    for pattern, rule in _RULES:
        if (match := pattern.match(statement)) is not None:
            yield from rule(match, context)
            return
    yield "breaking", f"not known to be safe: {statement[:60]}"


def _create_table(match: re.Match[str], context: _Context) -> Verdicts:
    context.tables.add(_key(match[1]))
    parent = re.match(rf"\s*PARTITION\s+OF\s+{_NAME}", match[2], re.IGNORECASE)
    if parent is not None and not context.has(parent[1]):
        yield "locks", f"locks out the writers of {parent[1]}"


def _create_index(match: re.Match[str], context: _Context) -> Verdicts:
    unique, concurrently, table = match[1], match[2], match[4]
    if context.has(table):
        return
    if unique:
        yield "breaking", f"{table} will refuse duplicates that the version before may write"
    if not concurrently:
        yield "locks", f"{table} takes no writes while the index is built"


def _alter_table(match: re.Match[str], context: _Context) -> Verdicts:
    if not context.has(match[1]):
        for action in _actions(match[2]):
            yield _action(match[1], action)


def _rows(match: re.Match[str], context: _Context) -> Verdicts:
    verb, table = match[1].upper(), match[2]
    if context.has(table) or verb.startswith("INSERT"):
        return
    yield ("locks", f"writes rows of {table}") if verb == "UPDATE" else ("breaking", f"removes rows of {table}")


def _drop_index(match: re.Match[str], _: _Context) -> Verdicts:
    if _key(match[1]).endswith(("_key", "_pkey")):
        yield "breaking", f"upserts of the version before may need the unique index {match[1]}"


def _drop_trigger(match: re.Match[str], context: _Context) -> Verdicts:
    if not re.search(rf"CREATE\s+(OR\s+REPLACE\s+)?TRIGGER\s+{re.escape(match[1])}", context.text, re.IGNORECASE):
        yield "breaking", f"drops the trigger {match[1]}"


def _lock(_: re.Match[str], __: _Context) -> Verdicts:
    yield "locks", "locks a table"


def _harmless(_: re.Match[str], __: _Context) -> Verdicts:
    yield from ()


def _block(match: re.Match[str], context: _Context) -> Verdicts:
    """A DO block: what stands behind its conditions."""
    for piece in split(match[2]):
        start = _INSIDE.search(piece.text)
        if start is None:
            continue
        if start[1].upper() == "EXECUTE":
            yield "breaking", "runs statements that it puts together itself"
        else:
            yield from _judge(_plain(piece.text[start.start() :]), context)


def _actions(text: str) -> list[str]:
    """The actions of an ALTER TABLE: split at commas outside of brackets and literals."""
    parts, depth, begin, quote = [], 0, 0, ""
    for place, one in enumerate(text):
        if quote:
            quote = "" if one == quote else quote
        elif one in "'\"":
            quote = one
        elif one in "([":
            depth += 1
        elif one in ")]":
            depth -= 1
        elif one == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()]


def _action(table: str, action: str) -> tuple[Level, str]:
    upper = action.upper()
    if re.match(r"ADD\s+(CONSTRAINT|CHECK|FOREIGN|PRIMARY|UNIQUE|EXCLUDE)\b", upper):
        return "breaking", f"{table} will refuse rows that the version before may write"
    if upper.startswith("ADD "):
        return _column(table, action)
    if re.match(r"ALTER (COLUMN )?\S+ (DROP NOT NULL|SET DEFAULT|SET STATISTICS|SET STORAGE)\b", upper):
        return "safe", ""
    if re.match(r"ALTER (COLUMN )?\S+ (SET DATA )?TYPE\b", upper):
        return "breaking", f"changes the type of a column of {table}, and may write the table anew"
    if re.match(r"ALTER (COLUMN )?\S+ SET NOT NULL\b", upper):
        return "breaking", f"{table} will refuse rows that the version before may write without that column"
    if match := re.match(r"DROP CONSTRAINT (?:IF EXISTS )?(\S+)", action, re.IGNORECASE):
        if _key(match[1]).endswith(("_key", "_pkey")):
            return "breaking", f"upserts of the version before may need {match[1]}"
        return "safe", ""
    if re.match(r"DROP\b(?! EXPRESSION)", upper):
        return "breaking", f"drops a column of {table}"
    if re.match(r"RENAME\b", upper):
        return "breaking", f"renames something of {table}"
    if re.match(r"(VALIDATE CONSTRAINT|OWNER TO|REPLICA IDENTITY|SET \(|RESET \()", upper):
        return "safe", ""
    if re.match(r"(ATTACH|DETACH) PARTITION\b", upper):
        return "locks", f"locks {table}"
    return "breaking", f"not known to be safe: ALTER TABLE {table} {action[:40]}"


def _column(table: str, action: str) -> tuple[Level, str]:
    upper = action.upper()
    if _SERIAL.search(action) or (" DEFAULT " in f"{upper} " and _VOLATILE.search(upper.partition(" DEFAULT ")[2])):
        return "locks", f"writes {table} anew, to fill a column row by row"
    if re.search(r"\b(UNIQUE|PRIMARY KEY|CHECK|REFERENCES)\b", upper):
        return "locks", f"reads all of {table}, to check a new column"
    if "NOT NULL" in upper and " DEFAULT " not in upper:
        return "breaking", f"{table} gets a column that must be filled, which the version before does not know"
    return "safe", ""


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], _Context], Verdicts]], ...] = (
    (_DO, _block),
    (_CREATE_TABLE, _create_table),
    (_CREATE_INDEX, _create_index),
    (_ALTER_TABLE, _alter_table),
    (_ROWS, _rows),
    (_DROP_INDEX, _drop_index),
    (_DROP_TRIGGER, _drop_trigger),
    (re.compile(r"LOCK\b", re.IGNORECASE), _lock),
    (_HARMLESS, _harmless),
)
