"""`llm_data_path`: LLMRouter's metadata of candidates (JSON), and whose deployments they are.

An object of candidates: `{"name": {"model": ..., "size": "7B", "input_price": ..., "output_price": ..., "feature": ...,
"embedding": [...]}}`; prices are US dollars for a million tokens, further keys are LLMRouter's own and passed over.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsman.litellm_config.models import Deployment
from pointsman.litellm_config.problems import KeyPath, Problem
from pointsman.litellm_config.source import Source
from pointsman.overrides import closest
from pointsman.settings import PointsmanSettings
from pointsman.strategies.matching import Names, names_of

__all__ = ["Candidates", "aliases_of", "check_candidates", "parse_size", "read_candidates"]

MAX_BYTES = 64 * 2**20
SIZE = re.compile(r"(?:(\d+(?:\.\d+)?)\s*x\s*)?(\d+(?:\.\d+)?)\s*([KMBT])", re.IGNORECASE)
_BILLIONS = {"k": 1e-6, "m": 1e-3, "b": 1.0, "t": 1e3}
_SPACE = re.compile(r"[ \t\n\r]*")
_MEND = 'Give LLMRouter\'s llm_data JSON: {"name": {"model": ..., "input_price": ...}, ...}.'


def parse_size(value: object) -> float | None:
    """Billions of parameters of `7B`, `1.5b`, `350M`, `8x7B`, or of a number, which counts billions; else None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) and value > 0 else None
    match = SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    return float(match[1] or 1) * float(match[2]) * _BILLIONS[match[3].lower()] or None


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a file says.

    Attributes:
        entries: name -> its values.
        lines: name -> line of the file, and (name, key) -> line.
        twice: names, and (name, key), that stand twice; the last counts.
    """

    entries: Mapping[str, Mapping[str, Any]]
    lines: Mapping[str | tuple[str, str], int]
    twice: tuple[str | tuple[str, str], ...]


def read_candidates(file: Path) -> Candidates:
    """Read a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or no object of objects; the message says so.
    """
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"is over the limit of {MAX_BYTES} bytes")
    try:
        text = file.read_text("utf-8")
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ValueError("is not an object of candidates")
    lines: dict[str | tuple[str, str], int] = {}
    twice: list[str | tuple[str, str]] = []
    count = _Lines(text)
    for name, at, value_at in _members(text, _SPACE.match(text).end()):  # type: ignore[union-attr] # it matches nothing, too
        twice += [name] if name in lines else []
        lines[name] = count(at)
        for key, place, _ in _members(text, value_at):
            twice += [(name, key)] if lines.get((name, key), 0) >= count(at) else []
            lines[name, key] = count(place)
    return Candidates(data, lines, tuple(twice))


class _Lines:
    """Line of a place in a text; places are asked for in about rising order."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def __call__(self, place: int) -> int:
        return bisect.bisect_right(self._starts, place)


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Key, its place, and its value's place, of each member of the object at `at`; the text is valid JSON."""
    decoder = json.JSONDecoder()

    def skip(place: int) -> int:
        return _SPACE.match(text, place).end()  # type: ignore[union-attr] # it matches nothing, too

    at = skip(at + 1)
    while text[at] != "}":
        key, end = decoder.raw_decode(text, at)
        value_at = skip(skip(end) + 1)
        yield key, at, value_at
        _, end = decoder.raw_decode(text, value_at)
        at = skip(end)
        if text[at] == ",":
            at = skip(at + 1)


def aliases_of(candidates: Candidates) -> dict[str, str]:
    """Candidate's name -> the model that it stands for, where the file names one."""
    return {name: entry["model"] for name, entry in candidates.entries.items() if entry.get("model")}


def check_candidates(
    source: Source,
    settings: PointsmanSettings,
    deployments: Iterable[Deployment],
    where: Callable[[str], KeyPath],
) -> None:
    """Note what is wrong with each strategy's `llm_data_path`: values, and names that do not fit the deployments.

    Args:
        source: takes the problems, with the line of the JSON file.
        settings: valid settings, with absolute paths.
        deployments: usable entries of `model_list`.
        where: strategy -> where its `llm_data_path` stands.
    """
    deployments = list(deployments)
    for name, strategy in settings.strategies.items():
        if strategy.llm_data_path is None:
            continue
        file = Path(strategy.llm_data_path)
        try:
            candidates = read_candidates(file)
        except OSError as error:
            source.problem(where(name), "E4203", f"{file} cannot be read: {error.strerror or type(error).__name__}", _MEND)
        except ValueError as error:
            source.problem(where(name), "E4203", f"{file} {error}", _MEND)
        else:
            report = _Report(source, file, candidates)
            _check_values(report)
            if not report.failed:
                _check_names(report, name, settings, deployments)


class _Report:
    """Notes problems where they stand in the JSON file."""

    def __init__(self, source: Source, file: Path, candidates: Candidates) -> None:
        self.source, self.file, self.candidates, self.failed = source, file, candidates, False

    def error(self, name: str, key: str | None, message: str, mend: str, *, warns: bool = False) -> None:
        lines = self.candidates.lines
        line = lines.get((name, key)) if key is not None else None
        where = name if key is None else f"{name}.{key}"
        severity = "warning" if warns else "error"
        self.failed = self.failed or not warns
        self.source.problems.append(
            Problem(self.file, line or lines.get(name), where, "E4206" if warns else "E4203", message, mend, severity)  # type: ignore[arg-type]
        )


def _check_values(report: _Report) -> None:
    for place in report.candidates.twice:
        name, key = (place, None) if isinstance(place, str) else place
        report.error(name, key, "stands twice in the file", "Keep one of the two.")
    seen: dict[str, str] = {}
    length: int | None = None
    for name, entry in report.candidates.entries.items():
        model = entry.get("model")
        if model is not None and (not isinstance(model, str) or not model.strip()):
            report.error(name, "model", "is not a name", "Give a deployment's model or id, or leave it out.")
        elif model is not None and seen.setdefault(model, name) != name:
            mend = "Two candidates cannot be one deployment: give each its own model."
            report.error(name, "model", f"{model!r} is already the model of {seen[model]!r}", mend)
        for key in ("input_price", "output_price"):
            value = entry.get(key)
            good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
            if value is not None and not good:
                report.error(name, key, "is not a price", "Give US dollars for a million tokens: 0 or more.")
        if entry.get("size") is not None and parse_size(entry["size"]) is None:
            report.error(name, "size", f"{str(entry['size'])[:40]!r} is not a size", 'Write "7B", "350M" or "8x7B".')
        if entry.get("feature") is not None and not isinstance(entry["feature"], str):
            report.error(name, "feature", "is not text", "Give a description in words, or leave it out.")
        vector = entry.get("embedding")
        if vector is not None:
            good = isinstance(vector, list) and bool(vector) and all(_is_number(one) for one in vector)
            if not good or length not in (None, len(vector)):
                message = "is not a list of numbers" if not good else f"has {len(vector)} numbers, another candidate's {length}"
                report.error(name, "embedding", message, "Give each candidate a vector by the same encoder.")
            else:
                length = len(vector)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_names(report: _Report, strategy: str, settings: PointsmanSettings, deployments: list[Deployment]) -> None:
    """Candidates that are no deployment, and deployments of the strategy's groups that are no candidate."""
    entries, aliases = report.candidates.entries, {**aliases_of(report.candidates), **settings.routing.candidates}
    names = Names(tuple(entries), aliases)
    groups = [item.group for item in deployments]
    routing, served = settings.routing, set()
    for item in deployments:
        mine = names_of(item.model_id or item.model, item.model, item.base_model)
        found = names.find(mine)
        if found is not None:
            served.add(found)
            if names.exact(mine) is None:
                message = f"is taken for {item.model!r}, which is the same but for case or provider"
                mend = f'Write "model": "{item.model}" to say so.'
                report.error(found, "model", message, mend, warns=True)
        elif routing.groups.get(item.group, routing.default) == strategy and groups.count(item.group) > 1:
            guess = closest(item.model.rpartition("/")[2], entries)
            report.source.warn(
                ("model_list", item.index, "litellm_params", "model"),
                "E4206",
                f"{report.file} has no candidate {item.model!r}: {strategy} does not choose this deployment",
                f"Did you mean the candidate {guess!r}? Give it this model." if guess else "Add it to the file.",
            )
    models = {item.model for item in deployments}
    for name in entries:
        if name not in served:
            wanted = aliases.get(name, name)
            guess = closest(wanted, models)
            mend = f"Did you mean {guess}?" if guess else "Give the `litellm_params.model` or `model_info.id` of a deployment."
            key = "model" if entries[name].get("model") else None
            report.error(name, key, f"no deployment is {wanted!r}; {strategy} cannot choose it", mend, warns=True)
