"""What the documentation says: its links, its anchors, its code blocks. Reads Markdown as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.files import files
from support.marks import ROOT

__all__ = ["Block", "anchors", "blocks", "broken_links", "commands", "pages"]

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced code block: where it begins, its language, what is in it."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def pages() -> tuple[Path, ...]:
    """All Markdown files of the repository."""
    return files("*.md")


def blocks(path: Path) -> Iterator[Block]:
    """The code blocks of a page."""
    text = path.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Block(path, text.count("\n", 0, match.start()) + 1, match["language"], match["text"])


def commands(block: Block) -> list[str]:
    """The commands of a `console` block, its lines that begin with `$ `; a line ended by a backslash goes on."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    return [re.sub(r"\s+", " ", line.strip()[2:]).strip() for line in joined.splitlines() if line.strip().startswith("$ ")]


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings can be reached by."""
    headings = re.findall(r"^#{1,6} +(.*?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading)).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """The links of a page that lead to no file or no heading. Other sites' are not followed: there may be no network."""
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    broken = []
    for match in LINK.finditer(prose):
        target, _, fragment = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (fragment and fragment not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(match["target"])
    return broken
