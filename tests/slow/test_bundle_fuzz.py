"""A hundred thousand mutated bundles: none crashes, hangs or takes more memory than it may; what loads is what it says."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from pointsman.errors import BundleError
from pointsman.strategies.isolation import load_isolated
from support.bundle_fuzz import fuzz, mutated
from support.bundle_seeds import NATIVE_SEEDS, seed_bundle

MUTATIONS = 100_000
NATIVE = 200

pytestmark = pytest.mark.timeout(900)  # of the clock; the limits of a single mutation are of processor time


@pytest.mark.strategy("fuzzing", "bundle")
@pytest.mark.slow("bundlefuzz")
def test_a_hundred_thousand() -> None:
    report = fuzz(0, MUTATIONS, batch=2000)
    assert report.failures == [], "see `python -m support.bundle_fuzz NUMBER`"
    assert report.done == MUTATIONS
    assert report.loaded > MUTATIONS // 12, report
    assert {"E4205", "E4300", "E4302", "E4306", "E4307", "E4308", "E4309", "E4310", "E4317"} <= set(report.codes), report


@pytest.mark.slow("bundlefuzz")
def test_models_for_native_parsers_are_tried_in_a_process_of_their_own(tmp_path: Path) -> None:
    """Whatever happens in the child, here it is a refusal, or a bundle that scores."""
    seeds = {name: seed_bundle("linear", name) for name in NATIVE_SEEDS}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    codes: dict[str, int] = {}
    for number in range(NATIVE):
        _, data = mutated(number, seeds)
        path = tmp_path / f"{number}.zip"
        path.write_bytes(data)
        try:
            bundle = load_isolated(path)
        except BundleError as error:
            codes[error.code] = codes.get(error.code, 0) + 1
        else:
            scores = bundle.score_batch(["", "some text"])
            assert scores.shape == (2, len(bundle.models)), number
            assert bool(np.isfinite(scores).all()), number
            codes["ok"] = codes.get("ok", 0) + 1
        path.unlink()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kilobytes
    assert grown < 512 * 1024
    assert {"E4306", "E4315"} <= set(codes), codes
