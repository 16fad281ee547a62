"""`python -m upstreams.server`: the fake upstreams in a process of their own.

It binds a free port of 127.0.0.1, prints `{"port": N}` on standard output once it listens, and ends when standard input
closes, so that it never outlives the tests that started it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import uvicorn

from upstreams.app import create_app

__all__ = ["main"]


async def _serve() -> None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    config = uvicorn.Config(
        create_app(),
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        # Uvicorn's 5 s would now and then close a connection just as the gateway sends on it: a fault that no test asked for.
        timeout_keep_alive=120,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    server.should_exit = True
    await serving


def main() -> None:
    """Run until standard input closes."""
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
