"""Which columns LiteLLM stores encrypted, and whether a key opens what is in them.

LiteLLM encrypts with LITELLM_SALT_KEY and, where that is not set, with its master key. A value that no key opens does not say
so itself, for plain text is allowed in the same places: it counts as unreadable when it bears LiteLLM's mark for ciphertext, or
has the shape of one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import psycopg
from psycopg import sql

from pointsman.migrations.adoption.census import Columns
from pointsman.migrations.adoption.witness import Witness

__all__ = ["COLUMNS", "Keys", "Kind", "Opened", "SecretColumn", "Value", "looks_encrypted", "open_values", "stored_values"]

MARK = "litellm_enc::"
GCM = "v2:gcm:"
_BASE64 = re.compile(r"[A-Za-z0-9_+/-]{54,}={0,2}")
_LEAST = 40  # bytes of nonce and authenticator of an empty text
_BATCH = 2000


class Kind(Enum):
    """Where in a column ciphertext stands."""

    ANYWHERE = "any string in the JSON"
    MARKED = "strings with LiteLLM's mark"
    WHOLE = "the JSON itself, when it is a string; an object is plain"
    TEXT = "the text"


@dataclass(frozen=True, slots=True)
class SecretColumn:
    """One column. `key` names the row in messages."""

    table: str
    key: str
    column: str
    kind: Kind = Kind.ANYWHERE


# A test holds this against LiteLLM's own list, which its change of master key goes by.
COLUMNS = (
    SecretColumn("LiteLLM_ProxyModelTable", "model_id", "litellm_params"),
    SecretColumn("LiteLLM_CredentialsTable", "credential_id", "credential_values"),
    SecretColumn("LiteLLM_Config", "param_name", "param_value"),
    SecretColumn("LiteLLM_SSOConfig", "id", "sso_settings"),
    SecretColumn("LiteLLM_CacheConfig", "id", "cache_settings"),
    SecretColumn("LiteLLM_ConfigOverrides", "config_type", "config_value"),
    SecretColumn("LiteLLM_MCPServerTable", "server_id", "credentials"),
    SecretColumn("LiteLLM_MCPServerTable", "server_id", "env_vars"),
    SecretColumn("LiteLLM_MCPServerTable", "server_id", "static_headers", Kind.WHOLE),
    SecretColumn("LiteLLM_MCPServerTable", "server_id", "env", Kind.WHOLE),
    SecretColumn("LiteLLM_MCPServerOAuthClient", "server_id", "credentials"),
    SecretColumn("LiteLLM_MCPUserCredentials", "id", "credential_b64", Kind.TEXT),
    SecretColumn("LiteLLM_MCPUserEnvVars", "id", "values_b64", Kind.TEXT),
    SecretColumn("LiteLLM_SSOIdentityAssertion", "user_id", "assertion_b64", Kind.TEXT),
    SecretColumn("LiteLLM_SearchToolsTable", "search_tool_id", "litellm_params"),
    SecretColumn("LiteLLM_GuardrailsTable", "guardrail_id", "litellm_params", Kind.MARKED),
    SecretColumn("LiteLLM_TeamTable", "team_id", "metadata", Kind.MARKED),
    SecretColumn("LiteLLM_VerificationToken", "token", "metadata", Kind.MARKED),
    SecretColumn("LiteLLM_UserTable", "user_id", "metadata", Kind.MARKED),
    SecretColumn("LiteLLM_DeletedTeamTable", "id", "metadata", Kind.MARKED),
    SecretColumn("LiteLLM_DeletedVerificationToken", "id", "metadata", Kind.MARKED),
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys an installation has: what LITELLM_SALT_KEY and LITELLM_MASTER_KEY say, None where they are not set."""

    salt: str | None = field(default=None, repr=False)
    master: str | None = field(default=None, repr=False)

    @property
    def effective(self) -> str | None:
        """Name of the one that LiteLLM encrypts with: `salt`, else `master`."""
        return "salt" if self.salt else "master" if self.master else None

    @property
    def named(self) -> list[tuple[str, str]]:
        """(name, key) of those that are set, the effective one first."""
        return [(name, key) for name, key in (("salt", self.salt), ("master", self.master)) if key]


@dataclass(frozen=True, slots=True)
class Value:
    """One stored string. `text` is what is stored, without LiteLLM's mark; never shown."""

    table: str
    row: str
    column: str
    text: str = field(repr=False)
    marked: bool = False

    @property
    def place(self) -> str:
        """Table, column and row for messages; a key's hash is cut."""
        return f"{self.table}.{self.column} of {self.row if len(self.row) <= 40 else self.row[:12] + '...'}"

    @property
    def encrypted(self) -> bool:
        """Whether it must be ciphertext, though no key opens it."""
        return self.marked or looks_encrypted(self.text)


@dataclass(frozen=True, slots=True)
class Opened:
    """What keys did.

    Attributes:
        by: name of the key -> how many it opened.
        unreadable: ciphertext that none opened.
        elsewhere: opened by another key than the effective one.
        plain: strings that are no ciphertext.
    """

    by: dict[str, int]
    unreadable: tuple[Value, ...]
    elsewhere: tuple[Value, ...]
    plain: int

    @property
    def encrypted(self) -> int:
        """All ciphertext found."""
        return sum(self.by.values()) + len(self.unreadable)


def looks_encrypted(text: str) -> bool:
    """Whether a string has the shape of LiteLLM's ciphertext: marked, or base64 of random bytes and long enough."""
    if text.startswith((GCM, MARK)):
        return True
    if not _BASE64.fullmatch(text) or len(text) % 4 or re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", text) or text.startswith("sk-"):
        return False
    try:
        found = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        found.decode("utf-8")
    except binascii.Error:
        return False
    except UnicodeDecodeError:
        return len(found) >= _LEAST
    return False  # plain text in base64, as early versions wrote it; ciphertext is never valid UTF-8 by chance


def stored_values(connection: psycopg.Connection[Any], present: Columns) -> Iterator[Value]:
    """Every string that may be ciphertext.

    Args:
        present: the columns there are; old versions have fewer.
    """
    for one in COLUMNS:
        if (one.table, one.column) not in present or (one.table, one.key) not in present:
            continue
        query = sql.SQL("SELECT {}::text, {}::text FROM {} WHERE {} IS NOT NULL ORDER BY 1").format(
            *map(sql.Identifier, (one.key, one.column, one.table, one.column))
        )
        for row, stored in connection.execute(query).fetchall():
            for text in _strings(one.kind, stored):
                marked = text.startswith(MARK)
                if text and (marked or one.kind is not Kind.MARKED):
                    yield Value(one.table, row, one.column, text.removeprefix(MARK), marked)


def open_values(witness: Witness, values: Iterable[Value], keys: Keys) -> Opened:
    """Let LiteLLM's own function try the keys."""
    everything = list(values)
    by: dict[str, int] = {}
    unreadable: list[Value] = []
    elsewhere: list[Value] = []
    plain = 0
    for start in range(0, len(everything), _BATCH):
        batch = everything[start : start + _BATCH]
        for value, name in zip(batch, witness.open([value.text for value in batch], keys.named), strict=True):
            if name is not None:
                by[name] = by.get(name, 0) + 1
                if name != keys.effective:
                    elsewhere.append(value)
            elif value.encrypted:
                unreadable.append(value)
            else:
                plain += 1
    return Opened(by, tuple(unreadable), tuple(elsewhere), plain)


def _strings(kind: Kind, stored: str) -> Iterator[str]:
    if kind is Kind.TEXT:
        yield stored
        return
    found = json.loads(stored)
    if kind is Kind.WHOLE:
        if isinstance(found, str):
            yield found
        return
    stack = [found]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield from _inner(one, stack)
        elif isinstance(one, dict):
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)


def _inner(text: str, stack: list[Any]) -> Iterator[str]:
    """A string that holds JSON (early versions stored it so) is looked into."""
    if text[:1] in ("{", "["):
        try:
            stack.append(json.loads(text))
        except ValueError:
            yield text
    else:
        yield text
