"""`EmbeddedPostgres`: the database of `pointsman up`, owned by its supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pointsman.embedded_postgres.cluster import SUPERUSER, Cluster, data_directory_error, find_binaries
from pointsman.embedded_postgres.identity import WAYS, choose
from pointsman.embedded_postgres.lock import OwnerLock
from pointsman.embedded_postgres.postmaster import HOST, Postmaster, free_port, stop_survivors
from pointsman.errors import ProcessError

__all__ = ["DATABASE", "EmbeddedPostgres"]

DATABASE = "litellm"
_log = logging.getLogger(__name__)
_START_SECONDS = 300.0  # replaying a long log after a crash is work, not failure
_RETRY_SECONDS = 15.0
_SHORT_LIFE = 10.0
_LONGEST_PAUSE = 30.0
# What Postgres says when a retry helps: old backends still leaving after kill -9, or a port taken between choosing and binding.
_OLD_LIFE = ("pre-existing shared memory block", 'lock file "postmaster.pid" already exists', "is the server still running")
_PORT_TAKEN = ("could not bind", "Address already in use", "could not create any TCP/IP sockets")


class EmbeddedPostgres:
    """A private PostgreSQL in `<data-dir>/postgres`, on a free TCP port of 127.0.0.1, with a random password.

    It survives `kill -9` of itself and of its owner: whatever was committed is there at the next start. One owner at a time.

    Args:
        data_dir: the gateway's data directory; made 0700 when missing.
        address: where the gateway listens; told to whoever finds the directory in use.
        options: further settings of postgresql.conf (tests trade durability for speed).
        ways: as whom the binaries may run, see identity.py.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        address: str | None = None,
        options: dict[str, str] | None = None,
        ways: Sequence[str] = WAYS,
    ) -> None:
        # `..` and links resolved now: Postgres stands inside the directory and must find it whatever happens to the links.
        self.data_dir = Path(os.path.abspath(data_dir))  # noqa: PTH100 - `resolve` would raise on a loop before we can explain
        self._address = address
        self._options = dict(options or {})
        self._ways = tuple(ways)
        self._lock = OwnerLock(self.data_dir / "lock")
        self._cluster: Cluster | None = None
        self._postmaster: Postmaster | None = None
        self._stopping = False
        self._restarts = 0
        self._started_at = 0.0

    async def start(self) -> str:
        """Take the owner lock, make or recover the cluster, start the server, make the database `litellm`.

        Call it from a thread that lives as long as the gateway (the main thread): Postgres shuts down when that thread ends.

        Returns:
            `postgresql://user:password@127.0.0.1:port/litellm`.

        Raises:
            ProcessError: E4603 in use; E4602 directory, disk, version or owner; E4604 not installed; E4600 with the log's end.
        """
        if self._postmaster is not None and self._postmaster.pid is not None:
            return self.url()
        self._stopping = False
        self._make_data_dir()
        self._lock.acquire(**({"address": self._address} if self._address else {}))
        try:
            binaries = find_binaries()
            identity = await asyncio.to_thread(choose, binaries / "postgres", ways=self._ways)
            self._cluster = Cluster(self.data_dir, binaries, identity)
            left = await stop_survivors(self._cluster.path)
            if left:
                _log.warning("stopped %d Postgres process(es) that an earlier owner had left", len(left))
            made = await asyncio.to_thread(self._cluster.prepare)
            _log.info("postgres cluster %s in %s", "made" if made else "found", self._cluster.path)
            await self._launch(None)
            await self._ensure_database()
        except BaseException:
            await self.stop()
            raise
        return self.url()

    async def run(self) -> None:
        """Watch the server and start it again, on the same port, whenever it dies: it may be killed for memory, and a full disk
        may be emptied. Returns after `stop`; cancel it to end it.
        """
        pause = 0.0
        while not self._stopping and self._postmaster is not None and self._cluster is not None:
            port, status = self._postmaster.port, await self._postmaster.wait()
            await asyncio.sleep(pause)
            if self._stopping:
                return
            # No hot loop when it dies of something that stays.
            short = time.monotonic() - self._started_at < _SHORT_LIFE
            pause = min(max(0.5, pause * 2), _LONGEST_PAUSE) if short else 0.0
            self._restarts += 1
            _log.error("postgres ended with status %s; starting it again", status)
            try:
                await stop_survivors(self._cluster.path, patience=2.0)
                await self._launch(port)
            except ProcessError as error:
                _log.error("postgres did not come back: %s", error)

    async def stop(self) -> None:
        """Fast shutdown, harder after 20 s; leaves no process; idempotent. Lets go of the owner lock."""
        self._stopping = True
        postmaster, self._postmaster = self._postmaster, None
        try:
            if postmaster is not None:
                await postmaster.stop()
            if self._cluster is not None and self._lock.held:
                await stop_survivors(self._cluster.path, patience=3.0)
        finally:
            self._lock.release()

    def url(self, database: str = DATABASE) -> str:
        """URL of a database of this server. Raises ProcessError E4600 when it does not run."""
        if self._postmaster is None or self._cluster is None:
            raise ProcessError("the embedded Postgres is not running", where=str(self.data_dir), mend="call start() first")
        secret = quote(self._cluster.password(), safe="")
        return f"postgresql://{SUPERUSER}:{secret}@{HOST}:{self._postmaster.port}/{quote(database, safe='')}"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._postmaster.pid if self._postmaster is not None else None

    def announce(self, address: str) -> None:
        """Tell where the gateway listens, for the error that a second owner gets."""
        self._address = address
        self._lock.note(address=address)

    def status(self) -> dict[str, Any]:
        """JSON-able facts: data_dir, running, pid, port, restarts, way (how the binaries are run)."""
        return {
            "data_dir": str(self.data_dir),
            "running": self.pid is not None,
            "pid": self.pid,
            "port": self._postmaster.port if self._postmaster is not None else None,
            "restarts": self._restarts,
            "way": self._cluster.identity.way if self._cluster is not None else None,
        }

    def _make_data_dir(self) -> None:
        try:
            if not self.data_dir.exists():
                self.data_dir.mkdir(parents=True, mode=0o700)
            if not stat.S_ISDIR(self.data_dir.stat().st_mode):
                raise data_directory_error(self.data_dir, "the data directory is a file")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            cause = error if isinstance(error, OSError) else None
            raise data_directory_error(self.data_dir, "the data directory cannot be made", cause) from error

    async def _launch(self, port: int | None) -> None:
        assert self._cluster is not None  # noqa: S101 - for the type checker; start() sets it
        give_up = time.monotonic() + _RETRY_SECONDS
        while not self._stopping:
            postmaster = Postmaster(self._cluster, port or free_port(), self._options)
            postmaster.spawn()
            self._postmaster = postmaster
            self._started_at = time.monotonic()
            if await postmaster.ready(_START_SECONDS):
                self._lock.note(port=postmaster.port)
                return
            if self._stopping:
                return
            if postmaster.pid is not None:
                failure = postmaster.failure(f"Postgres was not ready within {_START_SECONDS:.0f} s")
                await postmaster.stop(fast=1.0)
                raise failure
            output = postmaster.output()
            if time.monotonic() > give_up or not any(text in output for text in (*_OLD_LIFE, *_PORT_TAKEN)):
                raise postmaster.failure("Postgres did not start")
            await asyncio.sleep(0.3)

    async def _ensure_database(self) -> None:
        import psycopg
        from psycopg import sql

        try:
            connection = await psycopg.AsyncConnection.connect(self.url("postgres"), autocommit=True, connect_timeout=10)
            async with connection:
                found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if await found.fetchone() is None:
                    await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                assert self._cluster is not None  # noqa: S101 - for the type checker
                raise ProcessError(
                    "the database does not take the password in this file",
                    code="E4602",
                    where=str(self._cluster.password_file),
                    mend="restore the file from a backup; without it, move the directory `postgres` away to start afresh",
                ) from error
            raise
