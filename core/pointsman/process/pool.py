"""The workers of an instance, as the supervisor sees them: the preloader, its forks, and the line to each.

Owned by the supervisor's event loop. A worker that ends is replaced, with a growing pause while new ones keep failing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pointsman.errors import PointsmanError, ProcessError
from pointsman.process.channel import MAX_MESSAGE, Channel, ChannelClosedError

__all__ = ["Worker", "WorkerPool"]

logger = logging.getLogger("pointsman.pool")

MAX_PAUSE = 30.0
FAILURES_AT_START = 3
TAIL_BYTES, TAIL_LINES = 8192, 25
SEE = "see what the workers said, above"


@dataclass(slots=True)
class Worker:
    """One worker slot.

    Attributes:
        index: from 0.
        pid: process id, None while there is none.
        ready: accepts requests.
        served: was ready once since it was started.
        orphan: its preloader is gone, so nobody but its own line tells when it ends.
        generations: strategy -> generation that it serves.
        errors: strategy -> why its last snapshot was not taken.
        failures: times in a row that it ended before it was ready.
        restarts: times that it was replaced.
    """

    index: int
    pid: int | None = None
    ready: bool = False
    served: bool = False
    orphan: bool = False
    channel: Channel | None = None
    generations: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    restarts: int = 0


class WorkerPool:
    """Starts, watches and stops the workers.

    Args:
        run_dir: private directory for the control socket.
        listen_fd: inheritable descriptor of the listening socket.
        size: number of workers.
        environment: of the preloader and so of every worker.
        welcome: makes the first message to a worker (settings, snapshots).
        call: answers a worker's question `(method, params)`; may raise `PointsmanError`.
        output: file that the workers' output is appended to; None: ours.
    """

    def __init__(
        self,
        run_dir: Path,
        listen_fd: int,
        size: int,
        environment: Mapping[str, str],
        welcome: Callable[[], Mapping[str, Any]],
        call: Callable[[str, Mapping[str, Any]], Awaitable[Any]],
        output: Path | None = None,
    ) -> None:
        self.workers = [Worker(index) for index in range(size)]
        self.path = run_dir / "control.sock"
        self.on_ready: Callable[[Worker], None] = lambda _: None
        self.on_join: Callable[[Worker], None] = lambda _: None
        self.on_facts: Callable[[Worker, Mapping[str, Any]], None] = lambda _, __: None
        self._listen_fd = listen_fd
        self._environment = dict(environment)
        self._welcome = welcome
        self._call = call
        self._output = output
        self._server: asyncio.Server | None = None
        self._preloader: asyncio.subprocess.Process | None = None
        self._preloader_line: Channel | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Condition()
        self._stopping = False
        self._released = False
        self._fatal: ProcessError | None = None
        self._warm: Mapping[str, Any] | None = None
        """What came of the warm-up, told by the worker that did it, for all who join; None: it is not over."""

    async def start(self) -> None:
        """Listen for the children and start the preloader; returns before it has imported anything.

        Raises:
            ProcessError: the control socket cannot be made (its path is too long).
        """
        try:
            self._server = await asyncio.start_unix_server(self._accept, path=str(self.path), limit=MAX_MESSAGE)
        except OSError as error:
            raise ProcessError(
                f"cannot make the control socket: {error}", where=str(self.path), mend="set TMPDIR to a short path"
            ) from error
        self._spawn(self._run_preloader())

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the pool failed", exc_info=error)

    async def _run_preloader(self) -> None:
        """Keep one preloader alive. Workers outlive it; without it there are only no new ones."""
        pause = 1.0
        while not self._stopping:
            try:
                code: int | str = await self._preload()
            except OSError as error:  # no more processes or files, or a log that cannot be opened
                code = str(error)
            self._preloader_line = None
            if self._stopping:
                return
            logger.error("the preloader ended with status %s", code)
            for worker in self.workers:
                if worker.channel is None:
                    worker.pid = None
                else:
                    worker.orphan = True
            if not any(worker.ready for worker in self.workers):
                await self._fail(ProcessError(f"LiteLLM could not be imported (status {code}){self._tail()}", mend=SEE))
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)

    async def _preload(self) -> int:
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self._output.open("ab")) if self._output is not None else None
            self._preloader = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pointsman.process.preloader",
                str(self.path),
                str(self._listen_fd),
                env=self._environment,
                pass_fds=(self._listen_fd,),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT if output is not None else None,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor alone
            )
        return await self._preloader.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        try:
            hello = await channel.receive()
            if hello["type"] == "preloader":
                await self._serve_preloader(channel)
            elif hello["type"] == "hello":
                await self._serve_worker(self.workers[hello["worker"]], channel)
        except ChannelClosedError:
            pass
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _serve_preloader(self, channel: Channel) -> None:
        self._preloader_line = channel
        if self._released:
            self._fork_missing(channel)
        while True:
            message = await channel.receive()
            worker = self.workers[message["worker"]]
            if message["type"] == "forked":
                worker.pid = message["pid"]
            elif message["type"] == "exited" and worker.pid in (message["pid"], None):
                await self._ended(worker, message["status"])

    def release(self) -> None:
        """Let the workers start, as soon as the preloader is ready; until then it only imports."""
        self._released = True
        if self._preloader_line is not None:
            self._fork_missing(self._preloader_line)

    def _fork_missing(self, line: Channel) -> None:
        for worker in self.workers:
            if worker.pid is None and worker.channel is None:
                line.send({"worker": worker.index})

    async def _serve_worker(self, worker: Worker, channel: Channel) -> None:
        worker.channel = channel
        try:
            channel.send({"type": "welcome", "workers": len(self.workers), "warm": self._warm, **self._welcome()})
            self.on_join(worker)
            if self._stopping:  # it was on its way when the drain was told to the others
                channel.send({"type": "drain"})
            while True:
                message = await channel.receive()
                if worker.channel is not channel:
                    return  # said before it died; it has been replaced
                kind = message["type"]
                if kind == "call":
                    self._spawn(self._answer(channel, message))
                    continue
                if self._for_all(worker, message):
                    continue
                if kind == "ready":
                    worker.ready, worker.served, worker.failures = True, True, 0
                    self.on_ready(worker)
                elif kind == "ack":
                    strategy = message["strategy"]
                    if (error := message.get("error")) is None:
                        worker.generations[strategy] = message["generation"]
                        worker.errors.pop(strategy, None)
                    else:
                        worker.errors[strategy] = error
                await self._notify()
        finally:
            if worker.channel is channel:
                worker.channel, worker.ready = None, False
                worker.generations.clear()
                await self._notify()
                if worker.orphan:
                    worker.orphan = False
                    await self._ended(worker, None)

    def _for_all(self, worker: Worker, message: Mapping[str, Any]) -> bool:
        """Hand on what a worker tells the instance, and says nothing of its own state."""
        if message["type"] == "facts":
            self.on_facts(worker, message)
        elif message["type"] == "warm":
            self._warm = message["state"]
            self.broadcast({"type": "warm", "state": self._warm})
        else:
            return False
        return True

    async def _answer(self, channel: Channel, message: Mapping[str, Any]) -> None:
        reply: dict[str, Any] = {"type": "reply", "id": message["id"]}
        try:
            reply["result"] = await self._call(message["method"], message["params"])
        except PointsmanError as error:
            reply["error"] = {"message": error.message, "code": error.code, "where": error.where, "mend": error.mend}
        except Exception as error:  # an endpoint gets an answer whatever goes wrong; the log has the trace
            logger.exception("call %s failed", message["method"])
            reply["error"] = {"message": f"{type(error).__name__}: {error}", "code": "E4600"}
        channel.send(reply)

    async def _ended(self, worker: Worker, status: int | None) -> None:
        served = worker.served
        worker.pid, worker.ready, worker.served, worker.channel = None, False, False, None
        worker.generations.clear()
        await self._notify()
        if self._stopping:
            return
        worker.failures = 0 if served else worker.failures + 1
        worker.restarts += 1
        logger.error("worker %d ended with status %s; it is replaced", worker.index, status)
        if worker.failures >= FAILURES_AT_START and not any(other.ready for other in self.workers):
            await self._fail(ProcessError(f"workers do not start (status {status}){self._tail()}", mend=SEE))
            return
        self._spawn(self._replace(worker))

    async def _replace(self, worker: Worker) -> None:
        if worker.failures:
            await asyncio.sleep(min(2.0 ** (worker.failures - 1), MAX_PAUSE))
        if self._preloader_line is not None and worker.pid is None and not self._stopping:
            self._preloader_line.send({"worker": worker.index})

    def _tail(self) -> str:
        """The last lines of the workers' output, when it went into a file."""
        if self._output is None or not self._output.is_file():
            return ""
        with self._output.open("rb") as stream:
            stream.seek(max(0, self._output.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
        return "".join(f"\n    {line}" for line in [f"the end of {self._output}:", *lines])

    async def _fail(self, error: ProcessError) -> None:
        self._fatal = error
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` holds; it is looked at whenever a worker says something.

        Raises:
            ProcessError: the workers cannot be started.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self._fatal is not None)
        if self._fatal is not None:
            raise self._fatal

    async def failed(self) -> ProcessError:
        """Return when the pool can go on no longer."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._fatal is not None)
        assert self._fatal is not None  # noqa: S101 - narrows the type
        return self._fatal

    def broadcast(self, message: Mapping[str, Any]) -> None:
        """Send a message to every worker that is connected."""
        for worker in self.workers:
            if worker.channel is not None:
                worker.channel.send(message)

    async def stop(self, timeout: float) -> None:
        """Drain the workers, at most `timeout` seconds, then end what is left; idempotent."""
        self._stopping = True
        self.broadcast({"type": "drain"})
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: all(worker.channel is None for worker in self.workers))
        except TimeoutError:
            logger.error("workers did not stop within %g s; killing them", timeout)
            for worker in self.workers:
                if worker.pid is not None:
                    _kill(worker.pid)
        if self._preloader_line is not None:
            await self._preloader_line.close()
        elif self._preloader is not None and self._preloader.returncode is None:
            self._preloader.kill()  # still importing; nothing of it is needed
        if self._preloader is not None and self._preloader.returncode is None:
            try:
                await asyncio.wait_for(self._preloader.wait(), 5)
            except TimeoutError:
                self._preloader.kill()
                await self._preloader.wait()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _kill(pid: int) -> None:
    import os
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
