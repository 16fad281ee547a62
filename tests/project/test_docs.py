"""The documentation is true: its links lead somewhere, its commands are run by tests, its generated pages are fresh."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import yaml

from pointsman.errors import CATALOGUE, PointsmanError
from support.docs import Block, anchors, blocks, broken_links, commands, pages
from support.marks import ROOT
from support.pages import PAGES, stale

# Pages whose commands tests/project/test_guides.py runs one after the other, as they are printed.
FOLLOWED = {"docs/quickstart.md", "docs/strategies.md"}
# Every other command that a page shows, and what runs it: a test (path::name), or a file that holds the command.
RUN_BY: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text(encoding="utf-8"))
CONSOLE = [
    (block, command)
    for page in pages()
    if str(page.relative_to(ROOT)) not in FOLLOWED
    for block in blocks(page)
    if block.language == "console"
    for command in commands(block)
]


def _tests(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_generated_pages_are_fresh() -> None:
    assert stale() == [], "run `make docs` and commit what it writes"


def test_every_error_code_is_on_the_page_once() -> None:
    page = PAGES["docs/errors.md"]()
    assert [code for code in CATALOGUE if page.count(f"| {code} |") != 1] == []
    assert {error.default_code for error in PointsmanError.__subclasses__()} <= set(CATALOGUE)


def test_every_command_shown_is_run_by_a_test() -> None:
    assert [f"{block.where}: {command}" for block, command in CONSOLE if command not in RUN_BY] == []


def test_the_pages_that_are_followed_are_followed() -> None:
    source = Path(__file__).with_name("test_guides.py").read_text(encoding="utf-8")
    assert [page for page in FOLLOWED if f'follow("{page}")' not in source] == []


def test_the_table_of_commands_is_true() -> None:
    assert set(RUN_BY) == {command for _, command in CONSOLE}
    for command, runners in RUN_BY.items():
        assert runners, command
        for runner in runners:
            path, _, name = runner.partition("::")
            if name:
                assert name in _tests(path), f"{command}: {runner}"
            else:
                assert command in (ROOT / path).read_text(encoding="utf-8"), f"{command}: {runner}"


@pytest.mark.parametrize("block", [block for page in pages() for block in blocks(page)], ids=lambda block: block.where)
def test_code_blocks_are_of_a_language_that_can_be_held_to_something(block: Block) -> None:
    """Shell goes into `console` blocks, where it is seen above; the rest must at least be well-formed."""
    if block.language == "python":
        compile(block.text, block.where, "exec")
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        assert yaml.safe_load(block.text) is not None
    elif block.language == "console":
        assert commands(block), f"{block.where}: no line begins with `$ `"
    else:
        assert block.language in {"text", "mermaid", "jsonl"}, block.where


def test_links_and_commands_are_read_as_they_are_shown(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# One `two`: three\n\n[a](#one-two-three) [b](#four) [c](b.md) [d](https://example.org/x)\n\n"
        "```console\n$ make up \\\n    ARGS='-h'\noutput\n$ make test\n```\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["#four", "b.md"]
    assert [command for block in blocks(page) for command in commands(block)] == ["make up ARGS='-h'", "make test"]
    assert anchors("# A B-c\n```\n# not me\n```\n") == {"a-b-c"}
