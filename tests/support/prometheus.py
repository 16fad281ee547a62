"""A real Prometheus, promtool and amtool from Debian's packages, unpacked and not installed; and what a dashboard asks."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.debian import unpack
from support.gateway import free_port
from support.marks import ROOT
from support.processes import wait_for

__all__ = ["DEPLOY", "Prometheus", "expressions", "prometheus", "queries", "tool"]

DEPLOY = ROOT / "deploy" / "observability"


def tool(name: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `promtool` or `amtool` to its end."""
    program = unpack("prometheus", "prometheus-alertmanager") / "usr/bin" / name
    return subprocess.run([program, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def queries(dashboard: Path) -> list[str]:
    """Every expression of a dashboard, its variables filled in: all groups, a minute for the interval."""
    board = json.loads(dashboard.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [
        match[1]
        for variable in board["templating"]["list"]
        if (match := re.fullmatch(r"label_values\((.+), \w+\)", str(variable.get("query"))))
    ]
    return [text.replace("$__rate_interval", "1m").replace("$__range", "5m").replace("$group", ".*") for text in found]


def expressions(rules: Path) -> dict[str, str]:
    """Name of a rule -> its expression."""
    groups = yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]
    return {rule.get("record") or rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


class Prometheus:
    """One that runs. `ask` is its HTTP API."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)

    def get(self, path: str, **params: str) -> Any:
        """`data` of an answer; raises with Prometheus' own words."""
        answer = self._http.get(f"/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The instant vector."""
        result: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return result

    def value(self, query: str) -> float:
        """The one number; 0 without any."""
        result = self.ask(query)
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else 0.0

    def ready(self) -> bool:
        """Whether it serves."""
        with contextlib.suppress(httpx.HTTPError):
            return self._http.get("/-/ready").status_code == 200
        return False


@contextlib.contextmanager
def prometheus(target: str, key: str, directory: Path) -> Iterator[Prometheus]:
    """The example's configuration and rules, with another target and shorter intervals."""
    directory.mkdir(parents=True)
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "4s", "evaluation_interval": "2s"}
    config["rule_files"] = []
    for rules in sorted((DEPLOY / "prometheus/rules").glob("*.yaml")):
        content = yaml.safe_load(rules.read_text(encoding="utf-8"))
        for group in content["groups"]:
            group["interval"] = "2s"
        (directory / rules.name).write_text(yaml.safe_dump(content), encoding="utf-8")
        config["rule_files"].append(rules.name)
    del config["alerting"]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (directory / job["authorization"]["credentials_file"]).write_text(key, encoding="utf-8")
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    program = unpack("prometheus", "prometheus-alertmanager") / "usr/bin/prometheus"
    options = [f"--web.listen-address=127.0.0.1:{port}", "--config.file=prometheus.yaml", "--storage.tsdb.path=data"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program, *options], cwd=directory, stdout=log, stderr=log)
    try:
        server = Prometheus(port)
        wait_for(lambda: process.poll() is not None or server.ready(), 60, "Prometheus serves")
        assert process.poll() is None, (directory / "prometheus.log").read_text(encoding="utf-8")[-2000:]
        yield server
    finally:
        process.terminate()
        process.wait(20)
