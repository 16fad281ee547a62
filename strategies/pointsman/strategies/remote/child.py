"""One process of its own: how it is started, looked at and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pointsman.strategies.remote.serve import HEADER, LOADED, MAX_MESSAGE, pack, unpack

__all__ = ["Child", "FrameError", "child_environment", "read_message", "resident_bytes", "tree_of"]

logger = logging.getLogger("pointsman.remote")

GUARD = Path(__file__).with_name("guard.py")
END_SECONDS = 2.0
"""So long its guard may take to end everything; then it is killed, too."""
KEPT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "OMP_NUM_THREADS",
)
"""All that a child sees of the instance's environment: no key, no database, no proxy."""

LINES, LINE_BYTES = 200, 2_000
"""Lines of output that are logged while it loads, and how much of each."""


class FrameError(Exception):
    """What came is no message."""


async def read_message(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message.

    Raises:
        asyncio.IncompleteReadError, ConnectionError: the other side is gone.
        FrameError: too long, or no JSON object.
    """
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    if length > MAX_MESSAGE:
        raise FrameError(f"a message of {length} bytes; at most {MAX_MESSAGE} are allowed")
    try:
        return unpack(await reader.readexactly(length))
    except ValueError as error:
        raise FrameError(f"no message: {error}") from error


def child_environment(env: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """What the child gets to see: `KEPT`, a home of its own, nothing of the network.

    The cache of the Hugging Face hub is where the instance's is, for models that the operator downloaded; the token beside it
    is not handed on.
    """
    home = str(scratch)
    cache = env.get("HF_HOME") or str(Path(env.get("HOME") or "/") / ".cache/huggingface")
    hub = env.get("HF_HUB_CACHE") or str(Path(cache) / "hub")
    return {
        **{name: env[name] for name in KEPT if name in env},
        "HOME": home,
        "TMPDIR": home,
        "XDG_CACHE_HOME": home,
        "XDG_CONFIG_HOME": home,
        "HF_HOME": home,
        "HF_HUB_CACHE": hub,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"),
    }


def tree_of(pid: int) -> list[int]:
    """A process and its descendants, parents first; on Linux (proc(5)), elsewhere the process alone."""
    found, index = [pid], 0
    while index < len(found):
        with contextlib.suppress(OSError):  # it has ended, or there is no /proc
            for task in Path(f"/proc/{found[index]}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += [int(child) for child in (task / "children").read_text().split() if int(child) not in found]
        index += 1
    return found


def resident_bytes(pid: int, *, alone: bool = False) -> int:
    """Resident memory of a process and its descendants; shared pages count for each. 0 where there is no /proc."""
    pages = 0
    for member in [pid] if alone else tree_of(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Child:
    """A running process; made by `start`, ended by `end`.

    Attributes:
        process: of asyncio's: the guard, see `pointsman.strategies.remote.guard`.
        pid: of the process that serves, once that is known; else the guard's.
        reader, writer: the line to it.
        output: the last lines of what it said while it loaded; later ones may quote prompts, and are let go.
    """

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        said: tuple[asyncio.StreamReader, asyncio.BaseTransport],
    ) -> None:
        self.process, self.pid = process, process.pid
        self.reader, self.writer = line
        self.output: deque[str] = deque(maxlen=20)
        self._name = name
        self._logged = 0
        self._pipe = said[1]
        self._drain = asyncio.create_task(self._read_output(said[0]))
        self._ended: int | None = None

    @classmethod
    async def start(cls, name: str, python: str | None, env: Mapping[str, str], scratch: Path) -> Self:
        """Start it in a session of its own.

        Raises:
            OSError: there is no such interpreter, or it cannot be run.
        """
        async with contextlib.AsyncExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            stack.callback(theirs.close)
            # A pipe of our own: asyncio would wait for its end together with the process's, and others may hold it open.
            out, into = os.pipe()
            output = stack.enter_context(os.fdopen(out, "rb", 0))
            stack.callback(os.close, into)
            said = asyncio.StreamReader()
            loop = asyncio.get_running_loop()
            pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(said), output)
            stack.callback(pipe.close)
            line, writer = await asyncio.open_unix_connection(sock=ours)
            stack.callback(writer.close)
            process = await asyncio.create_subprocess_exec(
                python or sys.executable,
                "-I",
                str(GUARD),
                str(theirs.fileno()),
                env=child_environment(env, scratch),
                cwd=scratch,
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=into,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
            stack.pop_all()
            theirs.close()
            os.close(into)
            return cls(name, process, (line, writer), (said, pipe))

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message; ConnectionError when it is gone."""
        self.writer.write(pack(message))
        await self.writer.drain()

    def named(self, pid: object) -> None:
        """It told which process serves; believed when that is one of its own."""
        if isinstance(pid, int) and pid in tree_of(self.process.pid):
            self.pid = pid

    def resident(self) -> int:
        """Bytes that it and what it started have resident, the guard's left out."""
        everything, guard = resident_bytes(self.process.pid), resident_bytes(self.process.pid, alone=True)
        return everything - guard if everything > guard else everything

    async def _read_output(self, stream: asyncio.StreamReader) -> None:
        """Read what it prints, always, or it would stop at a full pipe; log a bounded part of it."""
        rest, loaded = b"", False
        while chunk := await stream.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-LINE_BYTES:]
            for line in lines:
                loaded = loaded or line == LOADED
                if loaded or not line.strip():
                    continue
                text = line[:LINE_BYTES].decode(errors="replace").rstrip()
                self.output.append(text)
                self._logged += 1
                if self._logged <= LINES:
                    logger.info("%s says: %s", self._name, text)

    async def end(self) -> int:
        """Kill it with everything that it started, and wait; returns its status, negative for a signal. Idempotent."""
        if self._ended is not None:
            return self._ended
        self.writer.transport.abort()  # its guard kills all the others, and itself
        if self.process.returncode is None:
            for pid in reversed(tree_of(self.process.pid)[1:]):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), END_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the guard, if it hangs or was itself killed: then its session
        self._ended = await self.process.wait()
        self._drain.cancel()
        await asyncio.gather(self._drain, return_exceptions=True)
        self._pipe.close()
        return self._ended
