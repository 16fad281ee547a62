"""Two thousand mutated bundles on each run; a hundred thousand in the slow shard `bundlefuzz`."""

from __future__ import annotations

import json

import pytest

from pointsman.strategies.archive import unpack
from pointsman.strategies.kinds import ENCODERS, STRATEGIES
from pointsman.strategies.manifest import MANIFEST
from support.bundle_fuzz import fuzz, mutated
from support.bundle_seeds import ENCODER_SEEDS, NATIVE_SEEDS, STRATEGY_SEEDS, seed_bundles


def test_every_kind_and_encoder_is_mutated() -> None:
    assert {name.split()[0] for name in STRATEGY_SEEDS} == set(STRATEGIES)
    assert {*ENCODER_SEEDS, *NATIVE_SEEDS} == set(ENCODERS)
    seeds = seed_bundles()
    manifests = [json.loads(unpack(data, "test")[MANIFEST]) for data in seeds.values()]
    assert {manifest["kind"] for manifest in manifests} == set(STRATEGIES)
    assert {manifest["encoder"]["kind"] for manifest in manifests} == set(ENCODER_SEEDS)


def test_a_mutation_is_told_by_its_number() -> None:
    seeds = seed_bundles()
    assert [mutated(number, seeds) for number in range(40)] == [mutated(number, seeds) for number in range(40)]


@pytest.mark.strategy("fuzzing", "bundle")
def test_mutated_bundles_are_refused_or_are_what_they_say() -> None:
    report = fuzz(10_000_000, 2000)
    assert report.failures == [], "see `python -m support.bundle_fuzz NUMBER`"
    assert report.done == 2000
    # The mutations must reach what they are for: every layer refuses some, and enough of them load and are looked at.
    assert report.loaded > 150, report
    assert {"E4300", "E4302", "E4306", "E4307", "E4308"} <= set(report.codes), report
