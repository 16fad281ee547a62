"""`--native-engine` works: the suite runs on a second engine too, answers are compared, and a run without it says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prisma import Json, errors

from engine import stand_in_engine
from engine.harness import EngineThread, eventually
from support.marks import ROOT
from support.native import NOT_COMPARED, RecordingClient, differences

FILES = "tests/engine/test_conformance_"


async def _ask(binary: str, url: str) -> list[tuple[str, str]]:
    """Some of everything, by a client that starts its engine itself; the answers."""
    os.environ["PRISMA_QUERY_ENGINE_BINARY"] = binary
    client = RecordingClient(url)
    await client.connect()
    try:
        await client.litellm_workflowrun.create(data={"run_id": "a", "workflow_type": "t", "input": Json({"a": [1, None]})})
        await client.litellm_workflowrun.find_many(where={"input": {"path": ["a", "0"], "equals": Json(1)}})
        with pytest.raises(errors.UniqueViolationError):
            await client.litellm_workflowrun.create(data={"run_id": "a", "workflow_type": "t"})
        await client.litellm_budgettable.create(data={"created_by": "a", "updated_by": "a"})  # an id that it makes up
        async with client.tx() as tx:
            await tx.execute_raw('UPDATE "LiteLLM_WorkflowRun" SET status = $1', "done")
        await client.query_raw('SELECT status, now() AS now, 9007199254740993::bigint AS big FROM "LiteLLM_WorkflowRun"')
        return client.answers
    finally:
        await client.disconnect()


@pytest.mark.conformance("Comparison", "a second engine's answers")
async def test_two_engines_on_two_databases_give_the_same_answers(
    new_database: Callable[[], str], own_engine: Any, tmp_path: Path
) -> None:
    ours: EngineThread = own_engine(new_database())
    mine = await _ask(ours.engine.environment["PRISMA_QUERY_ENGINE_BINARY"], ours.url)
    other = await _ask(str(stand_in_engine.write(tmp_path / "query-engine")), new_database())
    assert len(mine) == 6
    assert differences(mine, other) == []
    # The port of the first client goes with it; the second one's was never ours.
    eventually(lambda: ours.engine.status()["ports"] == [], what="no client of our engine")


def test_differences_are_told() -> None:
    same = [("asked a", '{"n": 1}'), ("asked b", "UniqueViolationError P2002")]
    assert differences(same, list(reversed(same))) == []
    (value,) = differences(same, [("asked a", '{"n": 2}'), same[1]])
    assert 'ours answered:   {"n": 1}' in value
    assert 'native answered: {"n": 2}' in value
    (code,) = differences(same, [same[0], ("asked b", "DataError P2010")])
    assert "P2010" in code
    assert differences(same, same[:1]) == ["2 queries on ours, 1 on the native engine"]


def _suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)


def test_an_engine_that_is_not_there_is_refused() -> None:
    done = _suite("--native-engine", "/nowhere/query-engine", "--collect-only", f"{FILES}native.py")
    assert done.returncode != 0
    assert "--native-engine: there is no file" in done.stderr + done.stdout


@pytest.mark.slow("conformance")
@pytest.mark.timeout(1000)
@pytest.mark.conformance("Comparison", "the whole suite on a second engine")
@pytest.mark.parametrize("files", [("models", "relations"), ("values", "filters", "errors", "raw")], ids="+".join)
def test_the_suite_runs_on_both_and_compares(tmp_path: Path, files: tuple[str, ...]) -> None:
    engine = stand_in_engine.write(tmp_path / "query-engine")
    done = _suite("--native-engine", str(engine), "-vv", *(f"{FILES}{name}.py" for name in files))
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.findall(r"::(\w+)\[(ours|native)\S*\] PASSED", done.stdout)
    assert {name for name, side in passed if side == "ours"} == {name for name, side in passed if side == "native"}
    assert len(passed) >= 20
    assert NOT_COMPARED not in done.stdout


@pytest.mark.slow("conformance")
def test_a_run_without_it_says_so() -> None:
    done = _suite(f"{FILES}raw.py", "-k", "test_answers")
    assert done.returncode == 0
    assert NOT_COMPARED in done.stdout
