"""The engine's conformance suite on a second engine: `--native-engine PATH` names Prisma's own, and the answers are compared.

prisma-client-py 0.11 was made for Prisma 5.4.2 and reads raw rows as that engine writes them, so that is the one to compare
with. Without the option only our engine is tested, against Prisma's documentation, and the run says so at its end.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prisma import Prisma
from prisma.engine import QueryEngine

__all__ = ["NOT_COMPARED", "Answer", "RecordingClient", "compare", "differences", "neutral_id", "sides"]

Answer = tuple[str, str]
NOT_COMPARED = "The answers were NOT compared with Prisma's native engine: no --native-engine PATH was given."

_FIRST = pytest.StashKey[dict[str, list[Answer]]]()
_MADE_UP = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}|\bc[0-9a-z]{24}\b")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-engine", default="", help="Prisma's query engine, to run the conformance suite on as well")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--native-engine")
    if path and not Path(path).is_file():
        raise pytest.UsageError(f"--native-engine: there is no file {path!r}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "side" in metafunc.fixturenames:
        metafunc.parametrize("side", sides(metafunc.config), indirect=True, scope="session")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    ran = any(
        "tests/engine/test_conformance" in report.nodeid
        for reports in terminalreporter.stats.values()
        for report in reports
        if hasattr(report, "nodeid")
    )
    if ran and not config.getoption("--native-engine"):
        terminalreporter.write_sep("!", "engine conformance", yellow=True, bold=True)
        terminalreporter.write_line(NOT_COMPARED, yellow=True, bold=True)


def sides(config: pytest.Config) -> list[str]:
    """The engines that the suite runs on."""
    return ["ours", "native"] if config.getoption("--native-engine") else ["ours"]


class _RecordingEngine(QueryEngine):  # type: ignore[misc] # generated code, not read by mypy
    """Prisma-client-py's link to an engine; keeps what was asked and answered."""

    def __init__(self, answers: list[Answer], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._answers = answers

    async def request(self, method: Any, path: str, *, content: Any = None, **arguments: Any) -> Any:
        recorded = method == "POST" and not path.startswith("/transaction")
        try:
            answer = await super().request(method, path, content=content, **arguments)
        except Exception as error:
            if recorded:
                code = getattr(error, "code", None)
                self._answers.append((_neutral(str(content)), f"{type(error).__name__} {code}"))
            raise
        if recorded:
            neutral = _in_one_order(json.loads(_neutral(json.dumps(answer, ensure_ascii=False))))
            self._answers.append((_neutral(str(content)), json.dumps(neutral, sort_keys=True, ensure_ascii=False)))
        return answer


class RecordingClient(Prisma):  # type: ignore[misc]
    """The generated client, with `answers`: every query and what came back, free of what no two engines would give alike."""

    def __init__(self, url: str) -> None:
        super().__init__(datasource={"url": url})
        self.answers: list[Answer] = []

    def _create_engine(self, dml_path: Path | None = None) -> Any:
        assert dml_path is not None
        return _RecordingEngine(self.answers, dml_path=dml_path, log_queries=self._log_queries, **self._http_config)


def _in_one_order(value: Any) -> Any:
    """With rows in one order: SQL gives them in any, where none was asked for; where one was, the tests look at it."""
    if isinstance(value, dict):
        return {key: _in_one_order(inner) for key, inner in value.items()}
    if isinstance(value, list):
        inside = [_in_one_order(inner) for inner in value]
        rows = inside and all(isinstance(inner, dict) for inner in inside)
        return sorted(inside, key=lambda row: json.dumps(row, sort_keys=True)) if rows else inside
    return value


def _neutral(text: str) -> str:
    """Without ids that an engine made up and the time of day."""
    now = datetime.now(UTC).date()
    near = {(now + timedelta(days=days)).isoformat() for days in (-1, 0, 1)}
    return _TIME.sub(lambda match: "<now>" if match[1] in near else match[0], _MADE_UP.sub("<id>", text))


def differences(ours: list[Answer], native: list[Answer]) -> list[str]:
    """What the engines answered differently; queries that ran at once may have come in any order."""
    found = []
    for mine, other in zip(sorted(ours), sorted(native), strict=False):
        if mine != other:
            found.append(
                f"asked: {mine[0]}\nours answered:   {mine[1]}\nnative, asked: {other[0]}\nnative answered: {other[1]}"
            )
    if len(ours) != len(native):
        found.append(f"{len(ours)} queries on ours, {len(native)} on the native engine")
    return found


def neutral_id(side: str, nodeid: str) -> str:
    """A test's id without the engine's name in it."""
    return re.sub(rf"\b{side}\b-?", "", nodeid)


def compare(config: pytest.Config, side: str, nodeid: str, answers: list[Answer]) -> None:
    """Keep the answers of the first engine; fail where those of the second are not the same.

    Hypothesis' examples are the same on both only when it is told not to be random (`derandomize`).
    """
    first = config.stash.setdefault(_FIRST, {})
    test = neutral_id(side, nodeid)
    if side == "ours":
        if len(sides(config)) > 1:
            first[test] = answers
    elif test in first and (found := differences(first.pop(test), answers)):
        pytest.fail(f"{len(found)} answers are not the native engine's; the first:\n{found[0]}", pytrace=False)
