"""What we reach in LiteLLM stands in one table, and a move of its pin says what changes and can be undone."""

from __future__ import annotations

import ast
import copy
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from requirements.bump import BumpError, pins, rewrite
from requirements.snapshot import Snapshot, differences, report, schema_models
from requirements.touched import CONTRACT_TESTS, TOUCHED

from support.files import files
from support.marks import ROOT

LITELLM = ("litellm", "litellm_proxy_extras")
# This run may itself be the child of a make, whose flags must not reach another.
SHELL = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def reached(source: str) -> set[str]:
    """`module:name` of everything that a file takes from LiteLLM; a submodule that is imported whole counts as itself."""
    tree = ast.parse(source)
    found: set[str] = set()
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in LITELLM:
            for alias in node.names:
                if (node.module, alias.name) == ("litellm.proxy", "proxy_server"):
                    aliases[alias.asname or alias.name] = "litellm.proxy.proxy_server"
                else:
                    found.add(f"{node.module}:{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in LITELLM:
                    aliases[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add(f"{aliases[node.value.id]}:{node.attr}")
    return found


def sources() -> list[Path]:
    """Our code without the tests and this tool."""
    return [path for path in files("*.py") if path.relative_to(ROOT).parts[0] not in ("tests", "requirements", "bench")]


def test_whatever_the_code_takes_from_litellm_is_in_the_table() -> None:
    found = {name: path.relative_to(ROOT) for path in sources() for name in reached(path.read_text(encoding="utf-8"))}
    assert len(found) > 15
    missing = {name: str(path) for name, path in found.items() if name not in TOUCHED}
    assert missing == {}, "add them to requirements/touched.py, with the reason"
    assert reached("from litellm.x import y\nimport litellm\nlitellm.z = 1") == {"litellm.x:y", "litellm:z"}


def test_every_hook_that_is_overridden_is_in_the_table() -> None:
    trees = [ast.parse(path.read_text()) for path in sources() if path.name in ("hook.py", "streams.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    classes = [node for node in nodes if node.name in ("RouterHook", "StreamGuard")]
    assert len(classes) == 2
    functions = [node.name for cls in classes for node in cls.body if isinstance(node, ast.AsyncFunctionDef)]
    own = {name for name in functions if name.startswith("async_")}
    listed = {name.rpartition(".")[2] for name in TOUCHED if ":CustomLogger." in name}
    assert own == listed


def test_contract_tests_exist() -> None:
    assert [path for path in CONTRACT_TESTS if not (ROOT / path).exists()] == []


def test_pins_are_found_and_rewritten_alone() -> None:
    now = pins(PYPROJECT)
    assert set(now) == {"litellm", "litellm-proxy-extras"}
    text = rewrite(PYPROJECT, {"litellm": "9.9.9", "litellm-proxy-extras": "8.8.8"})
    assert pins(text) == {"litellm": "9.9.9", "litellm-proxy-extras": "8.8.8"}
    assert rewrite(text, now) == PYPROJECT
    with pytest.raises(BumpError, match="pins litellm 0 times"):
        rewrite("[project]\ndependencies = []\n", {"litellm": "1"})


def test_schema_is_read() -> None:
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    fields = schema_models((Path(spec.origin).parent / "proxy" / "schema.prisma").read_text(encoding="utf-8"))
    assert fields["LiteLLM_VerificationToken.token"] == "String @id"
    assert not [name for name in fields if "@@" in name or "//" in name]
    assert len({name.partition(".")[0] for name in fields}) > 80


def small() -> Snapshot:
    return {
        "versions": {"litellm": "1.0.0"},
        "hooks": {"litellm:callbacks": "list", "litellm:Router.get_deployment": "(self, model_id)"},
        "routes": {"GET /a": "()", "POST /b": "() Body"},
        "columns": {"T.x": "Int"},
        "migrations": {"1_a": "aa"},
        "settings": {},
        "requirements": {},
    }


def test_differences_are_reported_with_their_reason() -> None:
    old, new = small(), small()
    assert differences(old, new) == {}
    assert "Nothing changes" in report(old, new)
    new["versions"]["litellm"] = "1.1.0"
    new["hooks"]["litellm:Router.get_deployment"] = "(gone)"
    new["hooks"]["litellm:callbacks"] = "tuple"
    new["routes"] = {"GET /a": "()", "POST /c": "()"}
    new["columns"]["T.x"] = "BigInt"
    new["migrations"]["2_b"] = "bb"
    many = [f"field_{number}?" for number in range(50)]
    old["settings"]["long"], new["settings"]["long"] = ", ".join([*many, "gone?"]), ", ".join([*many, "come?"])
    text = report(old, new)
    assert text.startswith("# LiteLLM 1.0.0 to 1.1.0\n")
    for line in (
        "- gone: `litellm:Router.get_deployment` (hot reload of the configuration)",
        "- changed: `litellm:callbacks` (our hook stands last in it)\n  - was `list`\n  - is `tuple`",
        "- gone: `POST /b`",
        "- new: `POST /c` `()`",
        "- changed: `T.x`",
        "- new: `2_b` `bb`",
        "- changed: `long`\n  - without `gone?`\n  - with `come?`",
        "## What its proxy requires\n\nNo change.",
    ):
        assert line in text, text


def test_make_bump_litellm_runs_the_tool_and_wants_a_version() -> None:
    def make(*arguments: str) -> str:
        command = ["make", "--dry-run", "bump-litellm", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=SHELL).stdout

    assert "-m requirements.bump '1.2.3' --dry-run" in make("VERSION=1.2.3", "ARGS=--dry-run")
    assert "if [ -z '' ]; then" in make()


@pytest.mark.slow("adoption")
def test_the_installed_litellm_has_all_of_it_and_a_changed_one_is_noticed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "requirements.snapshot"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=200
    )
    now: Snapshot = json.loads(done.stdout)
    assert [name for name, value in now["hooks"].items() if value == "(gone)"] == []
    assert now["versions"] == pins(PYPROJECT)
    assert now["routes"]["POST /key/generate"]
    assert len(now["routes"]) > 700
    assert {"general_settings.master_key", "router_settings.num_retries", "litellm_settings.callbacks"} <= now[
        "settings"
    ].keys()
    other = copy.deepcopy(now)
    del other["routes"]["POST /key/generate"]
    other["hooks"]["litellm:Router.upsert_deployment"] = "(self, deployment, replace)"
    found = differences(now, other)
    assert found.keys() == {"routes", "hooks"}
    assert "- gone: `POST /key/generate`" in report(now, other)
    dry = subprocess.run(
        [sys.executable, "-m", "requirements.bump", now["versions"]["litellm"], "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (dry.returncode, dry.stdout) == (0, "nothing changes\n"), dry.stderr
