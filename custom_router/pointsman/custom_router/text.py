"""The text of a request, as a strategy reads it: which turns, how much of them; and how long and in which script a text is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pointsman.policy_settings import TextSettings

__all__ = ["DEFAULT_TEXT", "compose", "content_text", "estimate_tokens", "gemini_turns", "is_latin", "text_of"]

DEFAULT_TEXT = TextSettings()
BYTES_PER_TOKEN = 4
MAX_PARTS = 10_000
"""Parts of one message that are looked at; more are no conversation, and would cost the deadline."""
MAX_VALUES = 5_000
"""Values of one request in which text is looked for when its tokens are counted; some milliseconds at most."""
_TEXTUAL = ("content", "text", "arguments", "input", "function", "tool_calls")
"""Pictures and files travel as base64 under other keys; their length says nothing of tokens."""
SYSTEM = ("system", "developer")  # a tuple: a client's role may be something without a hash


def text_of(messages: Sequence[Mapping[str, Any]] | None) -> str:
    """The text as a strategy reads it that does not say otherwise: that of the last user message which has any."""
    return compose(messages, DEFAULT_TEXT)


def compose(messages: Sequence[Mapping[str, Any]] | None, settings: TextSettings, system: object = None) -> str:
    """The text of a request. Never raises, whatever the client sent.

    Args:
        messages: OpenAI's or Anthropic's shape; what is no message is passed over.
        settings: which turns; of a text longer than `max_chars` the end is kept, which is what was asked last.
        system: a system prompt that stands outside of the messages (Anthropic's `system`, Responses' `instructions`).
    """
    turns = [message for message in messages or () if isinstance(message, Mapping)] if isinstance(messages, Sequence) else []
    limit = settings.max_chars
    pieces: list[str] = []
    size = 0
    # Backwards, and no further than is kept: a long conversation costs no more than the text that is read of it.
    for message in reversed(turns):
        role = message.get("role")
        if role != "user" and not (settings.turns == "conversation" and role == "assistant"):
            continue
        text = content_text(message.get("content"), limit)
        if text:
            pieces.append(text)
            size += len(text) + 1
            if settings.turns == "last_user" or size > limit:
                break
    if settings.system and size <= limit:
        texts = [content_text(m.get("content"), limit) for m in turns if m.get("role") in SYSTEM]
        pieces.extend(reversed([text for text in (content_text(system, limit), *texts) if text]))
    return "\n".join(reversed(pieces))[-limit:] if pieces else ""


def gemini_turns(contents: object) -> list[dict[str, Any]]:
    """Gemini's `contents` as messages: a text, one content, or several, whose role is `user` or `model`. Never raises."""
    if isinstance(contents, str):
        return [{"role": "user", "content": contents}]
    items = [contents] if isinstance(contents, Mapping) else contents if isinstance(contents, list) else ()
    return [
        {"role": "assistant" if item.get("role") == "model" else "user", "content": item.get("parts")}
        for item in items
        if isinstance(item, Mapping)
    ]


def content_text(content: object, limit: int = DEFAULT_TEXT.max_chars) -> str:
    """The text of a message's content: a string, or the text of its parts; at most its last `limit` characters.

    Parts that are no text are passed over, tool results too: in an agent's loop the question stays what the user asked.
    """
    if isinstance(content, str):
        # Twice the limit leaves room for white space at the end without a look at the whole of a long text.
        return content[-2 * limit :].strip()[-limit:]
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        return ""
    return "\n".join(_parts(content[-MAX_PARTS:], limit)).strip()[-limit:]


def _parts(parts: Sequence[object], limit: int) -> Iterator[str]:
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            yield text[-limit:]


def estimate_tokens(value: object) -> int:
    """About how many tokens a prompt has: one for four bytes of UTF-8, everything textual in it counted.

    That is near the truth for English, and somewhat high for scripts whose letters take several bytes.
    """
    size, seen, waiting = 0, 0, [value]
    while waiting and seen < MAX_VALUES:
        one = waiting.pop()
        seen += 1
        # JSON's own types, and not their protocols: those cost ten times as much to ask for.
        if isinstance(one, str):
            size += len(one) if one.isascii() else len(one.encode("utf-8", "replace"))
        elif isinstance(one, dict):
            waiting.extend(one[key] for key in _TEXTUAL if key in one)
        elif isinstance(one, list | tuple):
            waiting.extend(one[: MAX_VALUES - seen])
    return -(-size // BYTES_PER_TOKEN)


def is_latin(text: str) -> bool:
    """Whether most letters of its first 2,000 characters are of the Latin script; a text without letters counts as Latin."""
    letters = [char for char in text[:2000] if char.isalpha()]
    # Latin blocks of Unicode: Basic, -1 Supplement, Extended-A and -B, IPA; Extended Additional; full-width forms.
    latin = sum(char < "\u02b0" or "\u1e00" <= char <= "\u1eff" or "\uff21" <= char <= "\uff5a" for char in letters)
    return 2 * latin >= len(letters)
