"""One prompt, every way to send it: the endpoints that route by text, through the real SDKs, with the answer's headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import openai

if TYPE_CHECKING:
    from support.gateway import Gateway

__all__ = ["WAYS", "Clients", "Said", "errors"]


@dataclass(frozen=True, slots=True)
class Said:
    """What came back: the text, the response's id, the headers."""

    text: str
    id: str
    headers: Mapping[str, str]

    @property
    def served_by(self) -> str:
        """Name of the fake upstream that answered."""
        assert self.text.startswith("served by "), self.text
        return self.text.removeprefix("served by ")

    def header(self, name: str) -> str | None:
        """One of our headers, e.g. `strategy`."""
        return self.headers.get(f"x-pointsman-{name}")


class Clients:
    """Both SDKs with one key."""

    def __init__(self, gateway: Gateway, key: str, *, timeout: float = 30) -> None:
        self.openai: openai.OpenAI = gateway.openai(key, timeout=timeout)
        self.anthropic: anthropic.Anthropic = gateway.anthropic(key, timeout=timeout)


def chat(clients: Clients, model: str, text: str) -> Said:
    raw = clients.openai.chat.completions.with_raw_response.create(model=model, messages=[{"role": "user", "content": text}])
    answer = raw.parse()
    return Said(answer.choices[0].message.content or "", answer.id, raw.headers)


def chat_stream(clients: Clients, model: str, text: str) -> Said:
    raw = clients.openai.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": text}], stream=True
    )
    chunks = list(raw.parse())
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return Said(said, chunks[0].id, raw.headers)


def completion(clients: Clients, model: str, text: str) -> Said:
    raw = clients.openai.completions.with_raw_response.create(model=model, prompt=text)
    answer = raw.parse()
    return Said(answer.choices[0].text, answer.id, raw.headers)


def completion_stream(clients: Clients, model: str, text: str) -> Said:
    raw = clients.openai.completions.with_raw_response.create(model=model, prompt=text, stream=True)
    chunks = list(raw.parse())
    return Said("".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices), chunks[0].id, raw.headers)


def messages(clients: Clients, model: str, text: str) -> Said:
    raw = clients.anthropic.messages.with_raw_response.create(
        model=model, max_tokens=50, messages=[{"role": "user", "content": text}]
    )
    answer = raw.parse()
    return Said("".join(block.text for block in answer.content if block.type == "text"), answer.id, raw.headers)


def messages_stream(clients: Clients, model: str, text: str) -> Said:
    raw = clients.anthropic.messages.with_raw_response.create(
        model=model, max_tokens=50, messages=[{"role": "user", "content": text}], stream=True
    )
    said, first = "", ""
    for event in raw.parse():
        if event.type == "message_start":
            first = event.message.id
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            said += event.delta.text
    return Said(said, first, raw.headers)


def responses(clients: Clients, model: str, text: str) -> Said:
    raw = clients.openai.responses.with_raw_response.create(model=model, input=text)
    answer = raw.parse()
    return Said(answer.output_text, answer.id, raw.headers)


def responses_stream(clients: Clients, model: str, text: str) -> Said:
    raw = clients.openai.responses.with_raw_response.create(model=model, input=text, stream=True)
    said, first = "", ""
    for event in raw.parse():
        if event.type == "response.output_text.delta":
            said += event.delta
        elif event.type == "response.completed":
            first = event.response.id
    return Said(said, first, raw.headers)


WAYS: dict[str, Callable[[Clients, str, str], Said]] = {
    "chat": chat,
    "chat_stream": chat_stream,
    "completion": completion,
    "completion_stream": completion_stream,
    "messages": messages,
    "messages_stream": messages_stream,
    "responses": responses,
    "responses_stream": responses_stream,
}
"""Name -> call; every one of them routes by the text."""

errors: Any = (openai.APIStatusError, anthropic.APIStatusError)
"""What both SDKs raise for an HTTP error."""
