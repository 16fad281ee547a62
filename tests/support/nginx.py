"""A real nginx from Debian's package, unpacked and not installed, with the configuration that `deploy/nginx` offers."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from support.debian import unpack
from support.gateway import free_port
from support.marks import ROOT
from support.processes import wait_for

__all__ = ["nginx"]

OFFERED = ROOT / "deploy" / "nginx" / "pointsman.conf"
MAIN = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/pointsman.conf;
}}
"""


def _yours(text: str, port: int, servers: Sequence[int]) -> str:
    """The offered file with the two addresses and the port changed, and nothing else."""
    ports = iter(servers)
    text, found = re.subn(r"server 10\.0\.0\.\d+:4000 ", lambda _: f"server 127.0.0.1:{next(ports)} ", text)
    assert found == len(servers)
    text, found = re.subn(r"listen 80;", f"listen 127.0.0.1:{port};", text)
    assert found == 1
    return text


@contextlib.contextmanager
def nginx(folder: Path, servers: Sequence[int]) -> Iterator[str]:
    """nginx before the instances at these ports of 127.0.0.1; gives its URL. Its logs are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    port = free_port()
    (folder / "pointsman.conf").write_text(_yours(OFFERED.read_text(encoding="utf-8"), port, servers))
    main = folder / "nginx.conf"
    main.write_text(MAIN.format(folder=folder))
    program = unpack("nginx") / "usr/sbin/nginx"
    process = subprocess.Popen([program, "-e", folder / "error.log", "-p", folder, "-c", main], stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, (folder / "error.log").read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health/liveliness", trust_env=False, timeout=5).status_code > 0
        return False

    try:
        wait_for(up, 20, "nginx listens")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
