"""Nothing of one machine, and nothing of one site's network, is in a file that everybody gets."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from support.files import files
from support.marks import ROOT

# Written so that this file does not find itself.
MACHINE = re.compile(r"(?:^|[^A-Za-z0-9_.$}~-])/(?:wor[k]|roo[t]|hom[e]/[a-z]+|User[s]/[a-z]+)/", re.IGNORECASE)
INDEX = re.compile(r"--(?:extra-)?index-url[ =]\S|[\"']?registry[\"']? ?[=:] ?[\"']?http|\"resolved\": ?\"http", re.IGNORECASE)
SECRET = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")


def _texts() -> list[tuple[str, str]]:
    found = []
    for path in files():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.parametrize("pattern", [MACHINE, INDEX, SECRET], ids=["machine", "index", "secret"])
def test_no_file_holds(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in _texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (MACHINE, "see /wor" + "k/main/x"),
        (MACHINE, "cd '/hom" + "e/ann/src'"),
        (INDEX, "--index" + "-url https://pypi.example"),
        (INDEX, '"resol' + 'ved": "https://npm.example/a.tgz"'),
        (INDEX, "regis" + "try=https://npm.example"),
        (SECRET, "AKIA" + "A" * 16),
    ],
)
def test_the_patterns_see_what_they_look_for(pattern: re.Pattern[str], line: str) -> None:
    assert pattern.search(line)


def test_node_packages_are_pinned_by_hash() -> None:
    for lock in files("*package-lock.json"):
        packages = json.loads(lock.read_text(encoding="utf-8"))["packages"]
        without = [
            name for name, package in packages.items() if name and not package.get("link") and "integrity" not in package
        ]
        assert without == [], lock


def test_actions_are_pinned_to_a_commit_and_jobs_have_only_the_rights_they_need() -> None:
    workflows = files(".github/workflows/*")
    assert workflows
    for path in workflows:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {}
        for name, job in workflow["jobs"].items():
            assert job["timeout-minutes"] <= 95, name
            for step in job["steps"]:
                assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40)), step


def test_workflows_run_what_people_run() -> None:
    """Each `run:` is one command that the Makefile or .ci/ defines, so CI can be repeated at a desk."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in files(".github/workflows/*"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            for step in job["steps"]:
                command = step.get("run", ".ci/run").split()
                assert command == [".ci/run"] or (command[0] == "make" and command[1] in targets), command
