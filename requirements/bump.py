"""Moves the pin of LiteLLM, and says what that changes. `make bump-litellm VERSION=1.106.1` does it.

    python -m requirements.bump VERSION [--dry-run] [--keep] [--report FILE]      from the repository's root

It finds the migrations' package that belongs to the release in the release's own metadata, rewrites both pins in
pyproject.toml, makes the locks anew, runs the set-up (packages, database client, schema), and runs the contract tests. A
picture of LiteLLM before and after (`requirements.snapshot`) becomes the report. When anything fails, the old pins are put
back and set up again, and the report stays; `--keep` leaves the new ones in place to work on. Only the standard library is
used, for what is installed changes while this runs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from requirements.snapshot import Snapshot, report
from requirements.touched import CONTRACT_TESTS

__all__ = ["Bump", "BumpError", "extras_of", "main", "pins", "rewrite"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("litellm", "litellm-proxy-extras")
_EXTRAS = re.compile(r"^Requires-Dist:\s*litellm-proxy-extras\s*\(?==\s*([0-9][^\s;)]*)", re.MULTILINE)


class BumpError(Exception):
    """A step failed; the text says which and why."""


def pins(pyproject: str) -> dict[str, str]:
    """The pinned versions of LiteLLM's two packages in a pyproject.toml."""
    found = {}
    for requirement in tomllib.loads(pyproject)["project"]["dependencies"]:
        name, separator, version = requirement.partition("==")
        if separator and name in PACKAGES:
            found[name] = version
    return found


def rewrite(pyproject: str, versions: dict[str, str]) -> str:
    """The text with other pins; nothing else in it changes.

    Raises:
        BumpError: a pin is not there exactly once.
    """
    for name, version in versions.items():
        pyproject, number = re.subn(rf'"{re.escape(name)}==[^"]+"', f'"{name}=={version}"', pyproject)
        if number != 1:
            raise BumpError(f"pyproject.toml pins {name} {number} times")
    return pyproject


def extras_of(version: str, python: Path) -> str:
    """The version of litellm-proxy-extras that a release of LiteLLM names in its metadata.

    Raises:
        BumpError: the release cannot be had, or names none.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        done = subprocess.run([*command, f"litellm=={version}"], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("litellm-*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise BumpError(f"litellm=={version} cannot be downloaded: {done.stderr.strip()[-500:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            match = _EXTRAS.search(wheel.read(name).decode())
    if match is None:
        raise BumpError(f"litellm=={version} names no litellm-proxy-extras")
    return match[1]


class Bump:
    """One move.

    Args:
        version: of LiteLLM.
        root: the repository (or a copy of it).
        venv: its environment.
        say: gets a line for each step.
    """

    def __init__(self, version: str, root: Path, venv: Path, say: Callable[[str], None]) -> None:
        self.version = version
        self.root = root
        self.python = venv / "bin" / "python"
        self.venv = venv
        self.say = say
        self.old = pins((root / "pyproject.toml").read_text(encoding="utf-8"))

    def plan(self) -> dict[str, str]:
        """The pins that the move ends with."""
        return {"litellm": self.version, "litellm-proxy-extras": extras_of(self.version, self.python)}

    def move(self, file: Path, *, keep: bool, tests: Sequence[str] = CONTRACT_TESTS) -> bool:
        """Do it, and write the report. Whether the new pins are in place and the contract tests passed."""
        new = self.plan()
        self.say(f"{self.old['litellm']} -> {new['litellm']}, litellm-proxy-extras {new['litellm-proxy-extras']}")
        before = self._picture()
        with tempfile.TemporaryDirectory() as folder:
            saved = self._save(Path(folder))
            try:
                self._change(new)
                after = self._picture()
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(report(before, after), encoding="utf-8")
                self.say(f"what changes: {file}")
                passed, output = self._test(tests)
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(f"\n## Contract tests\n\n{'Passed' if passed else 'Failed'}.\n\n```text\n{output}\n```\n")
                if not passed:
                    raise BumpError(f"the contract tests failed; see the end of {file}")
            except BaseException as error:
                if keep and isinstance(error, BumpError):
                    self.say(f"{error}; the new pins stay, as you asked")
                    return False
                self.say(f"failed: {error}; putting back {self.old['litellm']}")
                self._restore(saved)
                self._set_up("set up as before")
                if isinstance(error, BumpError):
                    return False
                raise
        self.say(f"moved to {self.version}: read the report, run `make test`, commit pyproject.toml and requirements/*.txt")
        return True

    def _save(self, folder: Path) -> dict[Path, Path]:
        files = [self.root / "pyproject.toml", *sorted((self.root / "requirements").glob("*.txt"))]
        saved = {file: folder / file.name for file in files}
        for file, copy in saved.items():
            shutil.copy2(file, copy)
        return saved

    def _restore(self, saved: dict[Path, Path]) -> None:
        for file, copy in saved.items():
            shutil.copyfile(copy, file)  # with a new date, so that make sees it

    def _change(self, new: dict[str, str]) -> None:
        file = self.root / "pyproject.toml"
        file.write_text(rewrite(file.read_text(encoding="utf-8"), new), encoding="utf-8")
        self._run("locks", [str(self.python), "-m", "requirements.locks", "compile"])
        self._set_up("set-up")

    def _set_up(self, title: str) -> None:
        self._run(title, ["make", "setup", f"VENV={self.venv}"])

    def _picture(self) -> Snapshot:
        output = self._run("picture of LiteLLM", [str(self.python), "-m", "requirements.snapshot"])
        picture: Snapshot = json.loads(output)
        return picture

    def _test(self, tests: Sequence[str]) -> tuple[bool, str]:
        self.say("contract tests")
        command = [str(self.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        return done.returncode == 0, "\n".join(done.stdout.splitlines()[-60:])

    def _run(self, title: str, command: list[str]) -> str:
        self.say(title)
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BumpError(f"{title} ended with status {done.returncode}: {done.stderr.strip()[-1500:]}")
        return done.stdout


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m requirements.bump", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="release of LiteLLM, e.g. 1.106.2")
    parser.add_argument("--dry-run", action="store_true", help="only say what the pins would be")
    parser.add_argument("--keep", action="store_true", help="leave the new pins in place when the contract tests fail")
    parser.add_argument("--report", type=Path, help="file for the report (default build/litellm-OLD-NEW.md)")
    chosen = parser.parse_args(arguments)
    bump = Bump(chosen.version, ROOT, Path(sys.prefix), lambda line: print(f"bump: {line}", file=sys.stderr, flush=True))
    try:
        if chosen.dry_run or bump.old["litellm"] == chosen.version:
            new = bump.plan()
            changes = [f"{name} {bump.old[name]} -> {new[name]}" for name in PACKAGES if bump.old[name] != new[name]]
            print("\n".join(changes) or "nothing changes")
            return 0
        file = chosen.report or ROOT / "build" / f"litellm-{bump.old['litellm']}-{chosen.version}.md"
        return 0 if bump.move(file.absolute(), keep=chosen.keep) else 1
    except BumpError as error:
        print(f"bump: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
