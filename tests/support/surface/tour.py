"""A tour of LiteLLM's management surface: calls with valid bodies, in order, as data in the YAML files beside this module.

A call is `METHOD /path/{as_declared}`, or a mapping of `call` and

- `body`, `query`, `with` (path parameters), `files`, `headers`: what is sent; `$name` stands for what an earlier call saved;
- `key`: whose virtual key sends it, else the master key;
- `save`: name -> where in the answer it is found (`a.b.0`);
- `until`: sent again until the answer holds this text (what is written in the background);
- `expect` and `why`: the status of an answer that is not 2xx, and the reason.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from support.processes import wait_for

__all__ = ["Answer", "Call", "Tour", "calls", "exclusions", "tables"]

HERE = Path(__file__).resolve().parent
ORDER = ("access", "traffic", "models", "agents", "settings", "spend", "reads", "end")


class Call(BaseModel):
    """One call of the tour; see the module's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    call: str
    body: Any = None
    query: dict[str, Any] = {}
    path: dict[str, str] = Field({}, alias="with")
    files: dict[str, list[str]] = {}
    headers: dict[str, str] = {}
    key: str | None = None
    save: dict[str, str] = {}
    until: str | None = None
    expect: int | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _reason(self) -> Call:
        if (self.expect is None) != (self.why is None):
            raise ValueError("`why` goes with `expect`")
        return self

    @property
    def method(self) -> str:
        return self.call.partition(" ")[0]

    @property
    def route(self) -> str:
        return self.call.partition(" ")[2]


@cache
def calls() -> tuple[Call, ...]:
    """The whole tour, in order."""
    read = (yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")) for name in ORDER)
    return tuple(Call.model_validate({"call": item} if isinstance(item, str) else item) for items in read for item in items)


def exclusions() -> dict[str, str]:
    """Glob of `METHOD /path` -> why the tour leaves it out."""
    groups: dict[str, list[str]] = yaml.safe_load((HERE / "exclusions.yaml").read_text(encoding="utf-8"))
    return {glob: reason for reason, globs in groups.items() for glob in globs}


def tables() -> dict[str, Any]:
    """What the tour must have left in the tables (`written`), and what not (`deleted`)."""
    found: dict[str, Any] = yaml.safe_load((HERE / "tables.yaml").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """A call with what came back; status 0: nothing did."""

    call: Call
    status: int
    text: str

    @property
    def as_expected(self) -> bool:
        return 200 <= self.status < 400 if self.call.expect is None else self.status == self.call.expect

    def __str__(self) -> str:
        wanted = "2xx" if self.call.expect is None else self.call.expect
        return f"{self.call.call} {self.call.query or ''}: {self.status}, not {wanted}: {self.text[:600]}"


def fill(value: Any, known: Mapping[str, Any]) -> Any:
    """`value` with every string `$name` replaced by what is known under that name."""
    if isinstance(value, str) and value.startswith("$"):
        return known[value[1:]]
    if isinstance(value, dict):
        return {name: fill(item, known) for name, item in value.items()}
    if isinstance(value, list):
        return [fill(item, known) for item in value]
    return value


def dig(value: Any, path: str) -> Any:
    """What lies at `a.b.0` in a JSON value."""
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


@dataclass
class Tour:
    """Sends calls and remembers what they saved.

    Args:
        client: has the gateway's base URL and no key of its own.
        master_key: sends what no other key is named for.
        known: names that calls may use from the start.
    """

    client: httpx.Client
    master_key: str
    known: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        before, after = now - datetime.timedelta(days=1), now + datetime.timedelta(days=1)
        for name, at in (("from", before), ("to", after)):
            self.known[f"day_{name}"] = f"{at:%Y-%m-%d}"
            self.known[f"time_{name}"] = f"{at:%Y-%m-%d %H:%M:%S}"
            self.known[f"iso_{name}"] = f"{at:%Y-%m-%dT%H:%M:%SZ}"

    def send(self, call: Call, key: str | None = None) -> Answer:
        """Send one call, as its own key, else `key`, else the master key."""
        try:
            answer = self._ask(call, key)
            if call.until is not None:
                text = fill(call.until, self.known)
                wait_for(lambda: text in self._ask(call, key).text, 20, f"the answer tells of {text}", interval=0.2)
                answer = self._ask(call, key)
            if call.save and answer.is_success:
                self.known |= {name: dig(answer.json(), where) for name, where in call.save.items()}
        except (httpx.TransportError, AssertionError) as error:
            return Answer(call, 0, repr(error))
        except KeyError as error:
            return Answer(call, 0, f"nobody has saved {error}, or the answer lacks it")
        return Answer(call, answer.status_code, answer.text)

    def _ask(self, call: Call, key: str | None) -> httpx.Response:
        path = call.route
        for name, value in {**self.known, **fill(call.path, self.known)}.items():
            path = path.replace(f"{{{name}}}", str(value)).replace(f"{{{name}:path}}", str(value))
        sender = fill(call.key, self.known) if call.key else key or self.master_key
        headers = {"authorization": f"Bearer {sender}", **call.headers}
        return self.client.request(
            call.method, path, params=fill(call.query, self.known), headers=headers, **self._content(call)
        )

    def _content(self, call: Call) -> dict[str, Any]:
        body = fill(call.body, self.known)
        if call.files:
            files = {name: (file, text.encode()) for name, (file, text) in call.files.items()}
            return {"files": files, "data": body or {}}
        return {} if body is None else {"json": body}

    def run(self, all_calls: Iterable[Call]) -> Iterator[Answer]:
        """Send them one after the other."""
        for call in all_calls:
            yield self.send(call)
