"""Training data, plain or gzipped, in one of three shapes. JSON lines:

- ours, a line a prompt: `{"query": "...", "scores": {"model": 0..1}, "id": ..., "task": ..., "costs": {"model": dollars},
  "user": ...}`, of which `id`, `task`, `costs` and `user` may be absent;
- LLMRouter's routing data, a line a prompt and model: `{"query": "...", "model_name": "...", "performance": 0..1}`, of which
  the lines of one query (and `user_id`, where there is one) become one prompt; a model that stands there several times counts
  with its mean.

Or one JSON array, LLMRouter's data for RouterDC: `[{"question": "...", "scores": {"model": 0..1}, "cluster_id": ...}]`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointsman.errors import BundleError
from pointsman.strategies.base import Matrix
from pointsman.strategies.files import strict_json

__all__ = ["Dataset", "read_dataset", "read_queries"]

MAX_LINE = 4 * 2**20
MAX_SHOWN = 20
MIN_ROWS = 10


@dataclass(frozen=True, slots=True)
class Dataset:
    """n prompts and m models.

    Attributes:
        queries: n texts.
        tasks: n labels; empty where there was none.
        models: m names, sorted.
        scores: float32 (n, m) in [0, 1]; 0 where not known.
        known: bool (n, m).
        costs: float64 (n, m), US dollars, NaN where not known; None if no line told any.
        sha256: of the file as it lies on disk.
        users: n names, None where nobody was told; None if no line told any.
    """

    queries: tuple[str, ...]
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    scores: Matrix
    known: NDArray[np.bool_]
    costs: NDArray[np.float64] | None
    sha256: str
    users: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: NDArray[np.intp]) -> Dataset:
        """Some of the rows."""
        return Dataset(
            tuple(self.queries[row] for row in rows),
            tuple(self.tasks[row] for row in rows),
            self.models,
            self.scores[rows],
            self.known[rows],
            None if self.costs is None else self.costs[rows],
            self.sha256,
            None if self.users is None else tuple(self.users[row] for row in rows),
        )


@dataclass(slots=True)
class _Row:
    query: str
    task: str
    user: str | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)


class _LineError(ValueError):
    pass


def read_dataset(path: Path) -> Dataset:
    """Read and check a file.

    Raises:
        BundleError: E4320, with every line that is wrong (the first 20 in words), or what else makes it unusable.
    """
    raw = _read(path)
    rows: dict[str, _Row] = {}
    problems: list[str] = []
    shape: str | None = None
    for number, line in _values(raw, path):
        try:
            value = _parse(line) if isinstance(line, bytes) else _from_array(line)
            found = "LLMRouter's" if "model_name" in value else "ours"
            shape = shape or found
            if found != shape:
                raise _LineError(f"this line has the shape {found!r}, the lines before it {shape!r}")
            (_add_pair if found == "LLMRouter's" else _add_prompt)(rows, value, number)
        except _LineError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        shown = "; ".join(problems[:MAX_SHOWN])
        more = f"; and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        raise _error(f"{len(problems)} bad lines: {shown}{more}", path, "correct or remove these lines")
    return _assemble(list(rows.values()), hashlib.sha256(raw).hexdigest(), path)


def read_queries(path: Path, limit: int) -> tuple[list[str], list[str | None], str]:
    """The first `limit` different queries of a file, with their users (`user` or `user_id`, or None), and its sha256.

    The file may have either shape, or LLMRouter's query format; only `query` is wanted.

    Raises:
        BundleError: E4320.
    """
    raw = _read(path)
    found: dict[tuple[str, str | None], None] = {}
    for number, line in enumerate(_lines(raw, path), 1):
        if not line.strip():
            continue
        try:
            value = _parse(line)
            found[_query(value), _user(value.get("user", value.get("user_id")))] = None
        except _LineError as error:
            raise _error(f"line {number}: {error}", path, "correct or remove this line") from error
        if len(found) >= limit:
            break
    return [query for query, _ in found], [user for _, user in found], hashlib.sha256(raw).hexdigest()


def _error(message: str, path: Path, mend: str | None = None) -> BundleError:
    return BundleError(message, code="E4320", where=str(path), mend=mend)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _error(f"the file cannot be read: {error.strerror or error}", path, "check the path") from error


def _lines(raw: bytes, path: Path) -> Iterator[bytes]:
    stream: io.BufferedIOBase = io.BytesIO(raw)
    if raw[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=stream)
    try:
        yield from iter(lambda: stream.readline(MAX_LINE + 1), b"")
    except (EOFError, OSError, zlib.error) as error:
        raise _error(f"the gzip file is damaged or cut: {error}", path, "copy it again") from error


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise _LineError(f"longer than {MAX_LINE} bytes")
    try:
        value = strict_json(line)
    except ValueError as error:
        raise _LineError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _LineError("not a JSON object")
    return value


def _values(raw: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered: the lines that are not empty, as bytes; or, where the file is a JSON array, its items."""
    lines = _lines(raw, path)
    for number, line in enumerate(lines, 1):
        if number == 1 and line.strip().startswith(b"["):
            try:
                items = strict_json(b"".join((line, *lines)))
            except ValueError as error:
                raise _error(f"not JSON: {error}", path) from error
            yield from enumerate(items, 1)
        elif line.strip():
            yield number, line


def _from_array(item: Any) -> dict[str, Any]:
    """An item of RouterDC's array, in our shape."""
    if not isinstance(item, dict) or "question" not in item:
        raise _LineError("an item of the array must be an object with `question` and `scores`")
    return {"query": item["question"], "scores": item.get("scores"), "task": item.get("task_name")}


def _query(value: dict[str, Any]) -> str:
    query = value.get("query")
    if not isinstance(query, str) or not query.strip():
        raise _LineError("`query` must be a text that is not empty")
    return query


def _number(value: object, name: str, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= high:
        raise _LineError(f"{name} must be a number from 0 to {high:g}, not {value!r}"[:200])
    return float(value)


def _model(name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= 256:
        raise _LineError(f"a model's name must be a text of 1 to 256 characters, not {name!r}"[:200])
    return name


def _user(name: object) -> str | None:
    if name is None or name == "":
        return None
    if isinstance(name, bool) or not isinstance(name, str | int) or len(str(name)) > 256:
        raise _LineError(f"a user must be a text of up to 256 characters, or a number, not {name!r}"[:200])
    return str(name)


def _add_prompt(rows: dict[str, _Row], value: dict[str, Any], number: int) -> None:
    query, scores, costs = _query(value), value.get("scores"), value.get("costs", {})
    if not isinstance(scores, dict) or not scores:
        raise _LineError("`scores` must be an object with a score for at least one model")
    if not isinstance(costs, dict):
        raise _LineError("`costs` must be an object")
    row = _Row(query, str(value.get("task") or ""), _user(value.get("user")))
    row.scores = {_model(model): [_number(score, f"the score of {model!r}", 1)] for model, score in scores.items()}
    row.costs = {_model(model): _number(cost, f"the cost of {model!r}", 1e6) for model, cost in costs.items()}
    rows[f"line {number}"] = row  # the same prompt twice is two observations


def _add_pair(rows: dict[str, _Row], value: dict[str, Any], number: int) -> None:
    query, model = _query(value), _model(value.get("model_name"))
    user = _user(value.get("user_id"))
    row = rows.setdefault(f"{user or ''}\0{query}", _Row(query, str(value.get("task_name") or ""), user))
    row.scores.setdefault(model, []).append(_number(value.get("performance"), "`performance`", 1))


def _assemble(rows: list[_Row], sha256: str, path: Path) -> Dataset:
    models = tuple(sorted({model for row in rows for model in row.scores}))
    if len(rows) < MIN_ROWS:
        raise _error(f"{len(rows)} prompts are too few; at least {MIN_ROWS} are needed", path, "collect more")
    if len(models) < 2:
        raise _error(f"only one model ({models[0]!r}): there is nothing to choose", path, "add scores of another model")
    column = {model: number for number, model in enumerate(models)}
    scores, known = np.zeros((len(rows), len(models)), np.float32), np.zeros((len(rows), len(models)), np.bool_)
    costs = np.full(scores.shape, np.nan)
    for number, row in enumerate(rows):
        for model, values in row.scores.items():
            scores[number, column[model]] = sum(values) / len(values)
            known[number, column[model]] = True
        for model, cost in row.costs.items():
            if model in column:
                costs[number, column[model]] = cost
    return Dataset(
        tuple(row.query for row in rows),
        tuple(row.task for row in rows),
        models,
        scores,
        known,
        None if bool(np.isnan(costs).all()) else costs,
        sha256,
        tuple(row.user for row in rows) if any(row.user is not None for row in rows) else None,
    )
