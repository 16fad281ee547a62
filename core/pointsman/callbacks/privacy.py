"""What may not leave in a record: secrets, and whatever the operator's rules name.

Two layers. What is known to be secret is replaced wherever it stands: the values of the environment and of the configuration
that are keys or passwords. What looks like a secret is replaced by its shape. Prompts are no matter of shapes: records that may
hold some are not told at all (`log_records`), unless `privacy.capture_prompts`; then these rules are what stands between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

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
    (("eyj",), r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),  # JSON web tokens
    (("://",), r"(?<=://)[^\s/@:]{0,128}:[^\s/\"'<>]{1,512}(?=@)"),  # user and password of a URL
    (("bearer ", "basic "), r"(?i:(?<=bearer )|(?<=basic ))[A-Za-z0-9._~+/=-]{6,}"),
    (
        (
            *("_key", "-key", "apikey", "accountkey", "accesskey"),
            *("secret", "passw", "passphrase", "token", "authoriz", "credential"),
        ),
        r"""(?ix:(?:api[_-]?keys?|(?:account|license|app|application|master|salt|private|signing|access)[_-]?key
              |secrets?(?:[_-]?access)?(?:[_-]?key)?|passw(?:or)?ds?|passphrase|(?<!per_)token|authorization|credentials?)
            \\{0,8}["']?\s{0,16}[:=]\s{0,16}\\{0,8}["']?(?!\[redacted\])
            (?:(?:bearer|basic|token|apikey|digest|negotiate)\s{1,16})?
            ((?:[^\s"',;&}\])\\]|\\(?!\\{0,8}["'])){4,}))""",
    ),
)
"""What must stand in a text, in lower case, for a shape to be looked for; looking costs far more than that; and the shape.

Each takes time in proportion to the text: it begins where its word stands (or where a run of its characters does), and what it
looks for after that is bounded or is not looked for twice. A group is what is replaced; without one it is all of the match.
"""

_SECRET_NAME = re.compile(
    r"(secret|password|passwd|passphrase|credential|authorization|api_?key|access_?key|account_?key|license_?key|private_?key"
    r"|auth_?key|token)s?(_(json|base64|b64|value|values|old|new|previous|\d+))?$|_key$|secret_id$|(^|_)pass$|_pwd$"
)
_NOT_SECRET_NAME = re.compile(
    r"(max|min|num|count|total|budget|limit|per|prompt|completion|input|output|reasoning|cached?|over)\w*tokens?$"
    r"|public|(cache|sort|primary|partition|routing|shard|group|object|s3|idempotency)_key$"
)
_HEADERS = re.compile(r"(^|_)headers$")
_PLAIN_HEADER = re.compile(
    r"(accept|content|cache|sec)-.*|.*-(version|beta)|accept|user-agent|host|origin|connection|referer|http-referer|x-title"
)
_PLAIN_PART = re.compile(r"type|project_id|universe_domain|.*_email|.*_ur[il]")
"""Of what stands under a secret name as a mapping, as an account of a service at Google does: what is no secret."""
_REFERENCE = re.compile(r"(?i:os\.environ/.*|true|false|none|null)|env\.[A-Z][A-Z0-9_]*")
_USERINFO = re.compile(r"://[^\s/@:]*:([^\s/]+)@")


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
        self._spelled = tuple({form for value in values for form in (value, orjson.dumps(value).decode()[1:-1])})
        self._rules = tuple(re.compile(rule) for rule in rules)

    def nothing_in(self, line: str) -> bool:
        """Whether a whole line of JSON surely holds nothing to replace; far cheaper than to look at each of its texts."""
        if self._rules:
            return False
        lower = line.lower()
        for hint in self._hints:  # loops: a generator would cost as much again
            if hint in lower:
                return False
        for secret in self._spelled:  # noqa: SIM110 - as above
            if secret in line:
                return False
        return True

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
    last = match.group(match.lastindex) if match.lastindex else ""
    return match.group(0)[: -len(last)] + REDACTED if last else REDACTED


def known_secrets(env: Mapping[str, str], *configurations: Any) -> frozenset[str]:
    """Values that are secret by the name they stand under, headers, and what stands in URLs: passwords, keys of the query.

    Args:
        env: the environment.
        configurations: parsed YAML; references to variables (`os.environ/...`) are no secrets themselves.
    """
    found = set(_named(dict(env)))
    for configuration in configurations:
        found.update(_named(configuration))
    return frozenset(value for value in found if len(value) >= MIN_SECRET and not _REFERENCE.fullmatch(value))


def _named(value: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            name = re.sub(r"[-.\s]+", "_", str(key)).lower()
            if _HEADERS.search(name):
                yield from _headers(item)
            elif secret:
                yield from _named(item, _PLAIN_PART.fullmatch(name) is None)
            else:
                yield from _named(item, _SECRET_NAME.search(name) is not None and _NOT_SECRET_NAME.search(name) is None)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item, secret)
    elif isinstance(value, str):
        if "://" in value:
            yield from _of_url(value)
        if secret and value.lstrip().startswith("{"):
            yield from _of_json(value)
        elif secret:
            yield value


def _headers(value: Any) -> Iterator[str]:
    """Values of headers: a mapping, or a text `name=value,name=value` as OpenTelemetry takes them (percent-encoded)."""
    pairs: list[tuple[str, str]] = []
    if isinstance(value, Mapping):
        pairs = [(str(name), item) for name, item in value.items() if isinstance(item, str)]
    elif isinstance(value, str):
        for part in re.split(r"[,\n]", value):
            name, sign, item = part.partition("=")
            if not sign:
                name, sign, item = part.partition(":")
            pairs.append((name, item))
    for name, item in pairs:
        if _PLAIN_HEADER.fullmatch(name.strip().lower()):
            continue
        for form in {item.strip(), unquote(item.strip())}:
            yield form
            scheme, space, rest = form.partition(" ")
            if space and scheme.isalnum():  # `Bearer ...`
                yield rest.strip()


def _of_url(value: str) -> Iterator[str]:
    for password in (_password(value), *_USERINFO.findall(value)):
        if password:
            yield from (password, unquote(password))
    if "?" in value:
        yield from _named(dict(parse_qsl(value.partition("?")[2])))


def _of_json(value: str) -> Iterator[str]:
    try:
        yield from _named(orjson.loads(value), secret=True)
    except orjson.JSONDecodeError:
        yield value


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None
