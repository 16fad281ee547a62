"""Small parts of the processes: the channel, the listening socket, the keys."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import ProcessError
from pointsman.process.channel import MAX_MESSAGE, Channel, ChannelClosedError
from pointsman.process.listen import bind
from pointsman.process.secrets import load_or_create

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


async def pair(path: Path) -> tuple[Channel, Channel, asyncio.Server]:
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_unix_server(
        lambda reader, writer: accepted.set_result(Channel(reader, writer)), path=str(path), limit=MAX_MESSAGE
    )
    client = await Channel.connect(str(path))
    return client, await accepted, server


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5))
def test_messages_arrive_whole_and_in_order(messages: list[dict[str, object]]) -> None:
    import tempfile

    async def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            client, server_side, server = await pair(Path(directory) / "s")
            for message in messages:
                client.send(message)
            assert [await server_side.receive() for _ in messages] == messages
            await client.close()
            with pytest.raises(ChannelClosedError):
                await server_side.receive()
            await server_side.close()
            server.close()

    asyncio.run(run())


@pytest.mark.parametrize("garbage", [b"not json\n", b"[1]\n", b"no newline"])
async def test_garbage_closes_the_channel(tmp_path: Path, garbage: bytes) -> None:
    client, server_side, server = await pair(tmp_path / "s")
    client._writer.write(garbage)
    await client.close()
    with pytest.raises(ChannelClosedError):
        await server_side.receive()
    await server_side.close()
    server.close()


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ProcessError) as caught:
            bind("127.0.0.1", port, patience=0)
    assert caught.value.code == "E4601"
    assert caught.value.where == f"127.0.0.1:{port}"
    assert "--port" in (caught.value.mend or "")


def test_a_port_that_is_being_given_up_is_waited_for() -> None:
    other = socket.create_server(("127.0.0.1", 0))
    port = other.getsockname()[1]
    import threading

    timer = threading.Timer(0.3, other.close)
    timer.start()
    with bind("127.0.0.1", port, patience=20) as sock:
        assert sock.getsockname()[1] == port
    timer.join()


def test_keys_are_made_once_and_private(tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "data", {})
    assert load_or_create(tmp_path / "data", {}) == first
    assert first.master_key.startswith("sk-")
    assert first.master_key != first.salt_key
    for name in ("master_key", "salt_key"):
        assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600


def test_keys_of_the_environment_win_and_write_nothing(tmp_path: Path) -> None:
    keys = load_or_create(tmp_path / "data", {"LITELLM_MASTER_KEY": "sk-mine", "LITELLM_SALT_KEY": "salt"})
    assert (keys.master_key, keys.salt_key, keys.master_key_path) == ("sk-mine", "salt", None)
    assert not (tmp_path / "data").exists()


def test_an_empty_key_file_of_a_crash_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "master_key").touch()
    assert load_or_create(tmp_path, {}).master_key.startswith("sk-")


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProcessError) as caught:
        load_or_create(tmp_path / "file" / "data", {})
    assert caught.value.code == "E4602"
