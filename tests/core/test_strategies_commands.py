"""`pointsman strategies ...` as a person and a script use it: what is printed, what is refused, what a process needs for it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pointsman.cli import cli
from pointsman.errors import PointsmanError
from pointsman.mlops.keys import SigningKey
from pointsman.strategies.bundle import load_bundle
from pointsman.strategies.catalogue import CATALOGUE
from support.bundles import CORRUPTIONS, corrupt, make_bundle, new_key, publish, publish_raw
from support.s3 import S3Server

POINTSMAN = str(Path(sysconfig.get_path("scripts")) / "pointsman")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), "1", prefer={"model-a": ["alpha"], "model-b": ["beta"]})


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return new_key("release-1")


def run(*arguments: str | Path, text: str | None = None, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, [str(item) for item in arguments], input=text, env=env)


def failure(*arguments: str | Path, text: str | None = None, env: dict[str, str] | None = None) -> PointsmanError:
    error = run(*arguments, text=text, env=env).exception
    assert isinstance(error, PointsmanError), error
    return error


@pytest.mark.requirement("R-2.1")
def test_list_has_every_strategy() -> None:
    printed = run("strategies", "list").stdout
    rows = json.loads(run("strategies", "list", "--json").stdout)
    assert [row["name"] for row in rows] == [entry.name for entry in CATALOGUE.values()]
    for entry in CATALOGUE.values():
        line = next(line for line in printed.splitlines() if line.startswith(f"{entry.name} "))
        assert ("not served" if entry.broken else entry.serving) in line
        assert not entry.broken or f"{entry.name}: {entry.broken}" in printed


def test_score_says_what_the_bundle_says(bundle: Path, tmp_path: Path) -> None:
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"query": "alpha"}\n\n{"id": "x", "query": "beta", "user": "u", "more": 1}\n{"id": 7, "query": ""}\n')
    for batch in ("1", "2", "9"):
        lines = [json.loads(line) for line in run("strategies", "score", bundle, queries, "--batch", batch).stdout.splitlines()]
        assert [list(line) for line in lines] == [["id", "scores", "pick", "us"]] * 3
        assert [line["id"] for line in lines] == [1, "x", 7], "a line without an id has its number"
        assert [line["pick"] for line in lines] == ["model-a", "model-b", "model-a"]
        loaded = load_bundle(bundle)
        for line, text in zip(lines, ("alpha", "beta", ""), strict=True):
            assert line["scores"] == pytest.approx(loaded.score(text), abs=1e-6)
            assert 0 < line["us"] < 1e6


def test_score_reads_standard_input_and_gzip_and_pointers(bundle: Path, key: SigningKey, tmp_path: Path) -> None:
    line = '{"query": "beta"}\n'
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    publish(bundle, tmp_path / "store", key=key)
    trusted = f"{key.key_id}={key.public}"
    pointer = tmp_path / "store" / "current.json"
    for arguments in (
        (bundle, "-"),
        (bundle, tmp_path / "q.jsonl.gz"),
        (pointer, "-"),
        (pointer, "-", "--trusted-key", trusted),
    ):
        answers = run("strategies", "score", *arguments, text=line).stdout.splitlines()
        assert [json.loads(answer)["pick"] for answer in answers] == ["model-b"]


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[1]",
        '{"x": 1}',
        '{"query": 1}',
        '{"query": "a", "id": []}',
        '{"query": "a", "user": 1}',
        '{"query": NaN}',
        "\udcff",
    ],
)
def test_score_names_the_bad_line_after_the_good_ones(bundle: Path, tmp_path: Path, bad: str) -> None:
    queries = tmp_path / "q.jsonl"
    queries.write_bytes(b'{"query": "alpha"}\n' + bad.encode("utf-8", "surrogateescape") + b"\n")
    result = run("strategies", "score", bundle, queries)
    assert len(result.stdout.splitlines()) == 1
    assert isinstance(result.exception, PointsmanError)
    assert (result.exception.code, result.exception.where) == ("E4203", f"{queries}:2")


def test_score_streams(bundle: Path) -> None:
    """The answer to a line comes while the next one is not there yet."""
    command = [POINTSMAN, "strategies", "score", str(bundle), "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(json.dumps({"id": number, "query": "alpha"}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.close()
        assert process.wait(20) == 0


def test_score_needs_nothing_but_the_gateways_packages(bundle: Path) -> None:
    """Others judge bundles by it, where there is neither LiteLLM's proxy nor anything that trains."""
    code = (
        "import sys; sys.argv = ['pointsman', 'strategies', 'score', sys.argv[1], '-']\n"
        "from pointsman.cli import cli\n"
        "cli(standalone_mode=False)\n"
        "heavy = {'litellm', 'torch', 'sklearn', 'scipy', 'pandas', 'llmrouter', 'pointsman.mlops'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], input='{"query": "a"}\n', capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["pick"]


def test_verify_takes_a_good_one(bundle: Path, key: SigningKey, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.sha256 in run("strategies", "verify", bundle).stdout
    publish(bundle, tmp_path / "store", key=key)
    pointer = tmp_path / "store" / "current.json"
    found = json.loads(run("strategies", "verify", pointer, "--trusted-key", f"release-1={key.public}", "--json").stdout)
    assert (found["sha256"], found["signature"], found["sequence"]) == (loaded.sha256, "release-1", 1)
    assert "not checked" in run("strategies", "verify", pointer).stdout, "without a key it does not claim to know"
    assert run("strategies", "verify", pointer, "--name", "knn").exit_code == 0


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_verify_refuses_what_a_gateway_refuses(bundle: Path, key: SigningKey, tmp_path: Path, kind: str) -> None:
    damaged = corrupt(bundle, kind)
    assert failure("strategies", "verify", damaged).code == CORRUPTIONS[kind]
    publish_raw(damaged.read_bytes(), tmp_path / "store", key=key)
    pointer = tmp_path / "store" / "current.json"
    size = {"empty": "E4302"}  # a pointer cannot promise an empty bundle
    assert failure("strategies", "verify", pointer).code == size.get(kind, CORRUPTIONS[kind])


def test_verify_and_signatures(bundle: Path, key: SigningKey, tmp_path: Path) -> None:
    trusted = ("--trusted-key", f"release-1={key.public}")
    other = ("--trusted-key", f"release-1={new_key().public}")
    publish(bundle, tmp_path / "signed", key=key)
    publish(bundle, tmp_path / "plain")
    signed, plain = tmp_path / "signed" / "current.json", tmp_path / "plain" / "current.json"
    assert failure("strategies", "verify", signed, *other).code == "E4303"
    assert failure("strategies", "verify", plain, *trusted).code == "E4303"
    assert failure("strategies", "verify", bundle, *trusted).code == "E4303"
    assert failure("strategies", "verify", signed, "--name", "other").code == "E4305"
    assert failure("strategies", "verify", bundle, "--name", "other").code == "E4305"
    assert failure("strategies", "verify", signed, "--trusted-key", "nonsense").code == "E4203"
    assert failure("strategies", "verify", bundle, "--max-bytes", "100").code == "E4301"
    publish_raw(bundle.read_bytes(), tmp_path / "lies", key=key, manifest_sha256="0" * 64)
    assert failure("strategies", "verify", tmp_path / "lies" / "current.json", *trusted).code == "E4302"
    assert failure("strategies", "verify", tmp_path / "none.json").code == "E4404"
    assert failure("strategies", "verify", "model.pkl").code == "E4205"


def test_exit_status_of_a_refused_one(bundle: Path) -> None:
    command = [POINTSMAN, "strategies", "verify", str(corrupt(bundle, "nan"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "E4308" in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect(bundle: Path, key: SigningKey, tmp_path: Path) -> None:
    found = json.loads(run("strategies", "inspect", bundle, "--json").stdout)
    loaded = load_bundle(bundle)
    assert (found["sha256"], found["size"], found["manifest_sha256"]) == (loaded.sha256, loaded.size, loaded.manifest_sha256)
    assert found["manifest"] == loaded.manifest.model_dump(mode="json")
    assert found["files"]["strategy.safetensors"]["arrays"]["scores"] == ["float32", 10, 2]
    text = run("strategies", "inspect", bundle).stdout
    for part in ("model-a, model-b", loaded.sha256, "10 x 2", "not evaluated"):
        assert part in text
    publish(bundle, tmp_path, key=key)
    assert "sequence 1, key release-1" in run("strategies", "inspect", tmp_path / "current.json").stdout
    assert "knn" in run("strategies", "inspect", corrupt(bundle, "probe")).stdout, "also one that would not be served"
    assert failure("strategies", "inspect", corrupt(bundle, "torch")).code == "E4205"


def test_inspect_shows_the_evaluation(tmp_path: Path) -> None:
    arguments = ("--data", "examples/training.jsonl", "--out", tmp_path, "--set", "k=5")
    made = run("mlops", "train", "--strategy", "knn", *arguments)
    text = run("strategies", "inspect", made.stdout.strip()).stdout
    for name in ("best_single", "cheapest", "random", "oracle", "strategy - best single"):
        assert name in text


def test_from_s3(bundle: Path, s3_environment: S3Server) -> None:
    bucket = s3_environment.new_bucket()
    to = f"s3://{bucket}/knn/current.json"
    end = ("--endpoint-url", s3_environment.endpoint_url)
    assert "sequence 1" in run("strategies", "publish", bundle, "--to", to, *end).stdout
    assert json.loads(run("strategies", "score", to, "-", *end, text='{"query": "beta"}\n').stdout)["pick"] == "model-b"
    direct = f"s3://{bucket}/knn/bundles/{load_bundle(bundle).sha256}.zip"
    assert run("strategies", "verify", direct, *end).exit_code == 0


def test_keygen_and_publish_are_the_same_under_both_names(bundle: Path, tmp_path: Path) -> None:
    for group in ("strategies", "mlops"):
        printed = run(group, "keygen", "--out", tmp_path / f"{group}.key", "--id", group).stdout
        public = printed.strip().partition(": ")[2]
        made = run(group, "publish", bundle, "--to", tmp_path / group, "--key", tmp_path / f"{group}.key")
        assert "sequence 1" in made.stdout
        pointer = tmp_path / group / "current.json"
        assert run("strategies", "verify", pointer, "--trusted-key", f"{group}={public}").exit_code == 0


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[Any], Callable[[int, Any], None]]]:
    """An HTTP server that notes what it is asked and answers as told: the command's side of the wire."""
    seen: list[Any] = []
    answer: list[tuple[int, bytes]] = [(200, b"{}")]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, self.headers["authorization"], json.loads(body)))
            status, content = answer[0]
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (
        f"http://127.0.0.1:{server.server_port}",
        seen,
        lambda code, body: answer.__setitem__(0, (code, json.dumps(body).encode())),
    )
    server.shutdown()
    server.server_close()


def test_rollback_asks_the_gateway(gateway: Any, tmp_path: Path) -> None:
    url, seen, answer = gateway
    answer(200, {"name": "a/b", "version": "7", "sha256": "f" * 64})
    arguments = ("strategies", "rollback", "a/b", "--reason", "worse", "--url", url)
    assert "version 7 is in service" in run(*arguments, env={"LITELLM_MASTER_KEY": "sk-env"}).stdout
    assert seen == [("/pointsman/strategies/a%2Fb/rollback", "Bearer sk-env", {"reason": "worse"})]
    (tmp_path / "key").write_text("sk-file\n")
    run(*arguments, "--key-file", tmp_path / "key", env={"LITELLM_MASTER_KEY": "sk-env"})
    assert seen[-1][1] == "Bearer sk-file"
    (tmp_path / "pointsman").mkdir()
    (tmp_path / "pointsman" / "master_key").write_text("sk-up")
    run(*arguments, env={"LITELLM_MASTER_KEY": "", "XDG_DATA_HOME": str(tmp_path)})
    assert seen[-1][1] == "Bearer sk-up"


def test_rollback_that_fails_says_why(gateway: Any, tmp_path: Path) -> None:
    url, _, answer = gateway
    env = {"LITELLM_MASTER_KEY": "sk"}
    ours = {"error": {"message": "nothing earlier", "code": "E4313", "param": "knn", "mend": "publish a good bundle"}}
    for status, body, code in (
        (409, ours, "E4313"),
        (401, {"error": {"message": "no", "code": "401"}}, "E4101"),
        (404, {"detail": "Not Found"}, "E4004"),
        (500, {"detail": "?"}, "E4001"),
        (200, ["?"], "E4001"),
    ):
        answer(status, body)
        assert failure("strategies", "rollback", "knn", "--url", url, env=env).code == code
    assert failure("strategies", "rollback", "knn", "--url", "http://127.0.0.1:9", env=env).code == "E4605"
    assert failure("strategies", "rollback", "knn", "--url", "nonsense", env=env).code == "E4605"
    empty = {"LITELLM_MASTER_KEY": "", "XDG_DATA_HOME": str(tmp_path)}
    assert failure("strategies", "rollback", "knn", "--url", url, env=empty).code == "E4204"
