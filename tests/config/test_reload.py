"""The watcher and the difference of two configurations."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pointsman.litellm_config import GatewayConfig, load
from pointsman.litellm_config.reload import ConfigWatcher, model_diff, restart_reasons


def entry(name: str, model: str, **params: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": f"mock/{model}", **params}}


def write(path: Path, *entries: dict[str, Any], **sections: Any) -> GatewayConfig:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump({"model_list": list(entries), **sections}))
    temporary.replace(path)
    return load(path, {})


def test_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    named = {**entry("n", "n"), "model_info": {"id": "named"}}
    old = write(path, entry("a", "a"), entry("b", "b"), named)
    new = write(path, entry("b", "b"), {**named, "litellm_params": {"model": "mock/other"}}, entry("c", "c"))
    diff = model_diff(old.effective, new.effective)
    assert [item["model_name"] for item in diff.added] == ["c"]
    assert [item["model_info"]["id"] for item in diff.changed] == ["named"]
    assert diff.removed == (old.effective["model_list"][0]["model_info"]["id"],)
    assert diff
    assert not model_diff(new.effective, new.effective)


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_applying_the_difference_gives_the_new_list(
    tmp_path_factory: pytest.TempPathFactory, a: list[int], b: list[int]
) -> None:
    path = tmp_path_factory.mktemp("diff") / "c.yaml"
    old = write(path, *(entry(f"m{n % 3}", str(n)) for n in a))
    new = write(path, *(entry(f"m{n % 3}", str(n)) for n in b))
    diff = model_diff(old.effective, new.effective)
    result = {item["model_info"]["id"]: item for item in old.effective["model_list"]}
    for key in diff.removed:
        del result[key]
    for item in diff.added:
        assert item["model_info"]["id"] not in result
    result |= {item["model_info"]["id"]: item for item in (*diff.added, *diff.changed)}
    assert result == {item["model_info"]["id"]: item for item in new.effective["model_list"]}


def test_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    old = write(path, entry("a", "a"))
    assert restart_reasons(old, write(path, entry("b", "b"))) == ()
    new = write(path, entry("a", "a"), litellm_settings={"drop_params": True}, pointsman={"shutdown": {"grace": 1}})
    assert restart_reasons(old, new) == ("litellm_settings", "pointsman")


class Seen:
    def __init__(self) -> None:
        self.changes: list[tuple[GatewayConfig, GatewayConfig]] = []
        self.fail = False
        self.called = asyncio.Event()

    async def __call__(self, old: GatewayConfig, new: GatewayConfig) -> None:
        if self.fail:
            raise RuntimeError("no worker answered")
        self.changes.append((old, new))
        self.called.set()


@pytest.mark.requirement("P-5", "R-3.3")
async def test_the_last_good_configuration_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    first = write(path, entry("a", "a"))
    seen = Seen()
    watcher = ConfigWatcher(path, {}, 1.0, seen, first)
    assert await watcher.look() is False
    assert watcher.status().last_check is not None

    second = write(path, entry("b", "b"))
    assert await watcher.look() is True
    assert [(old.effective, new.effective) for old, new in seen.changes] == [(first.effective, second.effective)]
    assert await watcher.look() is False
    assert (watcher.status().updates, watcher.status().rejected) == (1, 0)

    path.write_text("model_list: [\n")
    assert await watcher.look() is False
    status = watcher.status()
    assert "E4201" in str(status.last_error)
    assert (status.updates, status.rejected) == (1, 1)
    assert watcher.current.effective == second.effective
    assert await watcher.look() is False  # not told again and again
    assert watcher.status().rejected == 1

    path.unlink()
    assert await watcher.look() is False
    assert "no such file" in str(watcher.status().last_error)

    third = write(path, entry("c", "c"))
    assert await watcher.look() is True
    assert watcher.current.effective == third.effective
    assert watcher.status().last_error is None
    assert len(seen.changes) == 2


async def test_a_comment_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    first = write(path, entry("a", "a"))
    seen = Seen()
    watcher = ConfigWatcher(path, {}, 1.0, seen, first)
    await watcher.look()
    path.write_text(path.read_text() + "# a remark\n")
    assert await watcher.look() is False
    assert seen.changes == []


async def test_a_change_that_cannot_be_applied_is_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    first = write(path, entry("a", "a"))
    seen = Seen()
    watcher = ConfigWatcher(path, {}, 1.0, seen, first)
    await watcher.look()
    seen.fail = True
    write(path, entry("b", "b"))
    assert await watcher.look() is False
    assert "no worker answered" in str(watcher.status().last_error)
    assert watcher.current.effective == first.effective


async def test_included_files_are_watched_also_after_they_were_bad(tmp_path: Path) -> None:
    path, models = tmp_path / "c.yaml", tmp_path / "models.yaml"
    models.write_text(yaml.safe_dump({"model_list": [entry("b", "b")]}))
    first = write(path, entry("a", "a"), include=["models.yaml"])
    seen = Seen()
    watcher = ConfigWatcher(path, {}, 1.0, seen, first)
    await watcher.look()
    models.write_text(yaml.safe_dump({"model_list": [entry("b", "b"), entry("c", "c")]}))
    assert await watcher.look() is True
    models.write_text("broken: [")
    assert await watcher.look() is False
    models.write_text(yaml.safe_dump({"model_list": [entry("d", "d")]}))
    assert await watcher.look() is True
    assert [item["model_name"] for item in watcher.current.effective["model_list"]] == ["a", "d"]


async def test_it_runs_until_it_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    seen = Seen()
    watcher = ConfigWatcher(path, {}, 0.02, seen, write(path, entry("a", "a")))
    task = asyncio.create_task(watcher.run())
    write(path, entry("b", "b"))
    await asyncio.wait_for(seen.called.wait(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(seen.changes) == 1
