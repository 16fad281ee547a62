"""What log records hold and how they leave: bounded texts, redacted and shown without harm; whole lines; exact counts."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.callbacks import log_output
from pointsman.callbacks.log_output import Output
from pointsman.callbacks.log_queue import Waiting
from pointsman.callbacks.log_records import Entry, entry_of, fields_of, json_line, text_line
from pointsman.callbacks.log_text import MARGIN, MAX_TEXT
from pointsman.callbacks.privacy import REDACTED, Redactor
from pointsman.decisions import Decision
from support.log_lines import telling
from support.processes import wait_for

SECRET = "opaque-value-of-a-key"


def entry(message: str, **fields: Any) -> Entry:
    return Entry(time.time(), logging.INFO, "pointsman.x", message, ("f", 1), {}, fields)


class Watching(Redactor):
    """Knows the longest text that it was given."""

    longest = 0

    def text(self, value: str) -> str:
        self.longest = max(self.longest, len(value))
        return super().text(value)


@pytest.mark.parametrize("field", ["message", "prompt", "nested", "error_message", "stack"])
def test_no_text_is_longer_than_its_bound_before_it_waits_is_searched_or_is_told(field: str) -> None:
    huge = "token word " * 300_000
    record = logging.LogRecord("pointsman.x", logging.ERROR, "f", 1, huge if field == "message" else "x", (), None)
    record.fields = {"prompt": huge} if field == "prompt" else {"limits": {"a": [huge]}} if field == "nested" else {}
    error: Exception | None = None
    if field in ("error_message", "stack"):
        for _ in range(6):
            error, before = ValueError(huge), error
            error.__cause__ = before
    found = entry_of(record, error, tell_all=True)
    if field != "nested":  # only our own short facts are nested
        assert found.weight < 20 * MAX_TEXT
    redactor = Watching(rules=["never"])
    line = json_line(fields_of(found, redactor))
    assert redactor.longest < 2 * MAX_TEXT
    assert len(line) < 3 * MAX_TEXT


NEAR = st.builds(
    lambda edge, off: max(0, edge + off),
    st.sampled_from([0, MAX_TEXT // 2, MAX_TEXT // 2 + MARGIN, MAX_TEXT, MAX_TEXT + 2 * MARGIN, 100_000]),
    st.integers(-30, 30),
)
"""Lengths around which something is cut."""


@given(NEAR, NEAR)
def test_no_cut_lets_half_a_secret_through(before: int, after: int) -> None:
    words = entry("a" * before + SECRET + "b" * after, prompt="c" * after + SECRET + "d" * before)
    found = fields_of(words, Redactor([SECRET]))
    for text in (found["message"], found["prompt"]):
        rest = text.replace(REDACTED, "")
        assert SECRET[:4] not in rest
        assert SECRET[-4:] not in rest
        assert len(text) < MAX_TEXT + 100


def test_a_long_prompt_is_told_by_its_beginning_and_its_end() -> None:
    with telling("pointsman.decisions", privacy={"capture_prompts": True}) as told:
        told.logs.record(Decision("dec_1", "req-1", "auto", prompt="begin " + "x" * 3_000_000 + " end"))
    (line,) = told.lines()
    assert line["prompt"].startswith("begin x")
    assert line["prompt"].endswith("x end")
    assert len(line["prompt"]) < MAX_TEXT + 100


def test_what_waits_is_bounded_by_size_too() -> None:
    waiting = Waiting[int](10, size=100)
    for number in range(20):
        waiting.put(number, 30)
    assert (waiting.take(10), waiting.dropped) == ([17, 18, 19], 17)
    waiting.put(1, 1_000)  # what is larger than all that may wait waits alone
    assert waiting.take(1) == [1]
    for number in range(20):
        waiting.put(number, 1)
    assert (len(waiting), waiting.dropped) == (10, 27)


def test_what_many_threads_lose_is_counted_exactly() -> None:
    waiting, taken = Waiting[int](50), list[int]()

    def fill() -> None:
        for number in range(5_000):
            waiting.put(number, 1)

    threads = [threading.Thread(target=fill) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += waiting.take(7)
    taken += waiting.take(50)
    assert len(taken) + waiting.dropped == 40_000


def test_control_characters_reach_no_terminal() -> None:
    path = "/x\x1b[2J\n12:00:00 INFO pointsman forged\r\x85\u2028\u202e"
    found = fields_of(entry(f"GET {path}: 404", path=path), Redactor())
    found["stack"] = "Traceback\n  File \x1b[2J\nValueError: ü"
    said = text_line(found).decode()
    assert said.count("\n") == 4
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", said)
    assert r"GET /x\x1b[2J\n12:00:00 INFO pointsman forged\r\x85\u2028\u202e: 404" in said
    assert "    ValueError: ü\n" in said
    assert json.loads(json_line(found))["path"] == path


def output(descriptor: int, size: int = 100_000) -> Output:
    redactor = Redactor()
    return Output(descriptor, lambda item: fields_of(item, redactor), json_line, size)


def test_a_pipe_that_does_not_block_loses_nothing_while_its_reader_is_slow() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    found = output(write)
    for number in range(3_000):
        found.put(entry(f"{number} " + "x" * 200))
    with os.fdopen(read, "rb", buffering=0) as stream:
        data = b""
        while data.count(b"\n") < 3_000:
            data += stream.read(5_000)
    found.close()
    os.close(write)
    assert [int(json.loads(line)["message"].split()[0]) for line in data.splitlines()] == list(range(3_000))
    assert found.dropped == 0


@pytest.mark.parametrize("shared", [False, True])
def test_half_a_line_stands_alone_and_what_is_lost_is_counted(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_output, "PATIENCE", 0.2)
    read, write = os.pipe()
    os.set_blocking(write, False)
    found = output(write)
    other = output(write) if shared else found
    for writer in {found, other}:
        if shared:
            writer.share(tmp_path / "lock")
    for number in range(200):
        found.put(entry(f"{number} " + "x" * 1_000))
    wait_for(lambda: found.dropped > 0, 10, "patience is over")
    data = os.read(read, 1 << 20)
    assert not data.endswith(b"\n")
    other.put(entry("999 after"))
    while b"after" not in data or not data.endswith(b"\n"):
        data += os.read(read, 1 << 20)
    for writer in {found, other}:
        writer.close()
    os.close(write)
    os.close(read)
    *whole, torn, last = data.splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)
    assert json.loads(last)["message"] == "999 after"
    assert [int(json.loads(line)["message"].split()[0]) for line in whole] == list(range(200 - found.dropped))


def test_the_requests_thread_looks_at_no_source_and_keeps_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing:
        """Something that a frame of the request holds."""

    gone: list[weakref.ref[Thing]] = []

    def deep(level: int) -> None:
        thing = Thing()
        gone.append(weakref.ref(thing))
        if level == 0:
            raise ValueError("deep")
        deep(level - 1)

    def caught() -> Entry:
        record = logging.LogRecord("pointsman.x", logging.ERROR, "f", 1, "x", (), None)
        try:
            deep(100)
        except ValueError as error:
            return entry_of(record, error, tell_all=False)
        raise AssertionError

    stats: list[Callable[..., Any]] = []
    stat = os.stat

    def counting(*given: Any, **named: Any) -> os.stat_result:
        stats.append(stat)
        return stat(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counting)
        found = caught()
    assert stats == []
    gc.collect()
    assert all(reference() is None for reference in gone)
    stack = fields_of(found, Redactor())["stack"]
    assert stack.count("deep(level - 1)") + stack.count('raise ValueError("deep")') == 40 or "more times" in stack
    assert 'raise ValueError("deep")' in stack


def test_files_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    from logging.handlers import RotatingFileHandler, TimedRotatingFileHandler

    theirs: list[logging.Handler] = [
        logging.FileHandler(tmp_path / "a"),
        RotatingFileHandler(tmp_path / "b"),
        TimedRotatingFileHandler(tmp_path / "c"),
    ]
    terminal = logging.StreamHandler()
    found = logging.getLogger("theirs")
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    for handler in (*theirs, terminal):
        found.addHandler(handler)
    hooks = (sys.excepthook, threading.excepthook)
    with telling() as told:
        told.logs.install()
        assert found.handlers == theirs
        root.removeHandler(told.logs.handler)
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    for handler in before:
        root.addHandler(handler)
    for handler in theirs:
        found.removeHandler(handler)
        handler.close()


def test_a_line_that_never_ends_is_told_in_pieces() -> None:
    with telling("printed", telemetry={"logs": {"provider_messages": True}}) as told:
        told.logs.redirect()
        for _ in range(3):
            print("x" * 40_000, end="")
        print("the end")
        told.logs.close()
    assert [line["message"][-7:] for line in told.lines()] == ["x" * 7, "the end"]
