"""As whom Postgres runs: it refuses to be root, and wants its user to have an entry in the password database.

Three ways, tried in this order and judged by running `postgres --version`:

- `direct`: a plain user with an entry runs it as itself.
- `namespace`: `unshare --user` maps the caller (root, or a user without an entry) to `nobody` for Postgres alone. The files
  keep the caller as owner, so it works inside a home directory of mode 0700.
- `setpriv`: root becomes `nobody` for good. The files then belong to `nobody`, and every directory above them and above the
  binaries must be open to others (mode o+x). For containers whose seccomp profile refuses user namespaces.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pointsman.errors import ProcessError

__all__ = ["BARE_ENVIRONMENT", "WAYS", "Identity", "choose"]

WAYS = ("direct", "namespace", "setpriv")
_PROBE_SECONDS = 20.0
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"
# Nothing of the caller's environment: PGDATA, PGPORT, TZ or a locale would change what Postgres does.
BARE_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": _PATH}


@dataclass(frozen=True, slots=True)
class Identity:
    """How to start a Postgres binary, and who owns the files.

    Attributes:
        way: `direct`, `namespace` or `setpriv`.
        prefix: argument vector to put before the binary.
        uid, gid: owner of the cluster's files as the file system tells it.
        dies_with_us: argument vector to put before the binary so that it gets SIGINT when the thread that started it dies;
            empty when the machine has no `setpriv`.
    """

    way: str
    prefix: tuple[str, ...]
    uid: int
    gid: int
    dies_with_us: tuple[str, ...] = ()


def _entry() -> pwd.struct_passwd | None:
    """Somebody who is not root: `nobody`, else whoever has the highest id."""
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
        return max(others, key=lambda entry: entry.pw_uid, default=None)


def _has_entry(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _candidates(uid: int, gid: int) -> list[Identity]:
    setpriv, unshare = shutil.which("setpriv", path=_PATH), shutil.which("unshare", path=_PATH)
    # SIGINT is Postgres's fast shutdown.
    pdeathsig = (setpriv, "--pdeathsig", "INT", "--") if setpriv else ()
    found: list[Identity] = []
    if uid != 0 and _has_entry(uid):
        found.append(Identity("direct", (), uid, gid, pdeathsig))
    other = _entry()
    if other is not None and unshare:
        to = (unshare, "--user", f"--map-user={other.pw_uid}", f"--map-group={other.pw_gid}", "--")
        found.append(Identity("namespace", to, uid, gid, pdeathsig))
    if uid == 0 and other is not None and setpriv:
        to = (setpriv, f"--reuid={other.pw_uid}", f"--regid={other.pw_gid}", "--clear-groups", "--")
        found.append(Identity("setpriv", to, other.pw_uid, other.pw_gid, pdeathsig))
    return found


def choose(binary: Path, *, ways: Sequence[str] = WAYS) -> Identity:
    """The first way that can run `binary --version` here.

    Args:
        binary: path of `postgres`.
        ways: those to consider, for tests and for operators who know.

    Raises:
        ProcessError: E4600 with what each way answered.
    """
    refused: list[str] = []
    for identity in _candidates(os.geteuid(), os.getegid()):
        if identity.way not in ways:
            continue
        for guard in dict.fromkeys((identity.dies_with_us, ())):
            command = [*identity.prefix, *guard, str(binary), "--version"]
            try:
                done = subprocess.run(
                    command, env=BARE_ENVIRONMENT, capture_output=True, timeout=_PROBE_SECONDS, check=False, cwd="/"
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                refused.append(f"{identity.way}: {error}")
                continue
            if done.returncode == 0:
                return Identity(identity.way, identity.prefix, identity.uid, identity.gid, guard)
            refused.append(f"{identity.way}: {done.stderr.decode(errors='replace').strip() or f'exit {done.returncode}'}")
    raise ProcessError(
        "Postgres cannot be run as this user: " + ("; ".join(refused) or "neither `unshare` nor `setpriv` is installed"),
        where=str(binary),
        mend="run as a plain user, or let root use user namespaces (or put .venv and --data-dir where `nobody` can read them)",
    )
