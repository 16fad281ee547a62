"""The style that the package is held to, and proof that each guard sees what it is there to see."""

from __future__ import annotations

import ast
import tomllib

import pytest

from support.files import files, package_modules
from support.guards import GUARDS, broad_excepts, environment_reads, globals_, missing_all, unfinished
from support.marks import ROOT

SETTINGS = ROOT / "core" / "pointsman" / "settings.py"


@pytest.mark.parametrize("guard", GUARDS)
def test_the_package_keeps_to_the_rules(guard: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in package_modules()
        if path != SETTINGS
        for line in GUARDS[guard](path.read_text(encoding="utf-8"))
    ]
    assert found == [], guard


def test_settings_is_where_the_environment_is_read() -> None:
    assert environment_reads(SETTINGS.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A']",
        "import os\nos.getenv('A')",
        "from os import environ",
        "import os\nf(os.environ)",
        "import os\nos.environ.get('A')",
    ],
)
def test_a_read_of_the_environment_is_seen(source: str) -> None:
    assert environment_reads(source)


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A'] = '1'", "import os\nos.environ.update(a)", "x = 'os.environ/KEY'"]
)
def test_a_write_to_the_environment_is_not_a_read(source: str) -> None:
    assert environment_reads(source) == []


def _caught(clause: str, body: str = "pass") -> list[int]:
    return broad_excepts(f"try:\n    f()\n{clause}\n    {body}\n")


def test_a_broad_except_wants_a_reason_or_a_raise() -> None:
    for silent in (
        "except Exception:",
        "except:",
        "except (ValueError, Exception):",
        "except Exception:  # noqa: BLE001",
        "except BaseException as e:",
    ):
        assert _caught(silent) == [3], silent
    assert _caught("except Exception:  # noqa: BLE001 - a plug-in may raise anything") == []
    assert _caught("except Exception:  # a plug-in may raise anything") == []
    assert _caught("except BaseException:", "raise") == []
    assert _caught("except ValueError:") == []


def test_the_other_guards_see_what_they_look_for() -> None:
    assert globals_("def f():\n    global x\n    x = 1") == [2]
    assert unfinished("a = 1  # TO" + "DO later") == [1]
    assert missing_all("def f(): ...") == [1]
    assert missing_all("__all__ = ['f']\ndef f(): ...") == []
    assert missing_all("def _f(): ...") == []


@pytest.mark.requirement("S-1")
def test_the_source_is_python_3_11_and_is_said_to_run_on_3_13() -> None:
    """`make test-all-pythons` runs the suite on them; here: one grammar for all, and a package that says so."""
    for path in files("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 11))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.13" in project["project"]["classifiers"]
    assert project["tool"]["ruff"]["target-version"] == "py311"


@pytest.mark.parametrize("module", ["pointsman.cli", "pointsman.supervisor", "pointsman.settings"])
def test_the_supervisor_never_loads_what_only_workers_and_training_need(module: str) -> None:
    import subprocess
    import sys

    script = f"import sys, {module}; print(*sorted({{'litellm', 'torch', 'sklearn', 'pointsman.mlops'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert loaded == []


def test_few_modules_of_the_router_know_litellm() -> None:
    """Everything that touches LiteLLM's router in few places keeps the move to its next release cheap."""
    knowing = {
        path.name
        for path in package_modules()
        if path.is_relative_to(ROOT / "custom_router") and "litellm" in _imported(path.read_text(encoding="utf-8"))
    }
    # The hook, its deployments, an encoder that is a model of the gateway, a cascade's calls and replayed answers, the guard of
    # streams, who knows LiteLLM's fallbacks, and who asks its health checks.
    known = {"hook.py", "deployments.py", "embed.py", "calls.py", "replay.py", "streams.py", "elsewhere.py", "probes.py"}
    assert knowing <= known


def _imported(source: str) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.partition(".")[0])
    return roots
