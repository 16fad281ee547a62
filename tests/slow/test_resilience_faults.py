"""Three upstreams of `bench.faults`, one of which breaks: clients of a real gateway with two workers notice next to nothing.

The whole table, beside stock LiteLLM, is `make bench-faults`. Bounds are far from what is measured, for machines that are slow,
and near enough that a gateway without breakers or without failover passes none of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from bench.faults import Report, measure
from bench.faults_scenarios import SCENARIOS

WITH_TIME_OUTS = "pointsman-timed"

pytestmark = [pytest.mark.slow("resilience"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        Path(folder).chmod(0o755)  # for who runs Postgres
        wanted = [replace(SCENARIOS[name], subjects=(WITH_TIME_OUTS,)) for name in ("error", "cut-middle", "hang")]
        work = measure(Path(folder), names=[WITH_TIME_OUTS], scenarios=wanted, rate=40.0, fault=4.0, after=(1.0, 5.0))
        yield uvloop.run(work)


@pytest.mark.parametrize("name", ["error", "cut-middle", "hang"])
def test_upstreams_fail_and_clients_do_not_notice(report: Report, name: str) -> None:
    found = next(line for line in report.lines if line.scenario == name)
    assert found.asked_while > 20, found
    assert found.dead is not None
    # One of three would get a third of the requests, and what fails there be tried anew, there or elsewhere. Where it hangs,
    # each client asks it once before the first has waited long enough to know.
    assert 1 <= found.dead <= (48 if name == "hang" else min(32, found.asked_while / 4)), found
    assert found.eject is not None, f"it was never left alone: {found}"
    if name == "cut-middle":  # of what broke after its first words, nobody can hide that
        assert found.failed <= 10, found
        assert found.clear, found
    else:
        assert found.share <= 0.02, found
        assert found.outside == 0, found


def test_nothing_is_lost_and_nothing_counted_twice(report: Report) -> None:
    assert [(line.scenario, line.lost, line.twice) for line in report.lines if line.lost or line.twice] == []
    assert report.spend == {WITH_TIME_OUTS: 0.0}
