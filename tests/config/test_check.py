"""`check` and `load`: every problem of a file at once, each with its line, its key and how to mend it."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.errors import CATALOGUE, ConfigError
from pointsman.litellm_config import InvalidConfigError, Problem, check, load

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return _write


def errors(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def one(problems: list[Problem], key: str) -> Problem:
    found = [problem for problem in problems if problem.key == key]
    assert len(found) == 1, problems
    return found[0]


GOOD = """\
model_list:
  - model_name: auto
    litellm_params: {model: mock/cheap}
  - model_name: auto
    litellm_params: {model: mock/strong}
"""


@pytest.mark.requirement("R-1.5")
def test_a_good_file_has_no_problem(write: Write) -> None:
    path = write(GOOD)
    assert check(path, {}) == []
    config = load(path, {"DATABASE_URL": "postgresql://u:p@h/d", "LITELLM_MASTER_KEY": "sk-x"})
    assert config.database_url == "postgresql://u:p@h/d"
    assert config.master_key == "sk-x"
    assert config.python_path == (str(path.parent),)
    assert "sk-x" not in repr(config)
    assert "u:p" not in repr(config)


@pytest.mark.requirement("P-3")
def test_all_problems_are_told_at_once_with_line_key_and_mend(write: Write) -> None:
    path = write(
        """\
        model_lst: []
        model_list:
          - model_name: a
          - litellm_params: {model: mock/x}
          - model_name: b
            litellm_params: {api_key: k}
          - model_name: c
            litellm_params: {model: mock/y, mock: {answr: hi}}
            model_info: {id: one}
          - model_name: d
            litellm_params: {model: mock/z}
            model_info: {id: one}
        router_settings:
          routing_strategy: llmrouter-nkk
        pointsman:
          shutdwn: {grace: 5}
          shutdown:
            grace: -1
            grace: soon
          decisions: {queue_size: many}
        """
    )
    problems = check(path, {"POINTSMAN__SHUTDOWN__GRACY": "1", "POINTSMAN__DECISIONS__BATCH_SIZE": "x"})
    by_key = {problem.key: problem for problem in problems}
    expected = {
        "model_lst": (1, "E4202", "model_list"),
        "model_list[0].litellm_params": (3, "E4204", "litellm_params"),
        "model_list[1].model_name": (4, "E4204", "model_name"),
        "model_list[2].litellm_params.model": (6, "E4204", "model"),
        "model_list[3].litellm_params.mock.answr": (8, "E4202", "answer"),
        "model_list[4].model_info.id": (12, "E4203", "own id"),
        "router_settings.routing_strategy": (14, "E4206", "llmrouter-knn"),
        "pointsman.shutdwn": (16, "E4202", "shutdown"),
        "pointsman.shutdown.grace": (19, "E4203", ""),
        "pointsman.decisions.queue_size": (20, "E4203", ""),
        "POINTSMAN__SHUTDOWN__GRACY": (None, "E4202", "GRACE"),
        "POINTSMAN__DECISIONS__BATCH_SIZE": (None, "E4203", ""),
    }
    for key, (line, code, mend) in expected.items():
        problem = by_key[key]
        if key == "model_lst":
            # There is a model_list too, so the misspelt one cannot be meant for it: it is only ignored.
            assert (problem.line, problem.code, problem.severity) == (line, code, "warning")
            continue
        assert (problem.line, problem.code) == (line, code), problem
        assert mend in problem.mend, problem
        assert problem.severity == "error"
    assert next(p for p in problems if p.message.startswith("the key stands twice")).line == 19
    lines = [p.line for p in problems if p.line is not None]
    assert lines == sorted(lines)
    with pytest.raises(InvalidConfigError) as caught:
        load(path, {})
    assert isinstance(caught.value, ConfigError)
    assert caught.value.code == "E4200"
    assert len(errors(list(caught.value.problems))) >= 10
    for problem in caught.value.problems:
        assert str(problem) in str(caught.value)


def test_a_misspelt_section_is_an_error_with_a_suggestion(write: Write) -> None:
    problem = one(check(write("model_lst: []\n"), {}), "model_lst")
    assert (problem.severity, problem.code, problem.mend) == ("error", "E4202", "Did you mean model_list?")


def test_an_unlike_unknown_section_is_a_warning_and_anchors_may_stand_apart(write: Write) -> None:
    problems = check(write(GOOD + "wholly_other: 1\nx-anchors: {a: 1}\n"), {})
    assert [(p.key, p.severity) for p in problems] == [("wholly_other", "warning")]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"\x7fELF\x00\x01", "binary"),
        (b"model_list: [caf\xe9]\n", "UTF-8"),
        (b"model_list: [\n", "YAML"),
        (b"model_list:\n\t- a\n", "YAML"),
        (b"- a\n- b\n", "mapping"),
        (b"just text\n", "mapping"),
        (b"a: 1\n---\nb: 2\n", "more than one document"),
        (b"[" * 5000, "levels deep"),
        (b"a: " + b"[" * 200 + b"]" * 200, "levels deep"),
        (b"a: *nowhere\n", "anchor"),
        (b"a: &a [*a]\n", "anchor"),
        (b"%YAML 9.9\n---\na: 1\n", "YAML"),
        (b'a: "\\q"\n', "YAML"),
        (b"a" * (5 * 2**20), "MiB"),
    ],
)
def test_unreadable_content_is_one_clear_error(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    problems = check(path, {})
    assert [problem.code for problem in problems] == ["E4201"], problems
    assert word in problems[0].message
    with pytest.raises(InvalidConfigError) as caught:
        load(path, {})
    assert caught.value.code == "E4201"


def test_a_bad_byte_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"a: 1\nb: 2\nc: \xff\n")
    assert check(path, {})[0].line == 3


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel_list: []\n")
    assert check(path, {}) == []


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    for path, word in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "directory"),
        (Path("/dev/null"), "regular"),
        (loop, ""),
        (tmp_path / ("n" * 300), ""),
        (Path("a\0b"), ""),
    ):
        problems = check(path, {})
        assert [problem.code for problem in problems] == ["E4201"], problems
        assert word in problems[0].message


def test_few_aliases_cannot_unfold_to_gigabytes(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    problems = check(write("\n".join(lines)), {})
    assert [problem.code for problem in problems] == ["E4201"]
    assert "aliases" in problems[0].message


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['id']", "!include other.yaml", "!!set {a, b}", "!!omap [a: 1]"]
)
def test_tags_build_nothing(write: Write, text: str) -> None:
    problems = check(write(f"{GOOD}x-a: {text}\n"), {})
    assert errors(problems)
    assert problems[0].line == 6


@pytest.mark.parametrize("text", ["2024-13-45", "!!int x", "!!int ''", "!!float x", "!!bool x", "!!timestamp x", "0b"])
def test_scalars_that_the_parser_chokes_on_are_told_with_their_line(write: Write, text: str) -> None:
    problems = check(write(f"{GOOD}x-a:\n  b: {text}\n"), {})
    if text == "0b":
        assert problems == []  # plain text
    else:
        assert (problems[0].line, problems[0].key, problems[0].code) == (7, "x-a.b", "E4203")


def test_merge_keys_anchors_and_odd_keys_keep_their_meaning(write: Write) -> None:
    path = write(
        """\
        x-base: &base {timeout: 5, api_key: k}
        model_list:
          - model_name: a
            litellm_params: {<<: *base, model: openai/x, timeout: 9}
          - model_name: b
            litellm_params: {<<: [{timeout: 1}, *base], model: openai/y}
        litellm_settings:
          1: one
          on: two
        """
    )
    assert check(path, {}) == []
    effective = load(path, {}).effective
    assert effective["model_list"][0]["litellm_params"] == {"timeout": 9, "api_key": "k", "model": "openai/x"}
    assert effective["model_list"][1]["litellm_params"] == {"timeout": 1, "api_key": "k", "model": "openai/y"}
    assert "x-base" not in effective
    assert (effective["litellm_settings"]["1"], effective["litellm_settings"]["on"]) == ("one", "two")


def test_problems_of_included_files_are_told_there(write: Write) -> None:
    write("model_list:\n  - model_name: m\n    litellm_params: {model: 5}\ninclude: [deeper.yaml]\n", "sub/models.yaml")
    write("router_settings:\n  num_retrys: 1\n", "sub/deeper.yaml")
    path = write("include:\n  - sub/models.yaml\n  - missing.yaml\n  - 7\nmodel_list:\n  - model_name: a\n")
    problems = check(path, {})
    found = {(p.path.relative_to(path.parent).as_posix(), p.line, p.key, p.code) for p in problems}
    assert found == {
        ("config.yaml", 3, "include", "E4201"),
        ("config.yaml", 4, "include[2]", "E4203"),
        ("config.yaml", 6, "model_list[0].litellm_params", "E4204"),
        ("sub/models.yaml", 3, "model_list[1].litellm_params.model", "E4203"),
        ("sub/deeper.yaml", 2, "router_settings.num_retrys", "E4202"),
    }


def test_includes_are_merged_as_litellm_does_and_inlined(write: Write) -> None:
    write("model_list: [{model_name: b, litellm_params: {model: mock/b}}]\ninclude: [../config.yaml]\n", "more/models.yaml")
    write("litellm_settings: {drop_params: true}\n", "more/settings.yaml")
    path = write(
        """\
        include: [more/models.yaml, more/settings.yaml, more/models.yaml]
        model_list: [{model_name: a, litellm_params: {model: mock/a}}]
        litellm_settings: {num_retries: 7}
        """
    )
    config = load(path, {})
    assert [entry["model_name"] for entry in config.effective["model_list"]] == ["a", "b"]
    assert all(entry["model_info"]["id"] for entry in config.effective["model_list"])
    assert "include" not in config.effective
    assert config.effective["litellm_settings"]["drop_params"] is True
    assert "num_retries" not in config.effective["litellm_settings"]  # replaced, and a warning says so
    assert [warning.key for warning in config.warnings] == ["litellm_settings"]
    assert [file.name for file in config.files] == ["config.yaml", "models.yaml", "settings.yaml"]


def test_a_missing_credential_is_a_warning(write: Write) -> None:
    path = write(
        """\
        model_list:
          - model_name: a
            litellm_params: {model: openai/x, api_key: os.environ/MY_KEY}
          - model_name: b
            litellm_params: {model: anthropic/y}
          - model_name: c
            litellm_params: {model: openai/z, api_key: "${MY_KEY}"}
          - model_name: d
            litellm_params: {model: openai/z, api_key: os.environ/}
        environment_variables: {FROM_FILE: x}
        litellm_settings: {cache_params: {host: os.environ/FROM_FILE}}
        """
    )
    problems = check(path, {})
    assert [(p.line, p.severity, p.code) for p in problems] == [
        (3, "warning", "E4204"),
        (5, "warning", "E4204"),
        (7, "warning", "E4203"),
        (9, "error", "E4203"),
    ]
    problems = check(path, {"MY_KEY": "k", "ANTHROPIC_API_KEY": "k"})
    assert [p.line for p in problems] == [7, 9]


def test_names_that_nothing_bears(write: Write) -> None:
    path = write(
        GOOD
        + textwrap.dedent(
            """\
            router_settings:
              num_retrys: 3
              health_check_interval: 5
              fallbacks: [{auto: [backup]}, {auo: [auto]}, wrong]
            litellm_settings: {callbcks: [x]}
            general_settings: {master_kee: x, my_own: 1}
            pointsman:
              strategies: {mine: {source: s3://b/k.json, require_signature: false}}
              routing:
                default: mien
                groups: {auto: mine, other: null, auto2: gone}
                candidates: {small: mock/chep}
            """
        )
    )
    problems = check(path, {})
    found = {p.key: (p.severity, p.mend) for p in problems}
    assert found["router_settings.num_retrys"] == ("warning", "Did you mean num_retries?")
    assert found["router_settings.health_check_interval"][0] == "error"
    assert found["router_settings.fallbacks[0]"][0] == "warning"
    assert found["router_settings.fallbacks[1]"] == ("warning", "Did you mean auto?")
    assert found["router_settings.fallbacks[2]"][0] == "error"
    assert found["litellm_settings.callbcks"] == ("warning", "Did you mean callbacks?")
    assert found["general_settings.master_kee"] == ("warning", "Did you mean master_key?")
    assert "general_settings.my_own" not in found  # LiteLLM passes keys of its users on
    assert found["pointsman.routing.default"] == ("error", "Did you mean mine?")
    assert found["pointsman.routing.groups.auto2"][0] in {"error", "warning"}
    assert any(p.key == "pointsman.routing.groups.auto2" and p.severity == "error" for p in problems)
    assert found["pointsman.routing.groups.other"][0] == "warning"
    assert found["pointsman.routing.candidates.small"] == ("warning", "Did you mean mock/cheap?")


def test_a_misspelt_provider_is_told(write: Write) -> None:
    path = write("model_list:\n  - model_name: a\n    litellm_params: {model: opneai/gpt, api_key: k}\n")
    problem = one(check(path, {}), "model_list[0].litellm_params.model")
    assert (problem.severity, problem.line, problem.mend) == ("warning", 3, "Did you mean openai/?")


@pytest.mark.parametrize("url", ["mysql://h/d", "postgresql://h", "x", "postgresql://h:port/d"])
def test_a_database_url_of_the_wrong_form(write: Write, url: str) -> None:
    problem = one(check(write(GOOD), {"DATABASE_URL": url}), "DATABASE_URL")
    assert problem.code == "E4504"
    path = write(f"{GOOD}general_settings: {{database_url: '{url}'}}\n")
    problem = one(check(path, {}), "general_settings.database_url")
    assert (problem.code, problem.line) == ("E4504", 6)


def test_a_bucket_that_would_replace_the_file_is_refused(write: Write) -> None:
    problem = one(check(write(GOOD), {"LITELLM_CONFIG_BUCKET_NAME": "b"}), "LITELLM_CONFIG_BUCKET_NAME")
    assert problem.severity == "error"


def test_keeping_models_out_of_the_database_is_told_and_not_done(write: Write) -> None:
    path = write(f"{GOOD}general_settings: {{store_model_in_db: false}}\n")
    problem = one(check(path, {}), "general_settings.store_model_in_db")
    assert (problem.severity, problem.line) == ("warning", 6)
    assert load(path, {}).effective["general_settings"]["store_model_in_db"] is True


def test_settings_in_the_wrong_place_are_sent_to_the_right_one(write: Write) -> None:
    path = write(f"{GOOD}pointsman: {{grace: 5, reload_interval: 5}}\n")
    problems = check(path, {})
    assert "pointsman.shutdown.grace" in one(problems, "pointsman.grace").mend
    assert "pointsman.strategies.<name>.reload_interval" in one(problems, "pointsman.reload_interval").mend


def test_values_of_the_section(write: Write) -> None:
    key = base64.b64encode(b"k" * 32).decode()
    path = write(
        GOOD
        + textwrap.dedent(
            f"""\
            pointsman:
              strategies:
                ok: {{source: r/current.json, trusted_keys: {{k: "{key}"}}}}
                "bad name": {{source: r/current.json}}
                http: {{source: "http://x/y.json"}}
                s3: {{source: "s3://bucket"}}
                short: {{source: x.json, trusted_keys: {{k: abc}}}}
                none: {{kind: knn}}
                endpoint: {{source: x.json, s3: {{endpoint_url: "localhost:9000"}}}}
                zero: {{source: x.json, reload_interval: 0}}
                nan: {{source: x.json, reload_interval: .nan}}
            """
        )
    )
    found = {p.key: (p.code, p.line) for p in errors(check(path, {}))}
    prefix = "pointsman.strategies"
    assert found == {
        f"{prefix}.bad name": ("E4203", 9),
        f"{prefix}.http.source": ("E4203", 10),
        f"{prefix}.s3.source": ("E4203", 11),
        f"{prefix}.short.trusted_keys.k": ("E4203", 12),
        f"{prefix}.none.source": ("E4204", 13),
        f"{prefix}.endpoint.s3.endpoint_url": ("E4203", 14),
        f"{prefix}.zero.reload_interval": ("E4203", 15),
        f"{prefix}.nan.reload_interval": ("E4203", 16),
    }


def test_every_code_is_of_the_catalogue(write: Write) -> None:
    problems = check(write("model_lst: 1\npointsman: {a: 1}\nrouter_settings: {routing_strategy: x}\n"), {})
    assert problems
    assert all(problem.code in CATALOGUE and problem.message and problem.mend for problem in problems)


def test_a_master_key_that_litellm_refuses(write: Write) -> None:
    for literal in ("sk-1234", "''", "5"):
        path = write(f"{GOOD}general_settings: {{master_key: {literal}}}\n")
        assert one(check(path, {}), "general_settings.master_key").code == "E4203"
    assert one(check(write(GOOD), {"LITELLM_MASTER_KEY": "sk-1234"}), "LITELLM_MASTER_KEY").code == "E4203"
    path = write(f"{GOOD}general_settings: {{master_key: os.environ/MINE}}\n")
    assert one(check(path, {"MINE": "sk-1234"}), "MINE").code == "E4203"
    path = write(f"{GOOD}general_settings: {{dangerously_permit_weak_or_unset_master_key: true, master_key: sk-1234}}\n")
    assert check(path, {}) == []


@pytest.mark.parametrize("setting", ["callbacks: {a: b}", "custom_provider_map: {a: b}"])
def test_lists_that_are_none(write: Write, setting: str) -> None:
    problems = check(write(f"{GOOD}litellm_settings: {{{setting}}}\n"), {})
    assert [(p.severity, p.line) for p in problems] == [("error", 6)]
