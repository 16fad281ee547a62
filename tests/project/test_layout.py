"""Where things stand: the rooms, the namespace package's portions, and how long a module may be."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.files import ROOMS, files, package_modules
from support.marks import ROOT

LONGEST = 400


@pytest.mark.requirement("C-1")
@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_the_design_card_stand_at_the_root(room: str) -> None:
    tracked = [path for path in files(f"{room}/*") if path.stat().st_size]
    assert tracked, f"{room}/ holds no file"


@pytest.mark.requirement("C-1")
@pytest.mark.parametrize("room", ["core", *ROOMS])
def test_each_room_says_what_it_is(room: str) -> None:
    readme = ROOT / room / "README.md"
    assert readme.is_file(), f"{room}/README.md is missing"
    assert readme.read_text(encoding="utf-8").startswith("# ")


def test_no_init_file_closes_the_namespace() -> None:
    """One in a room, in a `pointsman/` or under tests/ would hide the other portions, or a package of the same name."""
    closing = []
    for path in files("*__init__.py"):
        parts = path.relative_to(ROOT).parts[:-1]
        if len(parts) < 3 or parts[1] != "pointsman":
            closing.append("/".join(parts))
    assert closing == []


def test_every_portion_is_built_checked_and_importable() -> None:
    portions = sorted({path.relative_to(ROOT).parts[0] for path in package_modules()})
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert set(portions) <= set(hatch["dev-mode-dirs"])
    assert {f"{portion}/pointsman" for portion in portions} <= set(hatch["targets"]["wheel"]["packages"])
    # Of a namespace package mypy walks the first portion only: what is not named here is not checked.
    checked = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["packages"])
    assert {"pointsman", *(f"pointsman.{portion}" for portion in portions if portion != "core")} <= checked
    spec = find_spec("pointsman")
    assert spec is not None
    assert {Path(place).resolve() for place in spec.submodule_search_locations or ()} >= {
        ROOT / portion / "pointsman" for portion in portions
    }


@pytest.mark.parametrize("name", ["mcp", "a2a", "prisma", "litellm"])
def test_no_room_shadows_a_package_that_litellm_imports(name: str) -> None:
    """Run from the root, as users do, where the rooms `mcp` and `a2a` lie on the path."""
    script = f"from importlib.util import find_spec; print(find_spec({name!r}).origin)"
    origin = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "site-packages" in origin


def test_modules_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files("*.py")
        if path.relative_to(ROOT).parts[0] != "tests" and (lines := path.read_text(encoding="utf-8").count("\n")) > LONGEST
    }
    assert long == {}, "look for the second thing inside"
