"""The engine's process: many clients, deaths of everyone involved, start and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prisma import Prisma

from engine.harness import EngineThread, eventually, is_alive
from pointsman.errors import DatabaseError
from pointsman.migrations.engine import QueryEngine
from pointsman.migrations.engine.joiner import write_joiner, write_openssl_stub

CHILD = """
    import asyncio, os, sys
    from pathlib import Path
    from pointsman.migrations.engine import QueryEngine

    async def main():
        engine = QueryEngine(sys.argv[1], Path(sys.argv[2]))
        await engine.start()
        print(engine.status()["pid"], flush=True)
        await engine.run()

    asyncio.run(main())
"""


def _ports(engine: EngineThread) -> list[int]:
    return list(engine.engine.status()["ports"])


def _joiners(engine: EngineThread, run_dir: Path) -> dict[int, int]:
    return {port: int((run_dir / "engine" / "ports" / str(port)).read_text().split()[0]) for port in _ports(engine)}


async def test_two_clients_share_one_engine(own_engine: Any, database: str) -> None:
    engine = own_engine(database)
    one, two = engine.client(), engine.client()
    await asyncio.gather(one.connect(), two.connect())
    assert len(_ports(engine)) == 2
    counts = await asyncio.gather(one.litellm_usertable.count(), two.litellm_usertable.count())
    assert counts[0] == counts[1]
    await one.disconnect()
    eventually(lambda: len(_ports(engine)) == 1, what="the first client's port to close")
    assert isinstance(await two.litellm_usertable.count(), int)
    await two.disconnect()
    eventually(lambda: _ports(engine) == [], what="the second client's port to close")


async def test_a_killed_engine_is_back_on_the_same_port(own_engine: Any, database: str) -> None:
    engine = own_engine(database)
    client = engine.client()
    await client.connect()
    ports, before = _ports(engine), engine.pid
    for death in range(1, 3):
        os.kill(engine.pid, signal.SIGKILL)
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            try:
                await client.litellm_usertable.count()
                if engine.engine.status()["restarts"] == death:
                    break
            except httpx.TransportError:
                pass
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
    status = engine.engine.status()
    assert status["state"] == "ready"
    assert status["pid"] != before
    assert status["ports"] == ports
    assert status["last_error"] == "exited with code -9"
    await client.disconnect()


def test_the_engine_goes_with_its_supervisor(tmp_path: Path, database: str) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), database, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert supervisor.stdout is not None
        node = int(supervisor.stdout.readline())
        assert is_alive(node)
    finally:
        supervisor.kill()
        supervisor.wait()
        if supervisor.stdout is not None:
            supervisor.stdout.close()
    eventually(lambda: not is_alive(node), what="the orphaned engine to end")


@pytest.fixture
def client_process(engine: EngineThread) -> Iterator[subprocess.Popen[str]]:
    """A process of its own with a connected client, as a worker is."""
    code = """
        import asyncio, sys
        from prisma import Prisma

        async def main():
            client = Prisma(datasource={"url": "postgresql://unused"})
            await client.connect()
            print(client._engine.process.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    env = {**os.environ, **engine.engine.environment}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=env)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_killed_client_leaves_no_joiner_and_no_port(engine: EngineThread, client_process: subprocess.Popen[str]) -> None:
    assert client_process.stdout is not None
    joiner = int(client_process.stdout.readline())
    before = _ports(engine)
    client_process.kill()
    client_process.wait()
    eventually(lambda: not is_alive(joiner), what="the joiner to end")
    eventually(lambda: len(_ports(engine)) == len(before) - 1, what="its port to close")


async def test_a_killed_joiner_closes_its_port_only(own_engine: Any, database: str, tmp_path: Path) -> None:
    engine = own_engine(database)
    one, two = engine.client(), engine.client()
    await one.connect()
    await two.connect()
    port, joiner = next(iter(_joiners(engine, tmp_path / "run-0").items()))
    os.kill(joiner, signal.SIGKILL)
    eventually(lambda: port not in _ports(engine), what="the port to close")
    results = await asyncio.gather(one.litellm_usertable.count(), two.litellm_usertable.count(), return_exceptions=True)
    assert sorted(isinstance(result, int) for result in results) == [False, True]
    await one.disconnect()
    await two.disconnect()


async def test_stopping_lets_a_query_finish(own_engine: Any, database: str) -> None:
    engine = own_engine(database)
    client = engine.client()
    await client.connect()
    slow = asyncio.ensure_future(client.query_raw("SELECT pg_sleep(1)::text AS done"))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(engine.call, engine.engine.stop())
    assert await slow == [{"done": ""}]
    assert engine.engine.status()["state"] == "stopped"
    await client.disconnect()


async def test_stopping_twice_or_before_the_start(tmp_path: Path, database: str) -> None:
    engine = QueryEngine(database, tmp_path)
    await engine.stop()
    await engine.start()
    pid = engine.status()["pid"]
    await engine.stop()
    await engine.stop()
    assert not is_alive(pid)


async def test_stop_ends_run(tmp_path: Path, database: str) -> None:
    engine = QueryEngine(database, tmp_path)
    await engine.start()
    run = asyncio.ensure_future(engine.run())
    await asyncio.sleep(0)
    await engine.stop()
    await asyncio.wait_for(run, 5)
    assert engine.status()["restarts"] == 0


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("mysql://a:b@c/d", "E4504"),
        ("postgresql://a:secret@[bad/d", "E4504"),
        ("postgresql://a:secret@h/d?connection_limit=many", "E4503"),
        ("postgresql://a:secret@h/d?sslmode=sometimes", "E4503"),
        ("postgresql://a:secret@h/d?sslmode=verify-full&sslrootcert=/no/such/file", "E4503"),
    ],
)
async def test_a_url_that_cannot_be(tmp_path: Path, url: str, code: str) -> None:
    engine = QueryEngine(url, tmp_path)
    with pytest.raises(DatabaseError) as caught:
        await engine.start()
    await engine.stop()
    assert caught.value.code == code
    assert "secret" not in str(caught.value)
    assert caught.value.mend


async def test_the_password_is_on_no_command_line(engine: EngineThread) -> None:
    password = engine.url.partition("://")[2].partition(":")[2].partition("@")[0]
    process = Path(f"/proc/{engine.pid}")
    assert password.encode() not in (process / "cmdline").read_bytes()
    assert password.encode() not in (process / "environ").read_bytes()


def test_the_joiner_answers_as_the_native_engine(tmp_path: Path) -> None:
    write_joiner(tmp_path / "it's here" / "joiner", tmp_path, dict(os.environ))
    answer = subprocess.run([tmp_path / "it's here" / "joiner", "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "query-engine 393aa359c9ad4a4bb28630fb5613f9c281cde053"
    assert (tmp_path / "it's here" / "joiner").stat().st_mode & 0o777 == 0o700
    for arguments in ([], ["-p", "../x"], ["-p", ""]):
        assert subprocess.run([tmp_path / "it's here" / "joiner", *arguments], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "fallback"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_joiner_ends_on_a_signal_even_if_its_parent_ignores_it(
    tmp_path: Path, kernel: bool, number: signal.Signals
) -> None:
    ports = tmp_path / "po rts"
    ports.mkdir()
    write_joiner(tmp_path / "joiner", ports, dict(os.environ), kernel=kernel)
    # Starts the joiner with the signal ignored, as a worker does whose supervisor handles Ctrl-C.
    ignoring = f"import os, signal, sys; signal.signal({int(number)}, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", ignoring, str(tmp_path / "joiner"), "-p", "4321", "--enable-metrics"])
    try:
        eventually((ports / "4321").exists, what="the registration")
        assert (ports / "4321").read_text().split() == [str(process.pid), str(os.getpid())]
        eventually(lambda: _asleep(process.pid), what="the joiner to fall asleep")
        eventually(lambda: _default(process.pid, number), what="the default disposition")
        process.send_signal(number)
        process.wait(10)
    finally:
        process.kill()
        process.wait()


def _asleep(pid: int) -> bool:
    """Whether the shell has replaced itself by what sleeps."""
    program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    return (
        Path(program.decode()).name not in {"sh", "env", "setpriv", Path(sys.executable).name}
        or b"park" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def _default(pid: int, number: signal.Signals) -> bool:
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return not int(lines["SigIgn"], 16) >> (number - 1) & 1


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "fallback"])
def test_the_joiner_ends_with_its_parent(tmp_path: Path, kernel: bool) -> None:
    write_joiner(tmp_path / "joiner", tmp_path, dict(os.environ), kernel=kernel)
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "joiner"), "-p", "4321"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        joiner = int(parent.stdout.readline())
        eventually((tmp_path / "4321").exists, what="the registration")
        eventually(lambda: _asleep(joiner), what="the joiner to fall asleep")
        assert is_alive(joiner)
        parent.kill()
    eventually(lambda: not is_alive(joiner), what="the joiner to end")


async def test_without_openssl_a_stub_is_on_the_path(tmp_path: Path, database: str) -> None:
    engine = QueryEngine(database, tmp_path, {"PATH": "/nowhere"})
    assert engine.environment["PATH"].split(":")[0] == "/nowhere"
    stub = Path(engine.environment["PATH"].split(":")[1]) / "openssl"
    write_openssl_stub(stub)
    assert subprocess.run([stub, "version", "-v"], capture_output=True, text=True, check=True).stdout == "OpenSSL 3.0.0\n"
    assert "PATH" not in QueryEngine(database, tmp_path, {"PATH": os.environ["PATH"]}).environment


async def test_large_answers_and_many_at_once(db: Prisma) -> None:
    big = await db.query_raw("SELECT i, repeat('x', 1000) AS t FROM generate_series(1, 5000) AS i")
    assert len(big) == 5000
    assert big[-1] == {"i": 5000, "t": "x" * 1000}
    answers = await asyncio.gather(*(db.query_raw("SELECT $1::int AS i, pg_sleep(0.01)::text AS s", i) for i in range(300)))
    assert [rows[0]["i"] for rows in answers] == list(range(300))
