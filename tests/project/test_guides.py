"""README and guides, followed to the letter by somebody who has never been here: set-up is done, everything else happens."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator

import pytest

from support.guides import Reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The same newcomer reads all pages, one after the other: what the first one left must not hurt the next."""
    someone = Reader(tmp_path_factory.mktemp("newcomer"))
    yield someone
    someone.close()


def _of(printed: list[tuple[str, str]], part: str) -> str:
    """What the first command printed that has `part` in it."""
    return next(output for command, output in printed if part in command)


def _answer(output: str) -> str:
    return str(json.loads(output)["choices"][0]["message"]["content"])


@pytest.mark.requirement("R-1.3", "R-4.1")
def test_quickstart(reader: Reader) -> None:
    printed = list(reader.follow("docs/quickstart.md").items())  # two starts on the same data
    said = printed[0][1]
    for name in ("master_key", "salt_key"):
        assert stat.S_IMODE((reader.data_dir / name).stat().st_mode) == 0o600
    for shown in (
        f"http://127.0.0.1:{reader.port}/v1",
        f"http://127.0.0.1:{reader.port}/ui",
        str(reader.data_dir / "master_key"),
    ):
        assert shown in said
    assert re.fullmatch(r"(cheap|strong) says: Hello", _answer(_of(printed, "chat/completions")))
    assert {"auto", "mock-slow"} <= {row["id"] for row in json.loads(_of(printed, "v1/models"))["data"]}
    key = json.loads(_of(printed, "key/generate"))["key"]
    assert (reader.checkout / "pointsman.yaml").is_file()

    # Now the second gateway runs, with the file that `init` wrote. The line that it offers works as it stands.
    assert _answer(reader.run(reader.offered()))
    info = json.loads(reader.run(f'curl -s http://127.0.0.1:4000/key/info -H "Authorization: Bearer {key}"'))["info"]
    assert (info["models"], info["max_budget"]) == (["auto"], 5)
    ended = reader.ctrl_c()
    assert not re.search(r"Traceback|\*\*\*|Error", ended), ended


@pytest.mark.slow("training")
@pytest.mark.requirement("R-2.2", "R-2.3", "R-3.6")
def test_strategies(reader: Reader) -> None:
    printed = list(reader.follow("docs/strategies.md").items())
    routed = _of(printed, "chat/completions")
    assert "strong says: Prove" in routed
    assert re.search(r"^x-pointsman-strategy: llmrouter-knn\r?$", routed, re.MULTILINE)
    first = re.search(r"^x-pointsman-version: (\S+)\r?$", routed, re.MULTILINE)
    assert first
    (status,) = json.loads(_of(printed, "/hot-reload/status"))["strategies"]
    assert status["version"] != first[1]
    back = json.loads(_of(printed, "/rollback"))
    assert back["version"] == first[1]
    assert back["blocked"] == [status["sha256"]]
    assert (reader.checkout / "build" / "signed" / "current.json").is_file()
    assert f"{status['sha256']}.zip: ok\n" in _of(printed, "strategies verify")
    answers = [json.loads(line) for line in _of(printed, "strategies score").splitlines()]
    assert len(answers) == len((reader.checkout / "examples" / "training.jsonl").read_text().splitlines())
    for answer in answers:
        assert set(answer) == {"id", "scores", "pick", "us"}
        assert answer["scores"][answer["pick"]] == max(answer["scores"].values())
    reader.ctrl_c()
