"""The SQL that stands in LiteLLM's source, found by reading it: every text that begins like a statement.

A text with holes (an f-string, a sum) is taken where each hole is a constant of the same or another module; the others are put
together at run time, and `statements` says how many of those there are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Statement", "holes", "statements"]

_BEGINS = re.compile(
    r'\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+"|DELETE\s+FROM\s|WITH\s+\w+\s*(\(|AS)|SET\s+LOCAL\s|REFRESH\s+MATER|CREATE\s|ALTER\s|DROP\s)'
)
_FOLDERS = ("proxy", "repositories", "integrations", "caching", "router_utils", "llms")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and where it stands, relative to LiteLLM's package."""

    text: str
    where: str


def _constants(body: list[ast.stmt]) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


class _Reader:
    """Puts texts together from one module's constants and, by name, those of all the others."""

    def __init__(self, own: dict[str, ast.expr], others: dict[str, list[tuple[dict[str, ast.expr], ast.expr]]]) -> None:
        self._own = own
        self._others = others

    def text(self, node: ast.expr | None, depth: int = 0) -> str | None:
        """The text of an expression; None where it is not constant."""
        if node is None or depth > 12:
            return None
        match node:
            case ast.Constant(value=str() | int() as value):
                return str(value)
            case ast.Name(id=name):
                if name in self._own:
                    return self.text(self._own[name], depth + 1)
                known = self._others.get(name, [])
                return _Reader(known[0][0], self._others).text(known[0][1], depth + 1) if len(known) == 1 else None
            case ast.BinOp(op=ast.Add()):
                return self._joined([node.left, node.right], depth)
            case ast.JoinedStr():
                return self._joined([one.value if isinstance(one, ast.FormattedValue) else one for one in node.values], depth)
            case ast.Call(func=ast.Attribute(value=value, attr="strip"), args=[]):
                return self.text(value, depth + 1)
        return None

    def _joined(self, nodes: list[ast.expr], depth: int) -> str | None:
        parts = [self.text(part, depth + 1) for part in nodes]
        return None if None in parts else "".join(str(part) for part in parts)


def _texts(tree: ast.Module) -> Iterator[ast.expr]:
    """Every outermost text of a module, docstrings left out."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }

    def walk(node: ast.AST) -> Iterator[ast.expr]:
        for child in ast.iter_child_nodes(node):
            if id(child) in skipped:
                continue
            text = isinstance(child, ast.Constant) and isinstance(child.value, str)
            if isinstance(child, ast.expr) and (
                text or isinstance(child, ast.JoinedStr) or (isinstance(child, ast.BinOp) and isinstance(child.op, ast.Add))
            ):
                yield child
            else:
                yield from walk(child)

    yield from walk(tree)


def _beginning(node: ast.expr) -> str:
    while isinstance(node, ast.BinOp):
        node = node.left
    if isinstance(node, ast.JoinedStr):
        node = node.values[0] if node.values else node
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def _read() -> tuple[tuple[Statement, ...], tuple[str, ...]]:
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    files = sorted(file for folder in _FOLDERS for file in (package / folder).rglob("*.py"))
    sources = {
        file: text for file in files if re.search(r"\$1|LiteLLM_|pg_|statement_timeout", text := file.read_text("utf-8"))
    }
    trees = {file: ast.parse(text) for file, text in sources.items()}
    constants = {file: _constants(tree.body) for file, tree in trees.items()}
    by_name: dict[str, list[tuple[dict[str, ast.expr], ast.expr]]] = {}
    for own in constants.values():
        for name, value in own.items():
            by_name.setdefault(name, []).append((own, value))
    found: dict[str, Statement] = {}
    open_ended = []
    for file, tree in trees.items():
        reader = _Reader(constants[file], by_name)
        for node in _texts(tree):
            if not _BEGINS.match(_beginning(node)):
                continue
            where = f"{file.relative_to(package)}:{node.lineno}"
            text = reader.text(node)
            if text is None:
                open_ended.append(where)
            elif _BEGINS.match(text) and len(text.split()) > 2:
                found.setdefault(text, Statement(text, where))
    return tuple(found.values()), tuple(open_ended)


def statements() -> tuple[Statement, ...]:
    """Every whole statement of LiteLLM's source, once."""
    return _read()[0]


def holes() -> tuple[str, ...]:
    """Where a statement begins that is put together at run time."""
    return _read()[1]
