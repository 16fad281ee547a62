"""Postgres servers that a test shapes itself: TLS, `pg_hba.conf`, standbys. `support.postgres` is the ordinary one.

Made with the binaries that the embedded Postgres uses, as whoever may run them here; a cluster takes half a second.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from pointsman.embedded_postgres.cluster import find_binaries
from pointsman.embedded_postgres.identity import BARE_ENVIRONMENT, choose
from support.gateway import free_port
from support.processes import wait_for

__all__ = ["PASSWORD", "SUPERUSER", "PgCluster", "pg_cluster"]

SUPERUSER = "boss"
# As special as a password can be.
PASSWORD = "p@ss:/?#[]!$&'()*+,;=% word\\"
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "replica",
    "hot_standby": "on",
    "listen_addresses": "127.0.0.1,::1",
}
HBA = "local all all scram-sha-256\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n"


class PgCluster:
    """One server, with its own directory and port.

    Args:
        directory: made when missing; removed by nobody (pytest's temporary directories are).
        options: lines of postgresql.conf.
        hba: the text of pg_hba.conf.
        origin: another server; this one is a standby made from it by pg_basebackup.
        binaries: of another Postgres than the embedded one, which e.g. knows no TLS.
    """

    def __init__(
        self,
        directory: Path,
        options: dict[str, str] | None = None,
        hba: str = HBA,
        origin: PgCluster | None = None,
        binaries: Path | None = None,
    ) -> None:
        self._binaries: Path = binaries or (origin._binaries if origin is not None else find_binaries())
        self._identity = choose(self._binaries / "postgres")
        self.directory = directory
        self.data = directory / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(mode=0o700)
        self._give(directory)
        if origin is None:
            secret = directory / "secret"
            secret.write_text(PASSWORD)
            self._give(secret)
            self._run(
                "initdb",
                "-D",
                self.data,
                "-U",
                SUPERUSER,
                "--pwfile",
                secret,
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--no-locale",
                "-N",
            )
        else:
            target = origin.url("postgres").replace("/postgres", "/replication")
            self._run("pg_basebackup", "-D", self.data, "-R", "-X", "stream", "-c", "fast", "-d", target)
        self.configure({**FAST, "unix_socket_directories": f"'{directory}'", "port": str(self.port), **(options or {})})
        if origin is None:
            self.write_hba(hba)

    def _give(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self._identity.uid, self._identity.gid)

    def _run(self, name: str, *arguments: str | Path) -> None:
        command = [*self._identity.prefix, str(self._binaries / name), *map(str, arguments)]
        done = subprocess.run(command, env=BARE_ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def configure(self, options: dict[str, str]) -> None:
        """Append settings; call `reload` when it runs. Values as in the file: quote what needs quotes."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(
                f"{name} = {value if value.startswith(chr(39)) else chr(39) + value + chr(39)}\n"
                for name, value in options.items()
            )

    def write_hba(self, text: str) -> None:
        """Replace pg_hba.conf."""
        (self.data / "pg_hba.conf").write_text(text)

    def install(self, source: Path, name: str, mode: int = 0o600) -> Path:
        """A file for the server (a key, a certificate): copied into its directory, owned as Postgres wants."""
        target = self.data / name
        shutil.copyfile(source, target)
        target.chmod(mode)
        self._give(target)
        return target

    def start(self) -> PgCluster:
        """Start it and wait until it answers."""
        command = [*self._identity.prefix, *self._identity.dies_with_us, str(self._binaries / "postgres"), "-D", str(self.data)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=BARE_ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._answers, 30, f"Postgres in {self.directory} answers", 0.02)
        return self

    def _answers(self) -> bool:
        process = self._process
        assert process is not None
        assert process.poll() is None, (self.directory / "log").read_text()
        try:
            self.execute("SELECT 1", socket=True)
        except psycopg.OperationalError:
            return False
        return True

    def reload(self) -> None:
        """Have it read its configuration again."""
        self.execute("SELECT pg_reload_conf()", socket=True)

    def promote(self) -> None:
        """Make a standby a primary."""
        self.execute("SELECT pg_promote()", socket=True)

    def stop(self, *, kill: bool = False) -> None:
        """Stop it at once, with its connections; `kill` as a power cut would."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            # It ends by itself with the thread that started it, and takes its file away shortly before.
            with contextlib.suppress(FileNotFoundError):
                pid = int((self.data / "postmaster.pid").read_text().split()[0])
                # Without their postmaster the others would go on serving whoever is connected.
                others = _children(pid) if kill else []
                for victim in (pid, *others):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, 9 if kill else 2)
            process.wait(20)

    def url(
        self, database: str = "postgres", *, user: str = SUPERUSER, password: str = PASSWORD, host: str = "127.0.0.1"
    ) -> str:
        """Its address by TCP."""
        return f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres", socket: bool = False) -> list[tuple[object, ...]]:
        """Run statements as the superuser; rows of the last."""
        host = str(self.directory) if socket else "127.0.0.1"
        with psycopg.connect(
            host=host, port=self.port, user=SUPERUSER, password=PASSWORD, dbname=database, autocommit=True, sslmode="prefer"
        ) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def sessions(self, condition: str = "true") -> int:
        """How many client connections there are, this one not counted."""
        everybody = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND "
        )
        rows = self.execute(everybody + f"({condition})", socket=True)
        return int(str(rows[0][0]))


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


@pytest.fixture
def pg_cluster(tmp_path: Path) -> Iterator[Callable[..., PgCluster]]:
    """Factory of started servers: `pg_cluster(options={...}, origin=other)`."""
    made: list[PgCluster] = []

    def make(**arguments: object) -> PgCluster:
        cluster = PgCluster(tmp_path / f"pg{len(made)}", **arguments)  # type: ignore[arg-type]
        made.append(cluster)
        return cluster.start()

    yield make
    for cluster in made:
        cluster.stop()
