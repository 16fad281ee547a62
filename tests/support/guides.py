"""Follows a guide as a reader would: runs a page's commands in their order, with a gateway that `make up` starts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from support.docs import blocks, commands
from support.gateway import clean_environment, free_port
from support.marks import ROOT
from support.processes import MARK, kill_all, marked, wait_for

__all__ = ["Reader"]

READY = "Ctrl-C stops it"


class Reader:
    """A newcomer with an empty home directory and a checkout whose set-up is done.

    The commands run as they are printed, but for two things: the port is a free one instead of 4000, and `.venv` is this run's.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.mark = uuid.uuid4().hex
        self.checkout = folder / "pointsman"
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.checkout.mkdir()
        for name in ("Makefile", "pyproject.toml", "requirements", "examples"):
            source = ROOT / name
            target = self.checkout / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (self.checkout / ".venv" / ".stamps").mkdir(parents=True)
        (self.checkout / ".venv" / "bin").symlink_to(Path(sys.prefix) / "bin")
        for stamp in ("python", "gateway", "dev", "lint", "package", "database"):
            (self.checkout / ".venv" / ".stamps" / stamp).touch()
        environment = clean_environment(HOME=str(self.home), **{MARK: self.mark})
        dropped = {"XDG_DATA_HOME", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV"}
        self.environment = {name: value for name, value in environment.items() if name not in dropped}
        self.log = folder / "up.log"
        self._up: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.home / ".local" / "share" / "pointsman"

    def follow(self, page: str) -> dict[str, str]:
        """Run every command of a page; command -> what it printed.

        Raises:
            AssertionError: one failed; with its output.
        """
        return {
            command: self.run(command)
            for block in blocks(ROOT / page)
            if block.language == "console"
            for command in commands(block)
        }

    def run(self, command: str) -> str:
        """One command. `make up` stays in the background (one that runs is stopped first), everything else is waited for."""
        if command.split()[:2] == ["make", "up"]:
            return self.up(command)
        result = subprocess.run(
            ["bash", "-c", command.replace("127.0.0.1:4000", f"127.0.0.1:{self.port}")],
            cwd=self.checkout,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}{self.said()[-2000:]}"
        return result.stdout

    def up(self, command: str = "make up") -> str:
        """Start a gateway and wait for it; returns what it printed."""
        self.ctrl_c()
        arguments = next((word.removeprefix("ARGS=") for word in shlex.split(command) if word.startswith("ARGS=")), "")
        with self.log.open("wb") as output:
            self._up = subprocess.Popen(
                ["make", "up", f"ARGS={arguments} --port {self.port}"],
                cwd=self.checkout,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = self._up
        wait_for(lambda: READY in self.said() or process.poll() is not None, 120, "the gateway is ready", interval=0.1)
        assert process.poll() is None, self.said()
        return self.said()

    def said(self) -> str:
        """What the gateway printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def ctrl_c(self) -> str:
        """What a terminal does: SIGINT to everything in the foreground, make included. Returns all that was printed.

        Raises:
            AssertionError: it did not end, or left something behind.
        """
        if self._up is None:
            return ""
        os.killpg(self._up.pid, signal.SIGINT)
        self._up.wait(timeout=60)
        self._up = None
        wait_for(lambda: not marked(self.mark), 10, "nothing is left behind")
        return self.said()

    def close(self) -> None:
        """Whatever happened, leave nothing running."""
        if self._up is not None:
            kill_all(self.mark)
            self._up.wait(timeout=30)
            self._up = None

    def offered(self) -> str:
        """The line that `make up` offers for pasting."""
        found = re.search(r"^ +(curl .*)$", self.said(), re.MULTILINE)
        assert found, self.said()
        return found[1]
