"""What may stand in a label: bounded sets of words, endpoints by their path.

Every value of a label is a time series for as long as the gateway runs, in its memory and in Prometheus'. So no text that a
client chooses may become one without a bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["OTHER", "Words", "endpoint_of"]

OTHER = "other"
MAX_LENGTH = 100
MAX_KNOWN = 500

_NAMES = (
    "chat/completions|completions|embeddings|messages|responses|rerank|moderations|search|ocr|realtime|batches|files|fine_tuning"
    "|vector_stores|images/generations|images/edits|images/variations|audio/speech|audio/transcriptions|audio/translations|videos"
)
_ENDPOINT = re.compile(rf"/(?:openai/)?(?:v[12](?:beta)?/)?(?:(?:deployments|engines)/.{{1,200}}?/)?({_NAMES})(?:/|$)")
_GEMINI = re.compile(r"/(?:v1beta/)?models/.{1,200}:(?:generateContent|streamGenerateContent)$")
_FIRST = {"a2a": "a2a", "mcp": "mcp", "mcp-rest": "mcp", "health": "probe", "metrics": "probe", "hot-reload": "hot_reload"}


def endpoint_of(path: str) -> str:
    """The endpoint that a path means: a few dozen values, whatever the path.

    `/v1/chat/completions`, `/openai/deployments/gpt-4/chat/completions` are `chat/completions`; the Gemini API is
    `generate_content`; the administrator's pages and routes are `other`; probes and scrapes `probe`.
    """
    if (found := _ENDPOINT.match(path)) is not None:
        return found[1]
    if _GEMINI.match(path) is not None:
        return "generate_content"
    return _FIRST.get(path[1:].partition("/")[0], OTHER)


class Words:
    """A label's values: what the configuration knows, the first others up to a bound, and `other` for the rest.

    Args:
        known: always told by name.
        limit: how many others are.
    """

    def __init__(self, known: Iterable[str] = (), limit: int = 64) -> None:
        self._limit = limit
        self._others = 0
        self._words: dict[str, str] = {}
        self.know(known)

    def know(self, words: Iterable[str]) -> None:
        """Tell these by name from now on, too; at most `MAX_KNOWN`, because a configuration may change for ever."""
        for word in words:
            if len(self._words) >= MAX_KNOWN:
                return
            self._words.setdefault(word, _clean(word))

    def __call__(self, word: str) -> str:
        """The word, or `other`."""
        if (told := self._words.get(word)) is not None:
            return told
        if self._others >= self._limit or len(word) > MAX_LENGTH:
            return OTHER
        self._others += 1
        self._words[word] = told = _clean(word)
        return told


def _clean(word: str) -> str:
    """Without what UTF-8 cannot say: half a surrogate pair in a client's JSON would fail every scrape."""
    return word[:MAX_LENGTH].encode("utf-8", "replace").decode("utf-8")
