"""What `init` and `up` find: provider keys, and local servers over real HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.litellm_config import Detected, check, detect, load, render_init
from support.ports import free_port

Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[ThreadingHTTPServer] = []

    def _serve(pages: dict[str, Any], *, server: str = "test", delay: float = 0.0) -> int:
        class Handler(BaseHTTPRequestHandler):
            server_version = server
            sys_version = ""

            def do_GET(self) -> None:
                time.sleep(delay)
                body = pages.get(self.path)
                self.send_response(404 if body is None else 200)
                self.end_headers()
                if body is not None:
                    self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        servers.append(httpd)
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        return int(httpd.server_address[1])

    yield _serve
    for item in servers:
        item.shutdown()
        item.server_close()


def ports(**given: int) -> dict[str, int]:
    return {"ollama": free_port(), "llama.cpp": free_port(), "vllm": free_port()} | {
        name.replace("_cpp", ".cpp"): port for name, port in given.items()
    }


def models(*names: str, owner: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "owned_by": owner} for name in names]}


def test_nothing_is_found_where_nothing_is() -> None:
    assert detect({}, 0.3, ports=ports()) == []


def test_local_servers_are_found_by_their_own_protocol(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # must not matter on the loopback interface
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    ollama = serve({"/api/tags": {"models": [{"name": "qwen2.5:0.5b"}, {"name": "llama3.2:1b"}]}})
    llama = serve({"/v1/models": models("/models/tiny.Q4.gguf", owner="llamacpp")}, server="llama.cpp")
    vllm = serve({"/v1/models": models("Qwen/Qwen2.5-7B", owner="vllm"), "/version": {"version": "0.9"}})
    found = {item.name: item for item in detect({}, 1.0, ports=ports(ollama=ollama, llama_cpp=llama, vllm=vllm))}
    assert found["ollama"].models == ("qwen2.5:0.5b", "llama3.2:1b")
    assert found["ollama"].entries[0]["litellm_params"] == {
        "model": "ollama_chat/qwen2.5:0.5b",
        "api_base": f"http://127.0.0.1:{ollama}",
    }
    assert found["llama.cpp"].models == ("tiny.Q4",)
    assert found["llama.cpp"].entries[0]["litellm_params"]["api_base"] == f"http://127.0.0.1:{llama}/v1"
    assert found["vllm"].entries[0]["litellm_params"]["model"] == "hosted_vllm/Qwen/Qwen2.5-7B"


def test_llama_cpp_is_known_by_its_props_too(serve: Serve) -> None:
    port = serve({"/v1/models": models("tiny", owner="me"), "/props": {"default_generation_settings": {}}})
    assert [item.name for item in detect({}, 1.0, ports=ports(llama_cpp=port))] == ["llama.cpp"]


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>",
        b"[" * 50_000,
        {},
        [],
        {"models": 5},
        {"models": [5, {"name": 7}, {}]},
        {"data": None},
        b"x" * (2**20 + 2),
    ],
)
def test_something_else_on_the_port_is_left_alone(serve: Serve, page: Any) -> None:
    port = serve({"/api/tags": page, "/v1/models": page, "/props": page, "/version": page})
    found = detect({}, 1.0, ports=ports(ollama=port, llama_cpp=port, vllm=port))
    assert [item for item in found if item.models] == []


def test_a_port_that_says_nothing_costs_the_time_out_once() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        port = int(silent.getsockname()[1])
        started = time.monotonic()
        assert detect({}, 0.3, ports=ports(ollama=port, llama_cpp=port, vllm=port)) == []
        assert time.monotonic() - started < 2.0


def test_keys_are_found_and_never_copied(tmp_path: Path) -> None:
    env = {
        "OPENAI_API_KEY": "sk-secret",
        "ANTHROPIC_API_KEY": "sk-secret",
        "GOOGLE_API_KEY": "sk-secret",
        "MISTRAL_API_KEY": "",
        "AZURE_API_KEY": "sk-secret",
        "AZURE_API_BASE": "https://x.openai.azure.com",
        "AWS_ACCESS_KEY_ID": "sk-secret",
        "AWS_REGION": "eu-west-1",
    }
    found = detect(env, 0.2, ports=ports())
    assert [item.name for item in found] == ["openai", "anthropic", "gemini", "azure", "bedrock"]
    assert "sk-secret" not in repr(found)
    text = render_init(found)
    assert "sk-secret" not in text
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert check(path, env) == []
    entries = load(path, env).effective["model_list"]
    assert [entry["model_name"] for entry in entries] == ["openai/*", "anthropic/*", "gemini/*", "azure/*", "bedrock/*"]
    assert entries[2]["litellm_params"]["api_key"] == "os.environ/GOOGLE_API_KEY"


def test_init_on_a_bare_machine_gives_models_that_answer(tmp_path: Path) -> None:
    text = render_init([])
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert check(path, {}) == []
    assert "#" in text
    assert [entry["model_name"] for entry in load(path, {}).effective["model_list"]] == ["auto", "auto"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip), min_size=1, unique=True))
def test_any_model_name_survives_init(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    entries = tuple(
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": "http://x/v1"}} for name in names
    )
    path = tmp_path_factory.mktemp("init") / "c.yaml"
    path.write_text(render_init([Detected("x", "y", tuple(names), entries)]), encoding="utf-8")
    assert [p for p in check(path, {}) if p.severity == "error"] == []
    assert [entry["model_name"] for entry in load(path, {}).effective["model_list"]] == names
