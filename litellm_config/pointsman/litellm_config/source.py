"""The YAML file with what it includes, merged as LiteLLM merges: lists are joined, every other section is replaced.

The includes are inlined into the effective copy, so that their models too get explicit ids and one file is watched by LiteLLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pointsman.litellm_config.document import Document, Mark, read_document
from pointsman.litellm_config.problems import KeyPath, Problem, key_text

__all__ = ["Source", "read_source"]

MAX_INCLUDES = 100


@dataclass(slots=True)
class Source:
    """Everything that the user wrote.

    Attributes:
        path: the file given.
        value: the merged sections, `include` removed; None when the file itself cannot be parsed.
        files: the file and its includes, each once: what a watcher has to look at.
        problems: found so far; the checks add to it.
    """

    path: Path
    value: dict[str, Any] | None = None
    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _marks: dict[KeyPath, Mark] = field(default_factory=dict)

    def mark(self, key: KeyPath) -> Mark:
        """Where `key` stands; where its nearest parent stands when it is missing."""
        for length in range(len(key), 0, -1):
            found = self._marks.get(key[:length])
            if found is not None:
                return found
        return Mark(self.path, None)

    def problem(
        self, key: KeyPath, code: str, message: str, mend: str, severity: Literal["error", "warning"] = "error"
    ) -> None:
        """Note a problem with the value at `key`."""
        mark = self.mark(key)
        self.problems.append(Problem(mark.path, mark.line, key_text(key), code, message, mend, severity))

    def warn(self, key: KeyPath, code: str, message: str, mend: str) -> None:
        """Note something that does not keep the gateway from starting."""
        self.problem(key, code, message, mend, "warning")

    def absorb(self, document: Document) -> None:
        """Merge one file's sections into what is there."""
        assert document.value is not None  # noqa: S101 - the callers have looked
        if self.value is None:
            self.value = {}
        for section, value in document.value.items():
            if section == "include":
                continue
            marks = {key: mark for key, mark in document.marks.items() if key[:1] == (section,)}
            present = self.value.get(section)
            if isinstance(present, list) and isinstance(value, list):
                shift = len(present)
                self.value[section] = [*present, *value]
                self._marks.update(
                    {
                        (section, key[1] + shift, *key[2:]): m
                        for key, m in marks.items()
                        if len(key) > 1 and isinstance(key[1], int)
                    }
                )
                continue
            if section in self.value:
                first = self.mark((section,))
                self._marks = {key: mark for key, mark in self._marks.items() if key[:1] != (section,)}
                message = f"replaces all of the section that stands in {first.path}:{first.line}; only lists are joined"
                mend = "Keep the section in one file."
                here = document.marks[(section,)]
                self.problems.append(Problem(here.path, here.line, section, "E4203", message, mend, "warning"))
            self.value[section] = value
            self._marks.update(marks)


def read_source(path: Path) -> Source:
    """Read `path` and all that it includes, however nested. Never raises for what files can hold."""
    path = Path(path).absolute()
    source = Source(path, files=[path])
    document = read_document(path)
    source.problems.extend(document.problems)
    if document.value is None:
        return source
    source.absorb(document)
    pending = _includes(document, source)
    seen = {_real(path)}
    while pending:
        entry, declared_in, mark = pending.pop(0)
        included = _resolve(entry, declared_in, path)
        if _real(included) in seen:
            continue
        seen.add(_real(included))
        if len(source.files) > MAX_INCLUDES:
            message = f"more than {MAX_INCLUDES} files are included"
            source.problems.append(Problem(mark.path, mark.line, "include", "E4203", message, "Join some of them."))
            break
        source.files.append(included)
        document = read_document(included)
        for problem in document.problems:
            if problem.line is None:  # the file itself is the problem: tell where it is named
                message = f"{entry}: {problem.message}"
                problem = Problem(mark.path, mark.line, "include", problem.code, message, problem.mend)  # noqa: PLW2901 - replaced
            source.problems.append(problem)
        if document.value is not None:
            source.absorb(document)
            pending.extend(_includes(document, source))
    return source


def _resolve(entry: str, declared_in: Path, root: Path) -> Path:
    """Next to the file that names it; as LiteLLM does, else next to the first file."""
    beside = declared_in.parent / entry
    fallback = root.parent / entry
    try:
        return beside if beside.exists() or not fallback.exists() else fallback
    except (OSError, ValueError):  # a name too long, a NUL, a loop of links: reading it tells
        return beside


def _real(path: Path) -> Path:
    """The same for every name of one file, so that a file is never merged twice."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # as above; Python 3.11 and 3.12 raise RuntimeError for a loop of links
        return path


def _includes(document: Document, source: Source) -> list[tuple[str, Path, Mark]]:
    assert document.value is not None  # noqa: S101 - the callers have looked
    entries = document.value.get("include", [])
    here = document.marks.get(("include",), Mark(document.path, None))
    if not isinstance(entries, list):
        mend = "Write `include: [models.yaml]`."
        source.problems.append(Problem(document.path, here.line, "include", "E4203", "is not a list of files", mend))
        return []
    found: list[tuple[str, Path, Mark]] = []
    for index, entry in enumerate(entries):
        mark = document.marks.get(("include", index), here)
        if isinstance(entry, str) and entry:
            found.append((entry, document.path, mark))
        else:
            key = key_text(("include", index))
            source.problems.append(Problem(mark.path, mark.line, key, "E4203", "is not a file name", "Give a path."))
    return found
