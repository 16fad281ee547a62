"""Writes the hash-pinned lock files beside this module, and tells whether they still fit pyproject.toml.

    python -m requirements.locks compile [--upgrade]     from the repository's root; wants `uv` in the same environment
    python -m requirements.locks check                   no network: compares the digest of the inputs in each lock's first line

Each lock begins with ``# inputs: sha256:...``, a digest over everything that decided its content: the requirements and
the Python range in pyproject.toml, the resolver's arguments and the pins of the lock that it is constrained by. Resolving again
would need the network and would answer differently whenever a package appears; the digest changes only with the inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LOCKS", "Lock", "check", "compile_locks", "inputs_digest", "main"]

FOLDER = Path(__file__).resolve().parent
PYPROJECT = FOLDER.parent / "pyproject.toml"
MARK = "# inputs: sha256:"
# No index address may enter a lock: the reader's own configuration decides where packages come from, the hashes what they are.
RESOLVER = (
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-header",
)


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock file: its name (without .txt), what it resolves, and the lock whose pins it must repeat."""

    name: str
    project: bool = True
    group: str | None = None
    constraint: str | None = None

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.txt"


# In the order in which they are made: a later one is constrained by an earlier one, so no package has two versions.
LOCKS = (
    Lock("gateway"),
    Lock("dev", group="dev", constraint="gateway"),
    Lock("bootstrap", project=False, group="bootstrap", constraint="dev"),
    Lock("lint", project=False, group="lint"),
)


def _pins(name: str) -> str:
    """Only what pins: names, versions, hashes. Comments may differ between two resolvers."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def inputs_digest(lock: Lock, pyproject: dict[str, Any]) -> str:
    """sha256 (hex) over what decides a lock's content.

    Args:
        lock: the lock; the file of its constraint must exist.
        pyproject: the parsed pyproject.toml.
    """
    inputs = {
        "python": pyproject["project"]["requires-python"],
        "resolver": RESOLVER,
        "project": sorted(pyproject["project"]["dependencies"]) if lock.project else None,
        "group": sorted(pyproject["dependency-groups"][lock.group]) if lock.group else None,
        "constraint": _pins(lock.constraint) if lock.constraint else None,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def check() -> list[str]:
    """The problems, one line each; empty when every lock fits its inputs."""
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    problems = []
    for lock in LOCKS:
        if not lock.path.is_file():
            problems.append(f"requirements/{lock.name}.txt is missing")
            continue
        first = lock.path.read_text(encoding="utf-8").partition("\n")[0]
        if first != MARK + inputs_digest(lock, pyproject):
            problems.append(f"requirements/{lock.name}.txt was made from other inputs than pyproject.toml has now")
    return problems


def compile_locks(*, upgrade: bool = False) -> None:
    """Resolve every lock anew, keeping the pins that still fit unless `upgrade`.

    Raises:
        subprocess.CalledProcessError: the resolver failed; its message is on stderr and that lock is as it was.
    """
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    uv = Path(sys.executable).with_name("uv")
    for lock in LOCKS:
        arguments = [str(uv), "pip", "compile", "--quiet", *RESOLVER]
        arguments += ["pyproject.toml"] if lock.project else []
        arguments += ["--group", f"pyproject.toml:{lock.group}"] if lock.group else []
        arguments += ["--constraint", f"requirements/{lock.constraint}.txt"] if lock.constraint else []
        arguments += ["--upgrade"] if upgrade else []
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / lock.path.name
            if lock.path.is_file():
                output.write_bytes(lock.path.read_bytes())  # uv keeps the pins that it finds in its output file
            subprocess.run([*arguments, "--output-file", str(output)], cwd=PYPROJECT.parent, check=True)
            body = [line for line in output.read_text(encoding="utf-8").splitlines(keepends=True) if not line.startswith(MARK)]
            lock.path.write_text(MARK + inputs_digest(lock, pyproject) + "\n" + "".join(body), encoding="utf-8")
        print(f"requirements/{lock.name}.txt: {sum('==' in line for line in body)} packages")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m requirements.locks", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="do the locks fit pyproject.toml?")
    commands.add_parser("compile", help="write them").add_argument(
        "--upgrade", action="store_true", help="take the newest versions"
    )
    chosen = parser.parse_args(arguments)
    if chosen.command == "compile":
        compile_locks(upgrade=chosen.upgrade)
        return 0
    problems = check()
    for problem in problems:
        print(f"{problem} -> run `make lock` and commit what it writes", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
