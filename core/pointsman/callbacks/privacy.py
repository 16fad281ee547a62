"""What may not leave in a record: secrets, and whatever the operator's rules name.

Two layers. What is known to be secret is replaced wherever it stands: the values of the environment and of the configuration
that are keys or passwords. What looks like a secret is replaced by its shape. Prompts are no matter of shapes: records that may
hold some are not told at all (`log_records`), unless `privacy.capture_prompts`; then these rules are what stands between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

__all__ = ["REDACTED", "Redactor", "known_secrets"]

REDACTED = "[redacted]"
MIN_SECRET = 8
"""Characters; a shorter value (`test`, `1234`) would take ordinary words out of every line."""

_SHAPES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("private key",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
    (("sk-",), r"\bsk-[A-Za-z0-9_-]{6,}"),  # OpenAI, Anthropic, LiteLLM's virtual keys, Langfuse
    (("k-lf-",), r"\b[pr]k-lf-[A-Za-z0-9-]{8,}"),
    (("akia", "asia"), r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),  # AWS
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"),
    (("aiza",), r"\bAIza[A-Za-z0-9_-]{30,}"),  # Google
    (("hf_",), r"\bhf_[A-Za-z0-9]{20,}"),
    (("xox",), r"\bxox[abpr]-[A-Za-z0-9-]{10,}"),  # Slack
    (("eyj",), r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),  # JSON web tokens
    (("://",), r"(?<=://)[^\s/@:]{0,128}:[^\s/@]{1,512}(?=@)"),  # user and password of a URL
    (("bearer ", "basic "), r"(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/=-]{6,}"),
    (
        ("api_key", "api-key", "apikey", "secret", "passw", "token", "authorization", "credential"),
        r"""(?ix:\b(?:[\w.-]{0,40}(?:api[_-]?key|secret|passw(?:or)?d|token|authorization|credential)s?)
            ["']?\s*[:=]\s*["']?(?!\[redacted\])(?:bearer\s+|basic\s+)?)([^\s"',;&}\])]{4,})""",
    ),
)
"""What must stand in a text, in lower case, for a shape to be looked for; looking costs far more than that; and the shape."""

_COUNTS = re.compile(r"(?i)\w*tokens$|\w*_token_count$")
_SECRET_NAME = re.compile(
    r"(?i)(api[_-]?key|secret|passw(or)?d|passwd|token|authorization|master_key|salt_key|credential|private_key)$"
)
_NOT_SECRET_NAME = re.compile(r"(?i)(max|prompt|completion|input|output|total|min).*token$|public_key")
_REFERENCE = re.compile(r"os\.environ/|env\.|^(true|false|none|null)$", re.IGNORECASE)


class Redactor:
    """Replaces secrets in text.

    Args:
        secrets: values that may stand nowhere.
        rules: further regular expressions (`privacy.redact`).
    """

    def __init__(self, secrets: Iterable[str] = (), rules: Iterable[str] = ()) -> None:
        values = {value for secret in secrets if len(secret) >= MIN_SECRET for value in (secret, quote(secret, safe=""))}
        self._exact = sorted(values, key=len, reverse=True)
        self._shapes = tuple((hints, re.compile(shape)) for hints, shape in _SHAPES)
        self._hints = tuple(hint for hints, _ in _SHAPES for hint in hints)
        self._spelled = {form for value in values for form in (value, orjson.dumps(value).decode()[1:-1])}
        self._rules = tuple(re.compile(rule) for rule in rules)

    def nothing_in(self, line: str) -> bool:
        """Whether a whole line of JSON surely holds nothing to replace; far cheaper than to look at each of its texts."""
        lower = line.lower()
        return not (
            self._rules or any(hint in lower for hint in self._hints) or any(secret in line for secret in self._spelled)
        )

    def text(self, value: str) -> str:
        """`value` without what may not leave; half a character (a lone surrogate) becomes a question mark."""
        if not value.isascii():
            value = value.encode("utf-8", "replace").decode("utf-8")
        for secret in self._exact:
            if secret in value:
                value = value.replace(secret, REDACTED)
        lower = value.lower()
        for hints, shape in self._shapes:
            for hint in hints:
                if hint in lower:
                    value = shape.sub(_replacement, value)
                    break
        for rule in self._rules:
            value = rule.sub(REDACTED, value)
        return value

    def value(self, value: Any) -> Any:
        """A JSON value, every text in it (names of mappings too) redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


def _replacement(match: re.Match[str]) -> str:
    last = match.group(match.lastindex) if match.lastindex else None
    if last is None:
        return REDACTED
    name = re.split(r"[\"'\s:=]", match.group(0), maxsplit=1)[0]
    if _COUNTS.fullmatch(name):  # prompt_tokens=12 is no secret
        return match.group(0)
    return match.group(0)[: -len(last)] + REDACTED


def known_secrets(env: Mapping[str, str], *configurations: Any) -> frozenset[str]:
    """Values that are secret by the name they stand under, and passwords of URLs.

    Args:
        env: the environment.
        configurations: parsed YAML; references to variables (`os.environ/...`) are no secrets themselves.
    """
    found = set(_named(dict(env)))
    for configuration in configurations:
        found.update(_named(configuration))
    return frozenset(value for value in found if len(value) >= MIN_SECRET and not _REFERENCE.search(value))


def _named(value: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = str(key)
            named = _SECRET_NAME.search(name) is not None and _NOT_SECRET_NAME.search(name) is None
            yield from _named(item, secret or named)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item, secret)
    elif isinstance(value, str):
        if secret:
            yield value
        elif "://" in value and "@" in value:
            password = _password(value)
            if password:
                yield password


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None
