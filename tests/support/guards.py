"""What may not stand in a module of the package. Each guard reads source and names lines, so it can itself be tested."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

__all__ = ["GUARDS", "broad_excepts", "environment_reads", "globals_", "missing_all", "unfinished"]

Guard = Callable[[str], list[int]]


def environment_reads(source: str) -> list[int]:
    """Lines that read the process environment. Writing to it, for LiteLLM to read, is another matter."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    lines = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {name.name for name in node.names} & {"environ", "environb", "getenv"}
        ):
            lines.append(node.lineno)
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"):
            continue
        if node.attr == "getenv" or (node.attr in {"environ", "environb"} and not _is_write(parents[node])):
            lines.append(node.lineno)
    return lines


def _is_write(parent: ast.AST) -> bool:
    if isinstance(parent, ast.Subscript):
        return isinstance(parent.ctx, ast.Store | ast.Del)
    return isinstance(parent, ast.Attribute) and parent.attr in {"update", "clear", "setdefault"}


def globals_(source: str) -> list[int]:
    """Lines with a `global` statement."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Global)]


def broad_excepts(source: str) -> list[int]:
    """Lines that catch everything, neither raise it again nor say beside it why."""
    text = source.splitlines()
    return [
        handler.lineno
        for handler in ast.walk(ast.parse(source))
        if isinstance(handler, ast.ExceptHandler)
        and _is_broad(handler.type)
        and not _raises_again(handler)
        and not _reason(text[handler.lineno - 1])
    ]


def _is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(_is_broad(item) for item in caught.elts)
    return caught is None or (isinstance(caught, ast.Name) and caught.id in {"Exception", "BaseException"})


def _raises_again(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None


def _reason(line: str) -> bool:
    comment = line.partition("#")[2]
    return len(re.sub(r"noqa(: *[A-Z]+\d+(, *[A-Z]+\d+)*)?|[-\s#]", "", comment)) > 0


def unfinished(source: str) -> list[int]:
    """Lines that admit that something is not done."""
    words = re.compile(r"\b(TODO|FIXME|XXX)\b|\braise NotImplementedError\b")
    return [number for number, line in enumerate(source.splitlines(), start=1) if words.search(line)]


def missing_all(source: str) -> list[int]:
    """Line 1 of a module that has public names and no `__all__`, or names in `__all__` that it does not have."""
    body = ast.parse(source).body
    public = {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    declared = [value for node in body for value in _declared(node)]
    return [1] if public and not declared else []


def _declared(node: ast.stmt) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        yield from ast.literal_eval(value) if value is not None else ()


GUARDS: dict[str, Guard] = {
    "environment reads outside settings.py": environment_reads,
    "global statements": globals_,
    "except Exception without a reason beside it": broad_excepts,
    "unfinished work": unfinished,
    "public names without __all__": missing_all,
}
