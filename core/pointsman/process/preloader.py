"""The preloader: imports LiteLLM once, then forks workers on request.

Run as `python -m pointsman.process.preloader CONTROL_SOCKET LISTEN_FD`. One import serves every worker, and a worker that
dies is replaced in the time of its start-up alone. The process stays single-threaded (fork is safe), its garbage collector is
off during the import (a third of the import's time) and what was imported is frozen, so that the workers share its pages.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

import orjson

__all__ = ["main"]

PRELOADED = (
    "litellm.proxy.proxy_server",
    "prisma",
    "uvloop",
    "httptools",
    "pointsman.process.worker",
)


def _import_everything() -> None:
    gc.disable()
    with contextlib.redirect_stdout(sys.stderr):
        from litellm.rust_bridge.fork_guard import reserve_process_for_forking

        reserve_process_for_forking("the preloader")
        for name in PRELOADED:
            importlib.import_module(name)
    gc.freeze()  # not collected first: measured, 0.6 s to find 2,400 objects among 950,000


class _Preloader:
    def __init__(self, control: str, listen_fd: int) -> None:
        self._control_path = control
        self._listen_fd = listen_fd
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wake_read, self._wake_write = os.pipe()
        self._workers: dict[int, int] = {}

    def _send(self, **message: Any) -> None:
        self._control.sendall(orjson.dumps(message) + b"\n")

    def run(self) -> int:
        """Serve until the supervisor closes the socket; then stop the workers and return 0."""
        self._control.connect(self._control_path)
        _import_everything()
        os.set_blocking(self._wake_write, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        self._send(type="preloader", pid=os.getpid())
        buffer = b""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._wake_read], [], [])
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                self._reap()
            if self._control.fileno() in ready:
                data = self._control.recv(65_536)
                if not data:
                    break
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    self._fork(int(orjson.loads(line)["worker"]))
        for pid in self._workers:
            # Each worker sees its own control connection close and drains; TERM only makes it certain.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return 0

    def _fork(self, worker: int) -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = self._child(worker)
            except BaseException:  # noqa: BLE001 - `os._exit` below would swallow it without a word
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self._workers[pid] = worker
        self._send(type="forked", worker=worker, pid=pid)

    def _child(self, worker: int) -> int:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._control.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        gc.enable()
        from pointsman.process.worker import run_worker

        return run_worker(worker, self._control_path, self._listen_fd)

    def _reap(self) -> None:
        while self._workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._send(type="exited", worker=worker, pid=pid, status=os.waitstatus_to_exitcode(status))


def main(argv: list[str]) -> int:
    """Entry point; arguments are the control socket's path and the number of the listening socket's descriptor."""
    return _Preloader(argv[0], int(argv[1])).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
