"""`pointsman strategies encoder add|fetch`: what a person asks for, and nothing that a gateway would refuse."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from onnx import helper

from pointsman.cli import cli
from pointsman.errors import PointsmanError
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.encoders.file import save_encoder
from pointsman.strategies.files import sha256_hex
from support.encoders import edited, encoder_bundle, tiny_model, tiny_onnx, tiny_tokenizer


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_add_lets_a_bundle_find_its_files(tmp_path: Path) -> None:
    encoder, directory = tiny_onnx(), tmp_path / "encoders"
    (tmp_path / "bundle.zip").write_bytes(encoder_bundle(encoder, external=True))
    save_encoder(tmp_path / "encoder.zip", encoder)
    shown = run("strategies", "encoder", "add", tmp_path / "encoder.zip", "--encoders-dir", directory)
    assert sha256_hex(encoder.files()["model.onnx"]) in shown
    assert load_bundle(tmp_path / "bundle.zip", encoders_dir=directory).score("hello")
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_bytes(tiny_tokenizer())
    run("strategies", "encoder", "add", source, "--encoders-dir", directory)
    assert (directory / sha256_hex(tiny_tokenizer())).read_bytes() == tiny_tokenizer()


def test_what_a_gateway_would_refuse_is_not_kept(tmp_path: Path) -> None:
    def hostile(proto: object) -> None:
        proto.graph.node.insert(0, helper.make_node("Loop", ["input_ids"], ["x"]))  # type: ignore[attr-defined]

    (tmp_path / "model.onnx").write_bytes(edited(tiny_model(), hostile))
    for source, code in ((tmp_path, "E4315"), (tmp_path / "none", "E4404")):
        with pytest.raises(PointsmanError) as caught:
            run("strategies", "encoder", "add", source, "--encoders-dir", tmp_path / "encoders")
        assert caught.value.code == code
    (tmp_path / "empty").mkdir()
    with pytest.raises(PointsmanError, match=r"there is no model\.onnx"):
        run("strategies", "encoder", "add", tmp_path / "empty", "--encoders-dir", tmp_path / "encoders")
    assert not (tmp_path / "encoders").exists()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "model.onnx").write_bytes(tiny_model())
    (tmp_path / "www" / "large").write_bytes(b"x" * (2**20 + 1))

    def handler(*arguments: object) -> http.server.SimpleHTTPRequestHandler:
        return http.server.SimpleHTTPRequestHandler(*arguments, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetch_keeps_what_was_meant(tmp_path: Path, url: str) -> None:
    directory, digest = tmp_path / "encoders", sha256_hex(tiny_model())

    def fetch(source: str, sha256: str, *more: str) -> str:
        command = ("strategies", "encoder", "fetch", "model.onnx", "--encoders-dir", directory)
        return run(*command, "--from", source, "--sha256", sha256, *more)

    for source, sha256, code in (
        (f"{url}/model.onnx", "0" * 64, "E4302"),
        (f"{url}/none", digest, "E4400"),
        (f"{url}/large", digest, "E4301"),
        ("http://example.com/model.onnx", digest, "E4203"),
        ("file:///etc/passwd", digest, "E4203"),
    ):
        with pytest.raises(PointsmanError) as caught:
            fetch(source, sha256, "--max-megabytes", "1")
        assert caught.value.code == code
    assert not directory.exists()
    assert digest in fetch(f"{url}/model.onnx", digest)
    assert (directory / digest).read_bytes() == tiny_model()
