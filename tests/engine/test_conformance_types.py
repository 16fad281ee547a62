"""The stand-in for the generated types changes nothing: LiteLLM's names are real, and the suite passes with either."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pointsman.migrations.install import Layout, client
from pointsman.migrations.install.client import STAND_IN_MARK
from support.marks import ROOT


def _full_types(package: Path) -> Path:
    """The types that Prisma's generator wrote, wherever they stand now."""
    types = package / "types.py"
    return package / "types.pyi" if types.read_text(encoding="utf-8").startswith(STAND_IN_MARK) else types


def _used(path: Path) -> set[str]:
    """The names of `prisma.types` that a module uses."""
    text = path.read_text(encoding="utf-8")
    if "prisma" not in text:
        return set()
    names, aliases = set(), {"types"} if "from prisma import types\n" in text else set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "prisma.types":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "prisma":
            aliases |= {alias.asname for alias in node.names if alias.name == "types" and alias.asname}
    return names | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }


@pytest.mark.conformance("Types", "every name that LiteLLM uses")
def test_every_type_that_litellm_names_is_one_that_was_generated() -> None:
    """The stand-in answers any name, also one that is not there; the generated module would not."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    used = {name for file in Path(spec.origin).parent.rglob("*.py") for name in _used(file)}
    assert len(used) >= 5
    text = _full_types(Layout.current().prisma_package).read_text(encoding="utf-8")
    defined = set(re.findall(r"^(?:class )?(\w+)(?: = |\(|:)", text, re.MULTILINE))
    assert used - defined == set()


@pytest.mark.slow("conformance")
@pytest.mark.timeout(1000)
@pytest.mark.conformance("Types", "the suite with and without the stand-in")
def test_the_suite_with_the_other_types(tmp_path: Path) -> None:
    """Every other run uses the types as installed; this one the other choice of `--slim-types` and `--full-types`."""
    installed = Layout.current().prisma_package
    package = tmp_path / "prisma"
    shutil.copytree(installed, package, ignore=shutil.ignore_patterns("__pycache__"))
    full = _full_types(package)
    slim = full.suffix == ".pyi"
    if slim:
        full.replace(package / "types.py")
    else:
        (package / "types.py").replace(package / "types.pyi")
        (package / "types.py").write_text(client._STAND_IN, encoding="utf-8")
    files = [f"tests/engine/test_conformance_{name}.py" for name in ("models", "relations", "filters", "values")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    where = subprocess.run(
        [sys.executable, "-c", "import prisma.types as t; print(t.__file__, hasattr(t, 'no_such_type'))"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.split() == [str(package / "types.py"), str(not slim)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
