"""Programs from Debian's packages for slow tests, unpacked and not installed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["pgbouncer", "postgres_with_tls"]

_POSTGRES = Path("/usr/lib/postgresql")


def _run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr[-600:]}"
    return done.stdout


@cache
def unpack(*packages: str) -> Path:
    """The packages' files below a directory of their own; fails with apt's words where there is no Debian or no mirror."""
    target = Path(tempfile.mkdtemp(prefix="debian-"))
    target.chmod(0o755)
    lists = Path("/var/lib/apt/lists")
    if not any(lists.glob("*_Packages*")):
        _run("apt-get", "update", "-qq", cwd=target)
    _run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages, cwd=target)
    for file in target.glob("*.deb"):
        _run("dpkg-deb", "-x", file, target / "root", cwd=target)
    return target / "root"


@cache
def postgres_with_tls() -> Path:
    """The `bin` directory of a Postgres built with TLS: the machine's own, else Debian's."""
    installed = sorted(_POSTGRES.glob("*/bin/postgres"))
    if installed:
        return installed[-1].parent
    root = unpack("postgresql-15", "postgresql-client-15", "libpq5", "libllvm14", "libxml2")
    return root / "usr/lib/postgresql/15/bin"


@cache
def pgbouncer() -> tuple[Path, dict[str, str]]:
    """PgBouncer's program, and the environment it wants."""
    root = unpack("pgbouncer", "libc-ares2", "libevent-2.1-7")
    libraries = ":".join(str(path) for path in (root / "usr/lib").glob("*-linux-gnu"))
    return root / "usr/sbin/pgbouncer", {"LD_LIBRARY_PATH": libraries, "PATH": os.defpath}
