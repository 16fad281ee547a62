"""What can befall a Postgres server, done to a real one: each fault lasts for a while and is over when its block ends."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg

from support.pg_cluster import PASSWORD, SUPERUSER, PgCluster
from support.processes import wait_for

__all__ = ["FAULTS", "promoted", "signalled"]

CLIENTS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def processes(cluster: PgCluster) -> list[int]:
    """The postmaster and its children."""
    root = int((cluster.data / "postmaster.pid").read_text().split()[0])
    found = [root]
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == root:
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def restarted(cluster: PgCluster) -> Iterator[None]:
    """Stopped fast (its clients are thrown out), started again at the end."""
    cluster.stop()
    yield
    cluster.start()


@contextlib.contextmanager
def killed(cluster: PgCluster) -> Iterator[None]:
    """SIGKILL for all of it at once; it recovers from its log at the end."""
    pids = processes(cluster)
    signalled(pids, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in pids), 10, "Postgres is dead", 0.02)
    cluster.stop()
    yield
    cluster.start()


@contextlib.contextmanager
def stopped(cluster: PgCluster) -> Iterator[None]:
    """It hangs: connections stand, and nothing answers."""
    pids = processes(cluster)
    signalled(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        signalled(pids, signal.SIGCONT)


@contextlib.contextmanager
def full(cluster: PgCluster) -> Iterator[None]:
    """Others have all of `max_connections`."""
    host = f"host={cluster.directory} port={cluster.port}"
    taken: list[psycopg.Connection] = []
    with psycopg.connect(f"{host} user={SUPERUSER} dbname=postgres", password=PASSWORD, autocommit=True) as admin:
        ours = [admin.info.backend_pid]
        try:
            for _ in range(5):
                for (pid,) in admin.execute(CLIENTS).fetchall():
                    if pid not in ours:
                        admin.execute("SELECT pg_terminate_backend(%s, 2000)", [pid])
                with contextlib.suppress(psycopg.OperationalError):
                    while True:
                        taken.append(psycopg.connect(f"{host} user={SUPERUSER} dbname=postgres", password=PASSWORD))
                        ours.append(taken[-1].info.backend_pid)
            yield
        finally:
            for connection in taken:
                connection.close()


@contextlib.contextmanager
def read_only(cluster: PgCluster) -> Iterator[None]:
    """Reading works, writing does not."""
    cluster.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()", socket=True)
    try:
        yield
    finally:
        unset = ("SET default_transaction_read_only = off", "ALTER SYSTEM RESET default_transaction_read_only")
        cluster.execute(*unset, "SELECT pg_reload_conf()", socket=True)


@contextlib.contextmanager
def thrown_out(cluster: PgCluster) -> Iterator[None]:
    """All clients lose their connections, and may come back at once."""
    for (pid,) in cluster.execute(CLIENTS, socket=True):
        cluster.execute(f"SELECT pg_terminate_backend({pid})", socket=True)
    yield


@contextlib.contextmanager
def crashed(cluster: PgCluster) -> Iterator[None]:
    """One backend is killed, as for memory: Postgres throws all out and recovers by itself."""
    rows = cluster.execute(CLIENTS, socket=True)
    signalled([int(str(pid)) for (pid,) in rows[:1]], signal.SIGKILL)
    yield


FAULTS = {
    "restarted": restarted,
    "killed": killed,
    "hangs": stopped,
    "out of connections": full,
    "read-only": read_only,
    "clients thrown out": thrown_out,
    "a backend killed": crashed,
}
"""Name -> context manager of a cluster."""


def promoted(primary: PgCluster, standby: PgCluster) -> None:
    """The primary dies and the standby takes over, on its own address."""
    signalled(processes(primary), signal.SIGKILL)
    primary.stop()
    standby.promote()
    wait_for(lambda: standby.execute("SELECT pg_is_in_recovery()", socket=True) == [(False,)], 20, "the standby takes over")


def signalled(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to all that still live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
