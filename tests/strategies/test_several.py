"""Several strategies of one instance: each has its own source, on disk, in S3 or as code, and is looked at in its own time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pointsman.errors import RequestError
from pointsman.mlops.keys import SigningKey
from pointsman.mlops.publish_code import publish_code
from pointsman.process.remote import RemoteService
from pointsman.process.strategies import StrategyService
from pointsman.settings import PointsmanSettings, S3Settings
from support.bundles import make_bundle, publish
from support.s3 import S3Server
from support.wheels import example_wheel

KEYS = {name: SigningKey(f"of-{name}", Ed25519PrivateKey.generate()) for name in ("quick", "slow", "code")}


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a state of another thread or process
            await asyncio.sleep(0.02)


@pytest.mark.requirement("R-3.1", "R-3.4")
async def test_each_has_its_own_source_key_and_interval(tmp_path: Path, s3_environment: S3Server) -> None:
    prefix = f"s3://{s3_environment.new_bucket()}"
    sources = {
        "quick": str(tmp_path / "store/current.json"),
        "slow": f"{prefix}/slow/current.json",
        "code": f"{prefix}/code/current.json",
    }
    s3 = S3Settings(endpoint_url=s3_environment.endpoint_url)

    def put(version: str, *names: str) -> None:
        for name in names:
            if name == "code":
                wheel = example_wheel(tmp_path, version=f"{version}.0")
                publish_code(wheel, sources[name], strategy=name, key=KEYS[name], s3=s3)
            else:
                bundle = make_bundle(tmp_path / name, version, name=name)
                publish(bundle, sources[name], key=KEYS[name], s3=s3_environment if name == "slow" else None)

    options = {"models": ["weak", "strong"]}
    strategies: dict[str, dict[str, Any]] = {
        name: {
            "source": sources[name],
            "trusted_keys": {key.key_id: key.public},
            "reload_interval": 0.05 if name == "quick" else 3_600.0,
            "s3": {"endpoint_url": s3_environment.endpoint_url},
        }
        for name, key in KEYS.items()
    }
    strategies["code"] |= {"kind": "custom", "entry_point": "length", "options": options, "allow_signed_code": True}
    strategies["code"]["process"] = {"python": sys.executable, "deadline_ms": 5_000}
    settings = PointsmanSettings.model_validate({"strategies": strategies})
    for name in ("quick", "slow"):
        (tmp_path / name).mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    put("1", *KEYS)
    snapshots: list[Mapping[str, Any]] = []
    remote = RemoteService(settings, tmp_path / "run", tmp_path / "cache", {})
    groups = {"one": "quick", "other": "slow", "third": "slow"}
    service = StrategyService(settings, tmp_path / "cache", None, lambda: groups, snapshots.append, lambda: [], remote)

    def row(name: str) -> dict[str, Any]:
        return next(row for row in service.status() if row["name"] == name)

    await remote.start()
    await service.start()
    try:
        await until(lambda: row("code")["version"] == "1.0")
        assert {name: row(name)["version"] for name in KEYS} == {"quick": "1", "slow": "1", "code": "1.0"}
        assert [row(name)["in_use_by"] for name in KEYS] == [["one"], ["other", "third"], []]
        put("2", *KEYS)
        await until(lambda: row("quick")["version"] == "2")
        before = row("quick")["counters"]["polls"]
        await until(lambda: row("quick")["counters"]["polls"] > before + 3)
        assert [(row(name)["version"], row(name)["counters"]["polls"]) for name in ("slow", "code")] == [("1", 1), ("1.0", 1)]
        for name in ("slow", "code"):
            await service.reload(name)
        await until(lambda: row("code")["version"] == "2.0")
        assert row("slow")["version"] == "2"
        # A rollback of one is nothing to the others.
        await service.rollback("slow", "tests", "worse")
        await until(lambda: row("slow")["version"] == "1")
        assert (row("quick")["version"], row("code")["version"]) == ("2", "2.0")
        assert [snapshot["snapshot"]["strategy"] for snapshot in snapshots].count("quick") == 2
        # Signed by the key of another: refused for this one alone.
        publish(make_bundle(tmp_path / "quick", "3", name="quick"), sources["quick"], key=KEYS["slow"])
        await until(lambda: row("quick")["last_error_code"] == "E4303")
        assert (row("quick")["version"], row("code")["last_error_code"]) == ("2", None)
        # Code is gone back from by publishing the older wheel anew, and that is said.
        with pytest.raises(RequestError, match="'code' has no bundle") as caught:
            await service.rollback("code", "tests", "worse")
        assert "publish the older wheel again" in caught.value.mend
        with pytest.raises(RequestError, match="no strategy 'other'"):
            await service.rollback("other", "tests", "worse")
    finally:
        await service.stop()
        await remote.stop()
