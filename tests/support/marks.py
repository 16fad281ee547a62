"""Reads the marks of every test from its source: a selection of tests must not narrow what is known of all."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ROOT", "TESTS", "Mark", "scan"]

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent


@dataclass(frozen=True, slots=True)
class Mark:
    """`@pytest.mark.<name>(*arguments)` on one test; `path` is relative to the repository's root."""

    name: str
    arguments: tuple[str, ...]
    path: str
    line: int
    test: str


def _marks_in(nodes: Iterable[ast.AST], path: str) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Every `pytest.mark.x(...)` call inside `nodes`, those of `pytest.param(..., marks=...)` included."""
    for top in nodes:
        for node in ast.walk(top):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            if not (isinstance(owner, ast.Attribute) and owner.attr == "mark") and not (
                isinstance(owner, ast.Name) and owner.id == "mark"
            ):
                continue
            if node.func.attr not in {"requirement", "slow", "conformance", "strategy"}:
                continue
            arguments = [item.value for item in node.args if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            if len(arguments) != len(node.args) or node.keywords or not arguments:
                raise ValueError(
                    f"{path}:{node.lineno}: write the mark's arguments as plain strings; they are read from the source"
                )
            yield node.func.attr, tuple(arguments), node.lineno


def _tests_in(body: list[ast.stmt], outer: list[ast.AST], prefix: str) -> Iterator[tuple[str, list[ast.AST]]]:
    """(name, nodes whose marks apply) of each test function and method, as pytest would collect them."""
    outer = outer + [
        node.value
        for node in body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
    ]
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield prefix + node.name, [*outer, *node.decorator_list]
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _tests_in(node.body, [*outer, *node.decorator_list], f"{prefix}{node.name}::")


@cache
def scan(folder: Path = TESTS) -> tuple[Mark, ...]:
    """The `requirement`, `slow`, `conformance` and `strategy` marks of every test below `folder`, in order of path and line.

    Raises:
        ValueError: a mark's argument is computed, so that reading the source does not tell it.
    """
    found = []
    for file in sorted(folder.rglob("test_*.py")):
        path = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=path)
        for test, nodes in _tests_in(tree.body, [], ""):
            found += [Mark(name, arguments, path, line, test) for name, arguments, line in _marks_in(nodes, path)]
    return tuple(found)
