"""`pointsman strategies score`: what a bundle says to each query of a file, as JSON lines, so that anyone can judge it."""

from __future__ import annotations

import gzip
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pointsman.errors import ConfigError, SourceError
from pointsman.strategies.bundle import Bundle
from pointsman.strategies.files import strict_json

__all__ = ["Question", "read_queries", "score"]

MAX_LINE = 16 * 2**20
"""Bytes of one line; a file without line ends must not fill the memory."""

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Question:
    """One line: what stands as its `id` (the line's number where there is none), its text, and who asks."""

    id: Any
    text: str
    user: str | None


def read_queries(path: str) -> Iterator[Question]:
    """The queries of a file of JSON lines (.gz: unpacked), or of standard input (`-`), one at a time.

    A line is an object with `query`, and, if it likes, `id` (text or number) and `user`; what else stands in it is passed over.
    Empty lines are, too.

    Raises:
        ConfigError: E4203, with the line's number. SourceError: the file cannot be read.
    """
    where = "standard input" if path == STDIN else path
    try:
        stream: IO[bytes] = sys.stdin.buffer if path == STDIN else Path(path).open("rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise SourceError("the file does not exist", code="E4404", where=where) from error
    except OSError as error:
        raise SourceError(f"the file cannot be read: {error.strerror or error}", where=where) from error
    try:
        if path.endswith(".gz"):
            stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]  # reads as any binary file does
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
            if line.strip():
                yield _question(line, number, f"{where}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"the file cannot be read: {error}", where=where) from error
    finally:
        if path != STDIN:
            stream.close()


def _question(line: bytes, number: int, where: str) -> Question:
    def wrong(message: str) -> ConfigError:
        return ConfigError(
            message,
            code="E4203",
            where=where,
            mend='a line is {"query": "...", "id": ..., "user": "..."}; the last two are optional',
        )

    if len(line) > MAX_LINE:
        raise wrong(f"the line is longer than {MAX_LINE} bytes")
    try:
        value = strict_json(line)
    except ValueError as error:
        raise wrong(f"the line is not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("query"), str):
        raise wrong("the line has no `query` that is text")
    name, user = value.get("id"), value.get("user")
    if isinstance(name, bool) or not isinstance(name, str | int | float | None):
        raise wrong("`id` is neither text nor a number")
    if not isinstance(user, str | None):
        raise wrong("`user` is no text")
    return Question(number if name is None else name, value["query"], user)


def score(bundle: Bundle, questions: Iterator[Question], batch: int = 1) -> Iterator[dict[str, Any]]:
    """For each query `{"id", "scores": {model: float}, "pick", "us"}`.

    Args:
        bundle: loaded.
        questions: read as they are needed.
        batch: queries that are scored at once.

    `pick` has the highest score, of equals the first in the bundle. `us`: microseconds of the decision alone, from text to
    pick; with a batch each query's share of its batch.
    """
    bundle.score("")  # tables that are made at the first use, once a process, are no decision's
    while group := list(islice(questions, batch)):
        started = time.perf_counter_ns()
        rows = bundle.score_batch([question.text for question in group], [question.user for question in group])
        picks = rows.argmax(axis=1).tolist()
        us = (time.perf_counter_ns() - started) / 1000 / len(group)
        for question, row, pick in zip(group, rows.tolist(), picks, strict=True):
            scores = dict(zip(bundle.models, row, strict=True))
            yield {"id": question.id, "scores": scores, "pick": bundle.models[pick], "us": round(us, 1)}
