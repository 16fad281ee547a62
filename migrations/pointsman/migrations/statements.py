"""Take SQL text apart, far enough to say which statement of a file failed.

Files are executed whole, as Prisma does; what is found here only goes into messages. Lexical rules:
https://www.postgresql.org/docs/current/sql-syntax-lexical.html .
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Statement", "split", "without_comments"]

_TOKEN = re.compile(
    r"""
      (?P<line>--[^\n]*)
    | (?P<block>/\*)
    | (?P<escape>\b[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))
    | (?P<string>'(?:[^']|'')*(?:'|\Z))
    | (?P<name>"(?:[^"]|"")*(?:"|\Z))
    | (?P<dollar>(?<![\w$])\$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][\w]*)?)\$)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK = re.compile(r"/\*|\*/")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.

    Attributes:
        text: from its first word on, without the semicolon; comments inside stay.
        line: 1-based line of its first word.
    """

    text: str
    line: int


def _tokens(sql: str) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of comments, literals and semicolons; kinds are `comment`, `literal`, `end`."""
    place = 0
    while (match := _TOKEN.search(sql, place)) is not None:
        start, place = match.span()
        kind = match.lastgroup if match.lastgroup != "tag" else "dollar"
        if kind == "block":
            depth = 1  # they nest
            while depth and (edge := _BLOCK.search(sql, place)) is not None:
                depth += 1 if edge.group() == "/*" else -1
                place = edge.end()
            if depth:
                place = len(sql)
            yield "comment", start, place
        elif kind == "line":
            yield "comment", start, place
        elif match.group("dollar") is not None:
            closing = sql.find(match.group("dollar"), place)
            place = len(sql) if closing < 0 else closing + len(match.group("dollar"))
            yield "literal", start, place
        elif kind == "end":
            yield "end", start, place
        else:
            yield "literal", start, place


def without_comments(sql: str) -> str:
    """`sql` with each comment replaced by one space."""
    parts, place = [], 0
    for kind, start, end in _tokens(sql):
        if kind == "comment":
            parts.append(sql[place:start])
            place = end
    return " ".join([*parts, sql[place:]])


def _first_word(piece: str) -> int:
    """Where white space and comments end."""
    place = 0
    for kind, start, end in _tokens(piece):
        if kind != "comment" or piece[place:start].strip():
            break
        place = end
    return place + len(piece[place:]) - len(piece[place:].lstrip())


def split(sql: str) -> list[Statement]:
    """The statements, in order; pieces that are only white space and comments are left out."""
    edges = [start for kind, start, _ in _tokens(sql) if kind == "end"]
    found: list[Statement] = []
    begin = 0
    for edge in [*edges, len(sql)]:
        piece = sql[begin:edge]
        lead = _first_word(piece)
        if lead < len(piece):
            found.append(Statement(piece[lead:].rstrip(), sql.count("\n", 0, begin + lead) + 1))
        begin = edge + 1
    return found
