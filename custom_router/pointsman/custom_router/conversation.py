"""Which deployment served the earlier turns of a conversation. Memory of one worker, bounded, forgotten after a while.

Another worker's turns are not seen: with several, a conversation that changes workers is taken for a new one.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pointsman.custom_router.text import content_text

__all__ = ["Conversations", "Turn", "conversation_id", "digest_of"]

PREFIX_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Turn:
    """The last turn: who served it, and how many tokens its prompt and answer had, which are the next one's prefix."""

    deployment_id: str
    tokens: int


def conversation_id(whose: Sequence[str | None], session: str | None, messages: Sequence[Mapping[str, Any]]) -> bytes | None:
    """A digest that is the same for each turn of a conversation, or None where there is nothing to tell it by.

    By the session's id where the client sends one; else by the messages up to the first one of the user. Two conversations of
    one key that begin alike are taken for one, which costs no more than a wrong guess at the cache. No text is kept.

    Args:
        whose: group, key, team and user (some ways to log in have no key); the same session of others is another one.
        session: the client's id of it.
        messages: as the client sent them.
    """
    if session:
        parts = ["session", session[:PREFIX_CHARS]]
    else:
        first = next((i for i, m in enumerate(messages) if isinstance(m, Mapping) and m.get("role") == "user"), None)
        if first is None:
            return None
        opening = [m for m in messages[: first + 1] if isinstance(m, Mapping)]
        parts = [f"{m.get('role')}\0{content_text(m.get('content'), PREFIX_CHARS)}" for m in opening]
    return digest_of((*whose, *parts))


def digest_of(parts: Iterable[str | None], key: bytes = b"", size: int = 16) -> bytes:
    """A digest of so many parts, each with its length before it, so that none can pretend to be two.

    Args:
        parts: None counts as empty.
        key: at most 64 bytes; who does not know it can neither make nor guess the digest.
        size: bytes.
    """
    digest = hashlib.blake2b(digest_size=size, key=key)
    for part in parts:
        raw = (part or "").encode("utf-8", "replace")
        digest.update(len(raw).to_bytes(8) + raw)
    return digest.digest()


class Conversations:
    """Conversation -> its last turn.

    Args:
        ttl: seconds after which a turn is forgotten; providers keep an unused prompt cache for about five minutes.
        bound: conversations; the one that was touched longest ago is forgotten.
        clock: seconds.
    """

    def __init__(self, ttl: float = 300.0, bound: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl, self._bound, self._clock = ttl, bound, clock
        self._turns: OrderedDict[bytes, tuple[float, Turn]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    def served(self, conversation: bytes | None, turn: Turn) -> None:
        """A turn was answered."""
        if conversation is None:
            return
        self._turns.pop(conversation, None)
        self._turns[conversation] = (self._clock(), turn)
        if len(self._turns) > self._bound:
            self._turns.popitem(last=False)

    def last(self, conversation: bytes | None) -> Turn | None:
        """The last turn, unless it is too long ago."""
        found = self._turns.get(conversation) if conversation is not None else None
        if found is None:
            return None
        if self._clock() - found[0] > self._ttl:
            del self._turns[conversation]  # type: ignore[arg-type] # found, so it is no None
            return None
        return found[1]
