"""Workers outlive the process that forked them, and are replaced all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from support.gateway import Gateway
from support.processes import wait_for


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.requirement("P-6")
def test_a_worker_whose_preloader_is_gone_is_replaced_too(gateway: Gateway) -> None:
    before = gateway.worker_pids()
    preloader = parent(before[0])
    assert preloader != gateway.pid
    os.kill(preloader, signal.SIGKILL)
    assert gateway.ready(), "the workers go on without it"
    for index, pid in enumerate(before):
        os.kill(pid, signal.SIGKILL)

        def replaced(index: int = index, pid: int = pid) -> bool:
            try:
                workers = [row for row in gateway.status()["config"]["workers"] if row["generation"] is not None]
                pids = gateway.worker_pids()
            except httpx.TransportError:
                return False  # the connection was to the worker that died
            return len(workers) == len(before) and pids[index] not in (pid, None)

        wait_for(replaced, 40, f"worker {index} is replaced", interval=0.2)
    after = gateway.worker_pids()
    assert not set(after) & set(before)
    assert len({parent(pid) for pid in after}) == 1
