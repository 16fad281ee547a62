"""Seconds from starting the gateway to ready, beside stock LiteLLM's, with the same configuration and database, in one run.

    python -m bench.startup [--runs 3] [--json]          from the repository's root; `make bench-startup` does it

What is compared:

- **stock**: LiteLLM's own command line as it comes, with Prisma's generated types as they were generated. To its advantage it
  finds the database migrated (DISABLE_SCHEMA_UPDATE), all bytecode compiled, a query engine that is already running, a stub
  for Prisma's schema engine (so that its comparison of schemas, at each start, neither downloads nor compares anything), and
  the settings that keep it from looking for the internet.
- **pointsman**: `pointsman serve` with the same file and our section, one worker. It starts its query engine itself and loads
  one strategy from disk. Its data directory is there from the run before: this is a second start.

Both are started once before anything is measured, then alternately. The clock runs from the spawn to the first 200 of
`/health/readiness`. The ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from pointsman.embedded_postgres import EmbeddedPostgres
from pointsman.litellm_config import litellm_environment, load
from pointsman.migrations.engine import QueryEngine
from pointsman.migrations.runner import build_indexes, migrate

__all__ = ["Report", "main", "measure"]

PATIENCE = 180.0
"""Seconds that a start may take before the run is given up."""

# What would make one side do something that the other does not; and both may keep the bytecode of their first start.
FOREIGN = (
    "LITELLM_",
    "DATABASE_URL",
    "POINTSMAN",
    "PRISMA_",
    "OTEL_",
    "LANGFUSE_",
    "CONFIG_FILE_PATH",
    "STORE_MODEL_IN_DB",
    "PYTHONDONTWRITEBYTECODE",
)

KEYS = {"LITELLM_MASTER_KEY": "sk-bench-0123456789abcdef", "LITELLM_SALT_KEY": "sk-bench-fedcba9876543210"}


@dataclass(frozen=True, slots=True)
class Report:
    """Seconds to ready of each start, and what follows from them.

    Attributes:
        stock: LiteLLM's own, in the order measured.
        pointsman: ours.
        ratio: median of ours through median of stock's.
        cores: processors that this process may use.
    """

    stock: tuple[float, ...]
    pointsman: tuple[float, ...]
    ratio: float
    cores: int


def configuration() -> dict[str, Any]:
    """The file that both read: two deployments in a group, and one on its own. Nothing is called."""
    deployments = [("chat", "openai/small"), ("chat", "openai/large"), ("other", "anthropic/other")]
    return {
        "model_list": [
            {"model_name": group, "litellm_params": {"model": model, "api_key": "none", "api_base": "http://127.0.0.1:9"}}
            for group, model in deployments
        ],
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", "store_model_in_db": True},
    }


def generated_prisma(folder: Path) -> Path:
    """A copy of the Prisma client with the types as they were generated, compiled; goes before ours on stock's path.

    Returns:
        the directory to put on the path.
    """
    spec = find_spec("prisma")
    if spec is None or spec.origin is None:
        raise SystemExit("the Prisma client is not installed: run `make setup`")
    copy = folder / "prisma"
    shutil.copytree(Path(spec.origin).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    if (copy / "types.pyi").is_file():
        (copy / "types.pyi").replace(copy / "types.py")
    compileall.compile_dir(copy, quiet=2)
    return folder


def schema_engine_stub(folder: Path) -> dict[str, str]:
    """Variables that make Prisma's command line take a program that does nothing for its schema engine."""
    stub = folder / "schema-engine"
    stub.write_text("#!/bin/sh\necho schema-engine-cli\n", encoding="utf-8")
    stub.chmod(0o755)
    return {
        "PRISMA_CLI_QUERY_ENGINE_TYPE": "binary",
        "PRISMA_QUERY_ENGINE_LIBRARY": str(stub),
        "PRISMA_SCHEMA_ENGINE_BINARY": str(stub),
    }


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def start_once(command: Sequence[str], env: Mapping[str, str], log: Path) -> float:
    """Seconds from spawning `command` to ready; `{port}` in it is replaced by a free one. It is stopped afterwards.

    Raises:
        SystemExit: it ended, or was not ready in time; with the end of its log.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}/health/readiness"
    with log.open("wb") as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            env=dict(env),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            while not _ready(url):
                if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                    raise SystemExit(f"{command[0]} did not become ready:\n" + log.read_text(errors="replace")[-4000:])
                time.sleep(0.02)
            return time.monotonic() - begun
        finally:
            _stop(process)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then end the whole group: nothing may take processor time from the next measurement."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


async def measure(folder: Path, *, runs: int, bundle: Path | None = None, log: Any = sys.stderr) -> Report:
    """Set everything up in `folder`, start each side once unmeasured, then `runs` times alternately.

    Args:
        folder: an empty directory for database, configuration and logs.
        runs: measured starts of each side.
        bundle: a strategy's bundle for Pointsman to load; none: it loads none.
        log: where progress is written.
    """
    common = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | KEYS
    async with AsyncExitStack() as stack:
        postgres = EmbeddedPostgres(folder / "database")
        stack.push_async_callback(postgres.stop)
        url = await postgres.start()
        await asyncio.to_thread(migrate, url, lambda _line: None)
        await asyncio.to_thread(build_indexes, url)

        config = configuration()
        stock_file, our_file = folder / "stock.yaml", folder / "pointsman.yaml"
        stock_file.write_text(yaml.safe_dump(config), encoding="utf-8")
        if bundle is not None:
            strategy = {"source": str(bundle), "require_signature": False}
            config["pointsman"] = {"strategies": {"learned": strategy}, "routing": {"groups": {"chat": "learned"}}}
        our_file.write_text(yaml.safe_dump(config), encoding="utf-8")

        engine_folder = folder / "engine"
        engine_folder.mkdir(mode=0o700)
        engine = QueryEngine(url, engine_folder)
        stack.push_async_callback(engine.stop)
        await engine.start()

        offline = litellm_environment(load(our_file, common), common)
        prisma = await asyncio.to_thread(generated_prisma, folder / "generated")
        scripts = Path(sys.executable).parent
        stock_env = common | offline | dict(engine.environment) | schema_engine_stub(folder)
        stock_env |= {"DATABASE_URL": url, "DISABLE_SCHEMA_UPDATE": "true", "PYTHONPATH": str(prisma)}
        stock = ([str(scripts / "litellm"), "--config", str(stock_file), "--host", "127.0.0.1", "--port", "{port}"], stock_env)
        ours = (
            [
                str(scripts / "pointsman"),
                "serve",
                "--config",
                str(our_file),
                "--port",
                "{port}",
                "--data-dir",
                str(folder / "data"),
            ],
            common | {"DATABASE_URL": url},
        )
        times: dict[str, list[float]] = {"stock": [], "pointsman": []}
        for run in range(runs + 1):
            for name, (command, env) in (("stock", stock), ("pointsman", ours)):
                seconds = await asyncio.to_thread(start_once, command, env, folder / f"{name}.log")
                print(f"{name:>10} {seconds:6.2f} s{'' if run else '  (first start, not counted)'}", file=log, flush=True)
                if run:
                    times[name].append(round(seconds, 3))
    ratio = statistics.median(times["pointsman"]) / statistics.median(times["stock"])
    return Report(tuple(times["stock"]), tuple(times["pointsman"]), round(ratio, 3), len(os.sched_getaffinity(0)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="measured starts of each side (default 3)")
    parser.add_argument("--bundle", type=Path, help="a strategy's bundle for Pointsman to load")
    parser.add_argument("--json", action="store_true", help="print only JSON on standard output")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as scratch:
        report = asyncio.run(measure(Path(scratch), runs=max(1, chosen.runs), bundle=chosen.bundle))
    if chosen.json:
        print(json.dumps(asdict(report)))
    else:
        stock, ours = statistics.median(report.stock), statistics.median(report.pointsman)
        print(f"stock {stock:.2f} s, pointsman {ours:.2f} s, ratio {report.ratio:.2f} ({report.cores} cores)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
