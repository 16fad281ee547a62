"""One YAML file -> plain values, with the line of every key and every problem in it.

PyYAML's own constructor forgets lines, takes the last of duplicate keys in silence, and can be made to build gigabytes from a
few aliases. So the events are composed here, with limits, and only scalars are left to its `SafeLoader`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pointsman.litellm_config.problems import KeyPath, Problem, key_text

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "Document", "Mark", "read_document"]

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64
MAX_VALUES = 200_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAP, _SEQUENCE, _MERGE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:merge"
# What PyYAML's scalar constructors raise for text that its resolver took for a number, a date or a tagged value.
_SCALAR_ERRORS = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file."""

    path: Path
    line: int | None


@dataclass(slots=True)
class Document:
    """A parsed file. `value` is None when it could not be parsed at all; then `problems` says why."""

    path: Path
    value: dict[str, Any] | None = None
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _RefusedError(Exception):
    """The file is not read any further."""

    def __init__(self, line: int | None, message: str, mend: str) -> None:
        self.line, self.message, self.mend = line, message, mend
        super().__init__(message)


def read_document(path: Path) -> Document:
    """Read and parse one file. Never raises for anything that a file can hold."""
    document = Document(path)
    try:
        text = _read_text(path)
        node = _compose(text)
        if node is None:
            raise _RefusedError(None, "the file is empty", "`pointsman init` writes a configuration to start from.")
        builder = _Builder(document)
        value = builder.build(node, (), 0)
        if not isinstance(value, dict):
            raise _RefusedError(1, "the file is not a mapping of sections", "Begin with `model_list:` at the left margin.")
        document.value = value
    except _RefusedError as refused:
        document.problems.append(Problem(path, refused.line, "", "E4201", refused.message, refused.mend))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        context = getattr(error, "context", None)
        message = f"not valid YAML: {what}" + (f" ({context})" if context else "")
        mend = "Check indentation, quotes and colons there; tabs may not indent."
        document.problems.append(Problem(path, mark.line + 1 if mark else None, "", "E4201", message, mend))
    return document


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise _RefusedError(None, "that is a directory", "Give the YAML file inside it.")
        if not path.exists():
            raise _RefusedError(None, "no such file", "Check the path; `pointsman init` writes a configuration to start from.")
        if not path.is_file():
            raise _RefusedError(None, "that is no regular file", "Give a YAML file.")
        if path.stat().st_size > MAX_BYTES:
            raise _RefusedError(None, f"over {MAX_BYTES // 2**20} MiB is no configuration", "Give the YAML file.")
        raw = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise _RefusedError(None, f"cannot be read: {reason}", "Check the file's owner, mode and directory.") from error
    except ValueError as error:  # a NUL in the path
        raise _RefusedError(None, "that is no file name", "Give the YAML file.") from error
    if b"\0" in raw:
        raise _RefusedError(None, "the file is binary", "Give a YAML file, in UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _RefusedError(line, "the file is not in UTF-8", "Save it as UTF-8.") from error


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        loader.get_event()  # stream start
        if loader.check_event(yaml.StreamEndEvent):
            return None
        loader.get_event()  # document start
        node = _compose_node(loader, {}, 0)
        loader.get_event()  # document end
        if not loader.check_event(yaml.StreamEndEvent):
            line = loader.peek_event().start_mark.line + 1
            raise _RefusedError(line, "there is more than one document", "Remove the `---` and what follows, or merge it.")
        return node
    finally:
        loader.dispose()


def _compose_node(loader: Any, anchors: dict[str, yaml.Node], depth: int) -> yaml.Node:
    event: Any = loader.get_event()
    start: Any = event.start_mark
    end: Any = event.end_mark
    line = start.line + 1
    if depth > MAX_DEPTH:
        raise _RefusedError(line, f"nested more than {MAX_DEPTH} levels deep", "Flatten it.")
    node: yaml.Node
    if isinstance(event, yaml.AliasEvent):
        # An anchor counts from its node's end, so no value can hold itself.
        if event.anchor not in anchors:
            raise _RefusedError(line, f"*{event.anchor} stands before or inside its anchor, or has none", "Define it above.")
        return anchors[event.anchor]
    if isinstance(event, yaml.ScalarEvent):
        tag = event.tag
        if tag is None or tag == "!":
            tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        node = yaml.ScalarNode(tag, event.value, start, end)
    elif isinstance(event, yaml.SequenceStartEvent):
        items: list[yaml.Node] = []
        while not loader.check_event(yaml.SequenceEndEvent):
            items.append(_compose_node(loader, anchors, depth + 1))
        loader.get_event()
        node = yaml.SequenceNode(event.tag or _SEQUENCE, items, start, end)
    else:
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        while not loader.check_event(yaml.MappingEndEvent):
            key = _compose_node(loader, anchors, depth + 1)
            pairs.append((key, _compose_node(loader, anchors, depth + 1)))
        loader.get_event()
        node = yaml.MappingNode(event.tag or _MAP, pairs, start, end)
    if event.anchor:
        anchors[event.anchor] = node
    return node


class _Builder:
    """Nodes -> values, noting lines and problems."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._scalars = _Loader("")
        self._count = 0

    def build(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > MAX_VALUES or depth > 2 * MAX_DEPTH:
            raise _RefusedError(line, "the aliases unfold to too many values", "Use fewer `*aliases` within anchors.")
        self._document.marks.setdefault(path, Mark(self._document.path, line))
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, _MAP, path)
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, _SEQUENCE, path)
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: dict[str, int] = {}
        merged = [value for key, value in node.value if key.tag == _MERGE]
        for source in merged:
            sources = source.value if isinstance(source, yaml.SequenceNode) else [source]
            for mapping in reversed(sources):  # of several, the first wins
                if isinstance(mapping, yaml.MappingNode):
                    result.update(self._mapping(mapping, path, depth + 1))
                else:
                    self._problem(
                        mapping, path, "E4203", "`<<` merges mappings, and this is none", "Give an alias of a mapping."
                    )
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            line = key_node.start_mark.line + 1
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in own:
                message = f"the key stands twice; the first is in line {own[key]}"
                self._problem(key_node, here, "E4203", message, "Remove one of the two, or merge them.")
            own[key] = line
            self._document.marks[here] = Mark(self._document.path, line)
            result[key] = self.build(value_node, here, depth + 1)
        return result

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, path, "E4203", "a key is a list or mapping", "Write a word as key; quote it if it has { or [.")
            return None
        return str(node.value)

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            return self._scalars.construct_object(node)
        except _SCALAR_ERRORS:
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            if tag == node.tag:
                message, mend = f"the tag {tag} is not allowed", "Remove it; write the value itself."
            else:
                message, mend = f"{str(node.value)[:40]!r} looks like a {tag}, but is none", "Quote it if it is text."
            self._problem(node, path, "E4203", message, mend)
            return None

    def _check_tag(self, node: yaml.Node, wanted: str, path: KeyPath) -> None:
        if node.tag not in {wanted, "!"}:
            self._problem(node, path, "E4203", f"the tag {node.tag} is not allowed", "Remove it.")

    def _problem(self, node: yaml.Node, path: KeyPath, code: str, message: str, mend: str) -> None:
        line = node.start_mark.line + 1
        self._document.problems.append(Problem(self._document.path, line, key_text(path), code, message, mend))
