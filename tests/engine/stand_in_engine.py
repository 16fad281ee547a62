"""An executable that behaves as Prisma's native engine does: one process, one client, the URL in its environment.

It stands in for the real one in the tests of `--native-engine`, and is our own server behind it. prisma-client-py starts it as
`<engine> -p PORT ...` with PRISMA_DML_PATH and OVERWRITE_DATASOURCES, asks `--version`, and ends it with SIGINT.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from pointsman.migrations.engine.query_engine import SERVER
from pointsman.migrations.install import Layout, node_binary

__all__ = ["write"]


def write(path: Path) -> Path:
    """Write an executable that runs this file with this interpreter."""
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n', encoding="utf-8")
    path.chmod(0o700)
    return path


def _run(arguments: list[str]) -> None:
    if "--version" in arguments:
        print("query-engine stand-in")
        return
    port = arguments[arguments.index("-p") + 1]
    (datasource,) = json.loads(os.environ["OVERWRITE_DATASOURCES"])
    ports = Path(tempfile.mkdtemp(prefix="stand-in-"))
    (ports / port).write_text(f"{os.getpid()} {os.getppid()}\n", encoding="utf-8")
    # The server reads its settings from stdin and ends when that does: so it gets a pipe whose other end it holds itself.
    read, hold = os.pipe()
    settings = {"databaseUrl": datasource["url"], "schema": os.environ["PRISMA_DML_PATH"], "ports": str(ports)}
    os.write(hold, json.dumps(settings).encode() + b"\n")
    os.dup2(read, 0)
    os.set_inheritable(hold, True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    node = str(node_binary())
    os.execv(node, [node, str(SERVER), str(Layout.current().engine_modules)])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    _run(sys.argv[1:])
