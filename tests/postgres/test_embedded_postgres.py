"""The embedded Postgres: what it is, that it is private, that it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pointsman.embedded_postgres import EmbeddedPostgres
from pointsman.embedded_postgres.cluster import Cluster, find_binaries
from pointsman.embedded_postgres.identity import BARE_ENVIRONMENT, choose
from pointsman.embedded_postgres.lock import OwnerLock, read_note
from pointsman.embedded_postgres.postmaster import Postmaster, free_port, survivors
from pointsman.errors import ProcessError

OWNER = Path(__file__).with_name("owner.py")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def until(condition: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


@contextlib.asynccontextmanager
async def running(data_dir: Path, **options: Any) -> AsyncIterator[EmbeddedPostgres]:
    database = EmbeddedPostgres(data_dir, **options)
    await database.start()
    try:
        yield database
    finally:
        await database.stop()


def one(url: str, query: str) -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@contextlib.contextmanager
def owner(data_dir: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    process = subprocess.Popen([sys.executable, str(OWNER), str(data_dir), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline() or '{"error": "it said nothing"}')
    finally:
        process.kill()
        process.wait(10)


async def test_it_is_private_durable_and_utc(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(data) as database:
        url = database.url()
        assert {
            name: one(url, f"SHOW {name}")
            for name in (
                "server_encoding",
                "TimeZone",
                "listen_addresses",
                "unix_socket_directories",
                "fsync",
                "full_page_writes",
            )
        } == {
            "server_encoding": "UTF8",
            "TimeZone": "UTC",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on",
            "full_page_writes": "on",
        }
        assert one(url, "SELECT current_database()") == "litellm"
        assert (mode(data), mode(data / "postgres"), mode(data / "postgres_password")) == (0o700, 0o700, 0o600)
        assert mode(data / "postgres.log") & 0o077 == 0
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(url.replace("pointsman:", "pointsman:wrong"))
        secret = (data / "postgres_password").read_text()
        assert secret not in Path(f"/proc/{database.pid}/cmdline").read_text()
    assert database.pid is None


async def test_stop_leaves_no_process_and_the_data_stay(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as database:
        url = database.url()
        with psycopg.connect(url) as busy:
            busy.execute("CREATE TABLE kept (x int)")
            busy.execute("INSERT INTO kept VALUES (7)")
            busy.commit()
            busy.execute("SELECT 1")  # a client in the middle of a transaction does not hold up the end
            started = time.monotonic()
            await database.stop()
            assert time.monotonic() - started < 5
            assert survivors(tmp_path / "data" / "postgres") == []
            with contextlib.suppress(psycopg.Error):
                busy.rollback()
        await database.stop()  # twice is no harm
        assert await database.start() != ""
        assert one(database.url(), "SELECT x FROM kept") == 7


@pytest.mark.slow("embeddedpostgres")
async def test_two_side_by_side(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as first, running(tmp_path / "b") as second:
        assert first.status()["port"] != second.status()["port"]
        assert one(first.url(), "SHOW data_directory") != one(second.url(), "SHOW data_directory")


@pytest.mark.parametrize("name", ["with space", "quo'te\"s", "semi;colon $HOME `id` %s", "ünïcødé ✓", "-rf", "a=b,c"])
@pytest.mark.slow("embeddedpostgres")
async def test_odd_names_work(tmp_path: Path, name: str) -> None:
    async with running(tmp_path / name) as database:
        assert one(database.url(), "SELECT 1") == 1


async def test_second_owner_is_told_who_holds_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(data) as database:
        database.announce("http://127.0.0.1:4711")
        with pytest.raises(ProcessError) as caught:
            await EmbeddedPostgres(data).start()
        assert caught.value.code == "E4603"
        assert f"process {os.getpid()}" in str(caught.value)
        assert "http://127.0.0.1:4711" in str(caught.value)
        with owner(data) as (process, said):  # and from another process
            assert process.wait(20) == 1
            assert said["code"] == "E4603"
            assert str(os.getpid()) in said["error"]
        assert one(database.url(), "SELECT 1") == 1  # the holder noticed nothing
    assert read_note(data / "lock") == {}


@pytest.mark.requirement("R-4.1")
@pytest.mark.parametrize(
    "victims",
    ["both", *(pytest.param(one, marks=pytest.mark.slow("embeddedpostgres")) for one in ("owner", "postmaster"))],
)
async def test_committed_rows_survive_kill_9(tmp_path: Path, victims: str) -> None:
    data = tmp_path / "data"
    with owner(data) as (process, said):
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(100)]
        if victims in ("owner", "both"):
            process.send_signal(signal.SIGKILL)
        if victims in ("postmaster", "both"):
            os.kill(said["pid"], signal.SIGKILL)
        if victims == "postmaster":
            process.kill()
        rest, _ = process.communicate(timeout=20)
        # A torn last line is one that nobody can have read as an acknowledgement.
        acknowledged += [int(line) for line in rest.split("\n")[:-1] if line.isdigit()]
    async with running(data) as database:
        with psycopg.connect(database.url()) as connection:
            found = {n for (n,) in connection.execute("SELECT n FROM committed")}
    assert set(acknowledged) <= found
    assert len(acknowledged) >= 100


async def test_it_goes_when_its_owner_is_killed(tmp_path: Path) -> None:
    if not choose(find_binaries() / "postgres").dies_with_us:
        pytest.skip("no setpriv here: an orphan waits for the next start (see the next test)")
    data = tmp_path / "data"
    with owner(data) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert await until(lambda: survivors(data / "postgres") == [])


@pytest.mark.slow("embeddedpostgres")
async def test_orphan_of_an_earlier_life_is_replaced(tmp_path: Path) -> None:
    """A postmaster that outlived its owner (no death signal on that machine) makes way for the next one."""
    data = tmp_path / "data"
    async with running(data):
        way = choose(find_binaries() / "postgres")
    orphan = subprocess.Popen(
        [*way.prefix, str(find_binaries() / "postgres"), f"-D{data / 'postgres'}", f"-p{free_port()}"],
        env=BARE_ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert await until(lambda: orphan.pid in survivors(data / "postgres"))
        async with running(data) as database:
            assert orphan.wait(5) == 0
            assert one(database.url(), "SELECT 1") == 1
    finally:
        orphan.kill()


async def test_stale_pid_file_that_names_a_stranger(tmp_path: Path) -> None:
    """After a reboot the recorded process id may belong to anybody."""
    data = tmp_path / "data"
    async with running(data):
        pass
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (data / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n{data / 'postgres'}\n0\n1\n\n127.0.0.1\n")
        async with running(data) as database:
            assert one(database.url(), "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_watch_restarts_it_on_the_same_port(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as database:
        url, before = database.url(), database.pid
        watch = asyncio.create_task(database.run())
        assert before is not None
        os.kill(before, signal.SIGKILL)

        def answers() -> bool:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
            return False

        assert await until(lambda: database.pid not in (None, before) and answers())
        assert (database.url(), database.status()["restarts"]) == (url, 1)
        await database.stop()
        await asyncio.wait_for(watch, 5)


@pytest.mark.slow("embeddedpostgres")
async def test_taken_port_is_recognised(tmp_path: Path) -> None:
    from pointsman.embedded_postgres.server import _PORT_TAKEN

    async with running(tmp_path / "a") as holder:
        cluster = Cluster(tmp_path, find_binaries(), choose(find_binaries() / "postgres"))
        cluster.prepare()
        loser = Postmaster(cluster, int(holder.status()["port"]), {})
        loser.spawn()
        assert not await loser.ready(20)
        assert any(text in loser.output() for text in _PORT_TAKEN)


@root_only
@pytest.mark.parametrize(("uid", "way"), [(65534, "direct"), (54321, "namespace")])
@pytest.mark.slow("embeddedpostgres")
def test_as_a_plain_user(uid: int, way: str) -> None:
    """Also as one without an entry in the password database, as containers run it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        os.chown(place, uid, uid)
        readable = subprocess.run(
            ["setpriv", f"--reuid={uid}", "--clear-groups", str(find_binaries() / "postgres"), "--version"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if readable.returncode != 0:
            pytest.skip(f"user {uid} may not read the virtual environment: {readable.stderr.strip()}")
        with owner(Path(place) / "data", str(uid)) as (process, said):
            assert process.wait(60) == 0, said
        assert said["way"] == way
        assert (Path(place) / "data" / "postgres").stat().st_uid == uid


@root_only
@pytest.mark.slow("embeddedpostgres")
async def test_root_without_user_namespaces() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        data = Path(place) / "data"
        for _ in range(2):
            async with running(data, ways=("setpriv",)) as database:
                assert database.status()["way"] == "setpriv"
                assert one(database.url(), "SELECT 1") == 1
        assert (data / "postgres").stat().st_uid != 0
        assert mode(data / "postgres_password") == 0o600
        async with running(data) as database:  # and the other way with the same files
            assert database.status()["way"] == "namespace"
        assert (data / "postgres").stat().st_uid == 0
        closed = Path(place) / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(ProcessError) as caught:
            await EmbeddedPostgres(closed / "data", ways=("setpriv",)).start()
        assert caught.value.code == "E4602"
        assert caught.value.where == str(closed)


async def test_no_way_to_run_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="neither `unshare` nor `setpriv`"):
        await EmbeddedPostgres(tmp_path / "data", ways=()).start()
    broken = tmp_path / "postgres"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ProcessError, match="it is broken"):
        choose(broken)


class TestBadDirectories:
    """Each is E4602 with the path and a mend, and leaves nothing half done."""

    async def refused(self, data: Path, *words: str) -> ProcessError:
        with pytest.raises(ProcessError) as caught:
            await EmbeddedPostgres(data).start()
        assert caught.value.code == "E4602", caught.value
        assert caught.value.where
        assert caught.value.mend
        for word in words:
            assert word in str(caught.value)
        return caught.value

    async def test_it_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("")
        await self.refused(tmp_path / "data", "is a file")
        await self.refused(tmp_path / "data" / "below")

    async def test_not_writable(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            await self.refused(Path("/proc/pointsman"))
            return
        tmp_path.chmod(0o500)
        await self.refused(tmp_path / "data", "Permission denied")

    @root_only
    @pytest.mark.slow("embeddedpostgres")
    def test_not_writable_for_a_plain_user(self) -> None:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
            Path(place).chmod(0o755)
            with owner(Path(place) / "data", "65534") as (process, said):
                assert process.wait(30) == 1
            assert said["code"] == "E4602"
            assert "Permission denied" in said["error"]

    async def test_no_cluster(self, tmp_path: Path) -> None:
        other = tmp_path / "data" / "postgres"
        other.mkdir(parents=True)
        (other / "precious").write_text("mine")
        await self.refused(tmp_path / "data", "not a database cluster")
        assert (other / "precious").read_text() == "mine"

    @pytest.mark.parametrize(
        "name", ["new\nline", "x" * 200 + "/" + "y" * 200 + "/" + "z" * 200 + "/" + "u" * 200 + "/" + "v" * 200]
    )
    async def test_paths_that_postgres_does_not_take(self, tmp_path: Path, name: str) -> None:
        await self.refused(tmp_path / name)

    async def test_path_with_nul(self, tmp_path: Path) -> None:
        await self.refused(tmp_path / "a\x00b")

    @pytest.mark.slow("embeddedpostgres")
    async def test_another_version_password_or_owner(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        async with running(data):
            pass
        version = data / "postgres" / "PG_VERSION"
        version.write_text("16\n")
        await self.refused(data, "PostgreSQL 16", "PostgreSQL 18")
        version.write_text("18\n")
        password = data / "postgres_password"
        right = password.read_text()
        password.write_text("wrong")
        await self.refused(data, "password")
        password.unlink()
        await self.refused(data, "password")
        password.write_text(right)
        async with running(data) as database:
            assert one(database.url(), "SELECT 1") == 1

    @pytest.mark.slow("embeddedpostgres")
    async def test_interrupted_initdb_is_done_again(self, tmp_path: Path) -> None:
        partial = tmp_path / "data" / "postgres.partial"
        partial.mkdir(parents=True)
        (partial / "PG_VERSION").write_text("18\n")
        async with running(tmp_path / "data") as database:
            assert one(database.url(), "SELECT 1") == 1
        assert not partial.exists()

    @pytest.mark.slow("embeddedpostgres")
    async def test_broken_configuration_shows_the_log(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        async with running(data):
            pass
        with (data / "postgres" / "postgresql.conf").open("a") as file:
            file.write("no_such_setting_at_all = 1\n")
        with pytest.raises(ProcessError) as caught:
            await EmbeddedPostgres(data).start()
        assert "no_such_setting_at_all" in str(caught.value)
        assert str(data / "postgres.log") in str(caught.value)
        assert not OwnerLock(data / "lock").held
        assert survivors(data / "postgres") == []

    @pytest.mark.parametrize(("size", "before"), [("1m", "true"), ("24m", "true"), ("80m", '"$2" "$3" "$1/data" 0 || exit 76')])
    @pytest.mark.slow("embeddedpostgres")
    def test_full_disk(self, tmp_path: Path, size: str, before: str) -> None:
        """On a file system of that size: full at once, full in the middle of initdb, filled up between two starts."""
        small = tmp_path / "small"
        small.mkdir()
        namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
        fill = (
            'dd if=/dev/zero of="$1/fill" bs=64k 2>/dev/null; dd if=/dev/zero of="$1/rest" bs=1 2>/dev/null'
            if before != "true"
            else "true"
        )
        script = (
            f'mount -t tmpfs -o size={size} none "$1" || exit 77; {before}; {fill}; "$2" "$3" "$1/data" 0; ls "$1/data" >&2'
        )
        done = subprocess.run(
            [*namespace, "sh", "-c", script, "sh", str(small), sys.executable, str(OWNER)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["code"] == "E4602", said
        assert "space" in said["error"]
        assert "postgres.partial" not in done.stderr


def test_set_up_without_the_binaries() -> None:
    code = (
        "import importlib.util, sys\n"
        "from pointsman.embedded_postgres.cluster import find_binaries\n"
        "from pointsman.errors import ProcessError\n"
        "sys.path[:] = [entry for entry in sys.path if not entry.endswith('site-packages')]\n"
        "try: find_binaries()\n"
        "except ProcessError as error: print(error.code, error.mend)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("E4604 run `make setup`"), done.stderr


def test_lock_is_free_again_after_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from pointsman.embedded_postgres.lock import OwnerLock\n"
        "lock = OwnerLock(pathlib.Path(sys.argv[1])); lock.acquire(address='a'); print('held', flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    second = OwnerLock(path)
    with pytest.raises(ProcessError, match=f"process {process.pid}"):
        second.acquire()
    process.kill()
    process.wait()
    second.acquire()
    assert read_note(path)["pid"] == os.getpid()
    second.release()
    second.release()


def test_lock_note_may_be_garbage(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = OwnerLock(path), OwnerLock(path)
    first.acquire()
    for garbage in (b"", b"{", b"[1]", b"\xff" * 5000):
        path.write_bytes(garbage)
        with pytest.raises(ProcessError, match="another process"):
            second.acquire()
    first.release()
