"""Texts of log records: how much of one is kept, how it is redacted, and how it is shown to people.

A prompt may be megabytes long, ten thousand records may wait, and the redactor's expressions are not to see megabytes. So a
text is cut where its record is made. A secret that a cut goes through would not be known for one: so more than what is told is
kept at each cut, `MARGIN` characters, which go after redaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pointsman.callbacks.privacy import Redactor

__all__ = ["LONG", "MARGIN", "MAX_TEXT", "clean", "clean_value", "escaped", "shortened", "weight"]

MAX_TEXT = 16_384
"""Characters of one text in a line."""
MARGIN = 4_096
"""Characters at each side of a cut that are kept for the redactor and not told; most secrets are shorter."""
_KEPT = MAX_TEXT // 2 + MARGIN
LONG = 2 * _KEPT
"""Characters from which on a text is cut where its record is made."""
_CUT = "\ufdd0…\ufdd0"  # characters that Unicode keeps for such marks
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def shortened(text: str) -> str:
    """The text, or its beginning and end where it is longer than what may wait; `clean` mends the cut."""
    return text if len(text) <= LONG else f"{text[:_KEPT]}{_CUT}{text[-_KEPT:]}"


def clean(text: str, redactor: Redactor) -> str:
    """Redacted, and at most little more than `MAX_TEXT` characters of it, its beginning and its end."""
    head, cut, tail = shortened(text).partition(_CUT)
    if not cut:
        text = redactor.text(head)
        return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]} … {text[-MAX_TEXT // 2 :]}"
    return f"{redactor.text(head)[:-MARGIN]} … {redactor.text(tail)[MARGIN:]}"


def clean_value(value: Any, redactor: Redactor) -> Any:
    """A JSON value, every text in it (names of mappings too) as `clean` leaves it."""
    if isinstance(value, str):
        return clean(value, redactor)
    if isinstance(value, Mapping):
        return {clean(str(key), redactor): clean_value(item, redactor) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_value(item, redactor) for item in value]
    return value


def weight(fields: Mapping[str, Any]) -> int:
    """About how many characters a record's fields hold; what is no text counts little."""
    total = 256
    for value in fields.values():
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, Mapping | list | tuple):
            total += 32 * len(value)
    return total


def escaped(text: str) -> str:
    """For a terminal: no control characters, line feeds neither, none that turn the direction of writing."""
    return text if text.isprintable() else _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
