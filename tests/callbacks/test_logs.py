"""Log lines: what is told of a record, what never is, and that nobody waits for who reads them."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.callbacks.log_export import Export
from pointsman.callbacks.log_output import Output
from pointsman.callbacks.log_records import Entry, constant_text, fields_of, json_line, text_line
from pointsman.callbacks.logs import LIBRARIES, Logs
from pointsman.callbacks.names import LOG_FIELDS
from pointsman.callbacks.privacy import REDACTED, Redactor, known_secrets
from pointsman.decisions import Attempt, Decision, Dropped, Outcome
from pointsman.decisions.ticket import CURRENT, Ticket
from pointsman.errors import RoutingError
from pointsman.settings import PointsmanSettings
from pointsman.telemetry_settings import OtlpSettings
from support.otlp import attributes, receiver
from support.processes import wait_for

PROMPT = "my grandmother's maiden name is Zwetschgenknödel"
library = logging.getLogger("somelibrary")
ours = logging.getLogger("pointsman.tested")


class Lines:
    """One `Logs` that writes into a pipe; what it wrote."""

    def __init__(self, **section: Any) -> None:
        self._read, self._write = os.pipe()
        self.logs = Logs(PointsmanSettings.load(section), "tested", descriptor=self._write)

    def said(self) -> list[dict[str, Any]]:
        """All lines, once it is closed."""
        self.logs.close()
        os.close(self._write)
        with os.fdopen(self._read) as stream:
            return [json.loads(line) for line in stream]


@pytest.fixture
def lines() -> Iterator[Callable[..., Lines]]:
    """Makes the one that the loggers of these tests write to."""
    made: list[tuple[logging.Logger, logging.Handler]] = []

    def make(**section: Any) -> Lines:
        found = Lines(**section)
        for logger in (library, ours, logging.getLogger("pointsman.decisions")):
            logger.addHandler(found.logs.handler)
            logger.setLevel(logging.DEBUG)
            logger.propagate = False  # pytest's own handler fails for a record that cannot be told
            made.append((logger, found.logs.handler))
        return found

    yield make
    for logger, handler in made:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.fixture
def ticket() -> Iterator[Ticket]:
    """A request under way."""
    found = Ticket(request_id="req-1", trace=("a" * 32, "b" * 16), key_alias="kitchen", team="cooks")
    token = CURRENT.set(found)
    yield found
    CURRENT.reset(token)


class UpstreamError(Exception):
    """As LiteLLM maps a provider's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status_code = status
        self.llm_provider = "openai"


def fail(error: Exception, times: int = 1) -> None:
    """Raise it, and log it as LiteLLM does on its way up: again and again, and wrapped."""
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - whatever it is
        for _ in range(times):
            library.exception("it failed: %s", caught)
        try:
            raise RuntimeError(f"wrapped {caught}") from caught
        except RuntimeError:
            library.error(f"and again: {caught}")


@pytest.mark.requirement("R-15.5")
@pytest.mark.requirement("L-10")
def test_a_line_says_whose_it_is(lines: Callable[..., Lines], ticket: Ticket) -> None:
    found = lines()
    ticket.decision = Decision("dec_1", "req-1", "auto")
    ours.warning("the %s boils", "kettle")
    (line,) = found.said()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "pointsman.tested",
        "message": "the kettle boils",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "request_id": "req-1",
        "decision_id": "dec_1",
        "key_alias": "kitchen",
        "team": "cooks",
        "process": "tested",
    }


@pytest.mark.requirement("R-15.3")
def test_a_librarys_words_about_a_request_are_not_told(lines: Callable[..., Lines], ticket: Ticket) -> None:
    found = lines()
    library.warning(f"Request to provider: {PROMPT}")
    library.error("cannot parse %s", PROMPT)
    library.debug("%s", {"messages": [{"content": PROMPT}]})
    said = found.said()
    assert [line["message"] for line in said] == ["Request to provider: …", "cannot parse %s", "%s"]
    assert "Zwetsch" not in json.dumps(said, ensure_ascii=False)


def test_outside_of_a_request_a_librarys_warnings_are_told_whole(lines: Callable[..., Lines]) -> None:
    found = lines()
    library.warning("the port %d is taken", 80)
    library.debug("the payload was %s", PROMPT)
    said = found.said()
    assert [line["message"] for line in said] == ["the port 80 is taken", "the payload was %s"]


def test_in_a_thread_without_the_requests_context_nothing_is_told_either(lines: Callable[..., Lines]) -> None:
    found = lines()
    thread = threading.Thread(target=library.warning, args=("callback failed for %s", PROMPT))
    thread.start()
    thread.join()
    assert [line["message"] for line in found.said()] == ["…"]  # the call that began at the thread's own code


@pytest.mark.requirement("R-15.7")
@pytest.mark.requirement("P-21")
def test_an_error_is_one_line_with_its_stack_and_without_its_words(lines: Callable[..., Lines], ticket: Ticket) -> None:
    found = lines()
    ticket.answered = 200  # a stream: nothing to wait for
    fail(UpstreamError(f"I refuse: {PROMPT}", 500), times=3)
    (line,) = found.said()
    assert (line["level"], line["error_type"], line["request_id"], line["trace_id"]) == (
        "ERROR",
        "UpstreamError",
        "req-1",
        "a" * 32,
    )
    assert "raise error" in line["stack"]
    assert "status=500 provider=openai" in line["stack"]
    assert "Zwetsch" not in json.dumps(line, ensure_ascii=False)


def test_our_own_errors_words_are_told(lines: Callable[..., Lines], ticket: Ticket) -> None:
    found = lines()
    ticket.answered = 200
    try:
        raise RoutingError("no points to throw", code="E4701")
    except RoutingError:
        ours.exception("routing failed")
    (line,) = found.said()
    assert "no points to throw" in line["error_message"]


@pytest.mark.parametrize(
    ("error", "answer", "told"),
    [
        (Exception(PROMPT), 401, False),  # as LiteLLM refuses a key
        (ValueError(PROMPT), 401, True),  # what breaks in its authentication is answered 401, too
        (ValueError(PROMPT), 500, True),
        (json.JSONDecodeError(PROMPT, PROMPT, 0), 400, False),
        (json.JSONDecodeError(PROMPT, PROMPT, 0), 401, True),
        (UpstreamError(PROMPT, 400), 400, False),
        (UpstreamError(PROMPT, 401), 401, True),
        (UpstreamError(PROMPT, 429), 429, True),
        (UpstreamError(PROMPT, 500), 400, True),
    ],
)
def test_a_callers_mistake_has_no_stack_trace(
    lines: Callable[..., Lines], ticket: Ticket, error: Exception, answer: int, told: bool
) -> None:
    found = lines()
    fail(error, times=2)
    ticket.settle(answer)
    said = found.said()
    assert len(said) == told
    assert told or ticket.refusal == type(error).__name__


@pytest.mark.requirement("R-15.3")
def test_prompts_are_told_where_that_was_asked_for_and_the_rules_hold(lines: Callable[..., Lines], ticket: Ticket) -> None:
    found = lines(privacy={"capture_prompts": True, "redact": [r"maiden name is \S+", r"\d{4}-\d{4}"]})
    library.warning(f"Request: {PROMPT}")
    found.logs.record(Decision("dec_1", "req-1", "auto", prompt="call 1234-5678"))
    said = found.said()
    assert said[0]["message"] == f"Request: my grandmother's {REDACTED}"
    assert said[1]["prompt"] == f"call {REDACTED}"


@pytest.mark.requirement("R-15.2")
def test_a_decision_is_one_line(lines: Callable[..., Lines], ticket: Ticket) -> None:
    found = lines()
    decision = Decision(
        "dec_1",
        "req-1",
        "auto",
        strategy="knn",
        version="1.2.0",
        scores={"d1": 0.9, "d2": 0.1234567891},
        dropped=(Dropped("d3", "tried"),),
        order=("d1", "d2"),
        model="openai/m",
        chosen_by="group",
        microseconds=77,
    )
    found.logs.record(decision)
    found.logs.record(Attempt("dec_1", 1, "d1", "openai/m", "ok"))
    found.logs.record(Attempt("dec_1", 2, "d1", "openai/m", "error", "Timeout", 408))
    found.logs.record(Outcome("dec_1", "success"))
    told, attempt, outcome = found.said()
    assert (told["level"], told["message"]) == ("INFO", "auto -> openai/m by knn")
    assert told["scores"] == {"d1": 0.9, "d2": 0.123457}
    assert told["dropped"] == {"d3": "tried"}
    assert (told["strategy_version"], told["deployment"], told["microseconds"]) == ("1.2.0", "d1", 77)
    assert (attempt["level"], attempt["status"], attempt["error_type"]) == ("WARNING", 408, "Timeout")
    assert outcome["level"] == "DEBUG"
    assert {*told, *attempt, *outcome} <= set(LOG_FIELDS)


# Put together here, so that no file of the repository holds what looks like a secret.
SECRETS = [
    "sk-abcdef1234567890",
    "Authorization: Bearer abcdefghij",
    "postgresql://user:hunter22@host/db",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + "a1" * 18,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "-----BEGIN {0}-----\nMIIabc\n-----END {0}-----".format("PRIVATE " + "KEY"),
    '{"api_key": "zzzz-not-a-shape"}',
    "password='opensesame'",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_secret_is_replaced(secret: str) -> None:
    said = Redactor().text(f"before {secret} after")
    for part in ("abcdef", "hunter22", "IOSFODNN7", "a1a1a1", "MIIabc", "zzzz", "opensesame", "eyJzdWI"):
        assert part not in said
    assert said.startswith("before ")
    assert REDACTED in said


def test_numbers_of_tokens_are_no_secrets() -> None:
    text = '{"prompt_tokens": 12345, "max_tokens": 40960} took 3 tokens'
    assert Redactor().text(text) == text


@given(st.text(min_size=8, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_known_secret_stands_nowhere(secret: str, before: str, after: str) -> None:
    said = Redactor([secret]).value({"text": [before + secret + after], before + secret: 1})
    # What surrounds it may spell it again only if it was spelled across the mark that replaced it.
    assert (
        secret not in json.dumps(said, ensure_ascii=False).replace(REDACTED, "\0") or secret in REDACTED or REDACTED in secret
    )


def test_what_is_known_to_be_secret() -> None:
    env = {"OPENAI_API_KEY": "opaque-value-1", "PATH": "/usr/bin", "MAX_TOKENS": "100000000", "SHORT_KEY": "x"}
    config = {
        "model_list": [{"litellm_params": {"api_key": "opaque-value-2", "api_base": "http://u:opaque-value-3@host"}}],
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    assert known_secrets(env, config) == {"opaque-value-1", "opaque-value-2", "opaque-value-3"}


def test_the_constant_text_of_a_call(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "log.info('plain')\n"
        "log.info(\n    f'a {x} b'\n    f' c {y}'\n)\n"
        "log.info('x: ' + str(x))\n"
        "log.info('{} of'.format(x))\n"
        "log.info(x)\n"
        "x = 1\n"
    )
    assert [constant_text(str(path), line) for line in (1, 2, 6, 7, 8, 9, 99)] == [
        "plain",
        "a … b c …",
        "x: …",
        "{} of",
        "…",
        "…",
        "…",
    ]


def test_a_line_for_people() -> None:
    entry = Entry(
        1e9, logging.ERROR, "pointsman.x", "went wrong", ("f", 1), {"request_id": "r"}, {"workers": 2, "limits": {"a": 1}}
    )
    said = text_line(fields_of(entry, Redactor())).decode()
    assert said == '01:46:40.000 ERROR   pointsman.x went wrong request_id=r workers=2 limits={"a":1}\n'


def entry(message: str) -> Entry:
    return Entry(time.time(), logging.INFO, "pointsman.x", message, ("f", 1), {})


def output(descriptor: int, size: int = 100) -> Output:
    redactor = Redactor()
    return Output(descriptor, lambda item: fields_of(item, redactor), json_line, size)


def test_a_reader_that_stalls_holds_nobody_up_and_what_is_lost_is_counted() -> None:
    read, write = os.pipe()
    found = output(write)
    began = time.monotonic()
    for number in range(5_000):
        found.put(entry(f"{number} " + "x" * 1_000))
    assert time.monotonic() - began < 2  # the pipe holds 64 KiB; who waited for it would wait for ever
    assert found.dropped > 4_000
    data = b""
    while True:
        os.set_blocking(read, False)
        try:
            data += os.read(read, 1 << 20)
        except BlockingIOError:
            if found.flushed(0) and b"4999 " in data and data.endswith(b"\n"):
                break
            time.sleep(0.01)
    numbers = [int(json.loads(line)["message"].split()[0]) for line in data.splitlines()]
    assert len(numbers) == 5_000 - found.dropped
    assert numbers == sorted(numbers)
    found.close()
    os.close(read)
    os.close(write)


def test_long_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    read, write = os.pipe()
    writers = [output(write) for _ in range(4)]
    for writer in writers:
        writer.share(tmp_path / "lock")
    gathered: list[bytes] = []
    with os.fdopen(read, "rb") as stream:
        reader = threading.Thread(target=lambda: gathered.extend(stream))
        reader.start()
        for number in range(50):
            for name, writer in enumerate(writers):
                writer.put(entry(f"{name}-{number} " + str(name) * 10_000))
        for writer in writers:
            writer.close(10)
        os.close(write)
        reader.join()
    assert len(gathered) == 200
    for line in gathered:
        name, _, rest = json.loads(line)["message"].partition("-")
        assert rest.split()[1] == name * 10_000


def test_a_reader_that_is_gone_is_counted() -> None:
    read, write = os.pipe()
    os.close(read)
    found = output(write)
    found.put(entry("to nobody"))
    wait_for(lambda: found.dropped == 1, 5, "it was counted")
    found.close()
    os.close(write)


def test_what_was_lost_is_told_once(lines: Callable[..., Lines]) -> None:
    found = lines(telemetry={"logs": {"otlp": {"endpoint": "http://127.0.0.1:9"}}})
    assert found.logs.lost() == {}
    found.logs.output.lose(2)
    assert found.logs.lost() == {"stdout": 2}
    assert found.logs.lost() == {}
    assert found.logs.dropped == {"stdout": 2, "otlp": 0}
    found.said()


def test_a_record_that_cannot_be_told_fails_nobody(lines: Callable[..., Lines]) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    found = lines()
    ours.warning("a %d", "not a number")
    ours.warning("b %s", Broken())
    ours.warning("c", extra={"fields": {"config": Path("/x"), "limits": {1: float("nan")}}})
    ours.warning("d \ud800")
    assert [line["message"] for line in found.said()] == ["a %d", "b %s", "c", "d ?"]


def otlp(endpoint: str, **fields: Any) -> OtlpSettings:
    return OtlpSettings(endpoint=endpoint, **{"interval": 0.05, "timeout": 1.0, **fields})


def told(message: str) -> dict[str, Any]:
    item = Entry(1e9, logging.WARNING, "pointsman.x", message, ("f", 1), {"trace_id": "a" * 32, "span_id": "b" * 16})
    item.fields = {"limits": {"a": 1}, "status": 401, "stack": "Traceback"}
    return fields_of(item, Redactor())


@pytest.mark.requirement("R-6.3")
@pytest.mark.requirement("R-15.4")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_records_leave_by_otlp(protocol: str) -> None:
    with receiver() as collector:
        endpoint = collector.endpoint if protocol == "http" else collector.grpc_endpoint
        settings = otlp(endpoint, protocol=protocol, headers={"X-Tenant": "kitchen"})
        export = Export(settings, {"service.name": "pointsman"}, lambda *_: None)
        export.put(told("hello"))
        wait_for(lambda: bool(collector.logs()), 10, "it has arrived")
        export.close()
        (item,) = collector.items("/v1/logs")
    record = item.what
    assert item.headers["x-tenant"] == "kitchen"
    assert item.resource["service.name"] == "pointsman"
    assert record.body.string_value == "hello"
    assert (record.trace_id.hex(), record.span_id.hex()) == ("a" * 32, "b" * 16)
    assert (record.severity_text, record.severity_number) == ("WARNING", 13)
    assert record.time_unix_nano == 1_000_000_000_000_000_000
    found = attributes(record.attributes)
    assert found == {"logger": "pointsman.x", "limits": {"a": 1}, "status": 401, "exception.stacktrace": "Traceback"}


def test_a_collector_that_is_away_loses_only_what_does_not_fit() -> None:
    said: list[tuple[int, str]] = []
    with receiver() as collector:
        collector.refuse(503)
        export = Export(otlp(collector.endpoint, queue_size=50, batch_size=10), {}, lambda *what: said.append(what))
        export.put(told("0"))
        wait_for(lambda: export.failing, 20, "it has failed")
        for number in range(1, 100):
            export.put(told(str(number)))
        collector.recover()
        wait_for(lambda: len(collector.logs()) >= 51, 30, "the rest has arrived")
        export.close()
        arrived = [int(record.body.string_value) for record in collector.logs()]
    assert arrived == [0, *range(50, 100)]
    assert export.dropped == 49
    assert [level for level, _ in said] == [logging.WARNING, logging.INFO]


def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    with receiver() as collector:
        collector.hang()
        export = Export(otlp(collector.endpoint, timeout=30.0), {}, lambda *_: None)
        export.put(told("hello"))
        wait_for(lambda: collector.exports > 0, 10, "it has begun")
        began = time.monotonic()
        export.close(timeout=0.2)
        assert time.monotonic() - began < 2


def test_litellms_loggers_are_those_whose_level_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # importing it asks the internet else
    from litellm import _logging

    theirs = (_logging.verbose_logger, _logging.verbose_proxy_logger, _logging.verbose_router_logger)
    assert {logger.name for logger in theirs} == set(LIBRARIES)
