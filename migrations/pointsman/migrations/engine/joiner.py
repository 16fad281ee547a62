"""The executable that LiteLLM takes for Prisma's query engine.

prisma-client-py starts "the engine" itself, once a worker, with the port it chose. What it starts here only registers that port
as a file ``<port>`` holding ``<own pid> <parent's pid>`` and sleeps; the one real server listens on every registered port. The
sleeper dies with its worker: by the kernel's parent-death signal where ``setpriv`` and a recent ``env`` are there, else because
a small Python program (`park`) looks after its parent.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pointsman.migrations.engine import park
from pointsman.migrations.install.layout import ENGINE_COMMIT

__all__ = ["write_joiner", "write_openssl_stub"]

_SCRIPT = """\
#!/bin/sh
# Made by pointsman.migrations.engine.joiner: registers a port with the query engine that all workers share, and sleeps.
if [ "$1" = --version ]; then echo 'query-engine {commit}'; exit 0; fi
port=
while [ $# -gt 0 ]; do
    case $1 in -p | --port) port=$2 ;; esac
    shift
done
case $port in '' | *[!0-9]*) echo 'usage: query-engine -p PORT' >&2; exit 2 ;; esac
draft={ports}/.$port.$$
echo "$$ $PPID" >"$draft" && mv "$draft" {ports}/"$port" || exit 1
exec {sleep}
"""

# SIGINT and SIGTERM are put back to their defaults: a parent may ignore them, a shell cannot undo that, and whoever stops the
# "engine" waits for it.
_KERNEL_SLEEP = ["env", "--default-signal=INT,TERM", "setpriv", "--pdeathsig", "TERM", "sleep", "2147483647"]


def write_joiner(path: Path, ports: Path, env: Mapping[str, str], *, kernel: bool | None = None) -> None:
    """Write the executable (0700).

    Args:
        path: where to.
        ports: directory that the server watches; must exist.
        env: for the search path.
        kernel: whether to rely on the parent-death signal; None finds out.
    """
    if kernel is None:
        kernel = _kernel_sleep_works(env)
    if kernel:
        sleep = shlex.join(_KERNEL_SLEEP)
    else:
        sleep = f'{shlex.join([sys.executable, "-ISE", str(Path(park.__file__).resolve())])} "$PPID"'
    _write_script(path, _SCRIPT.format(commit=ENGINE_COMMIT, ports=shlex.quote(str(ports)), sleep=sleep))


def write_openssl_stub(path: Path) -> None:
    """prisma-client-py runs ``openssl version`` to name a native engine it does not need; this answers where openssl is not."""
    _write_script(path, "#!/bin/sh\necho 'OpenSSL 3.0.0'\n")


def _kernel_sleep_works(env: Mapping[str, str]) -> bool:
    try:
        done = subprocess.run([*_KERNEL_SLEEP[:-2], "true"], env=dict(env), capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _write_script(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o700)
    draft.replace(path)
