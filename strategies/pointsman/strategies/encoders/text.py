"""What every encoder does to a text before it tokenises it: cut it short and make it encodable."""

from __future__ import annotations

__all__ = ["clean", "ends", "head"]


def clean(text: str) -> str:
    """The text with lone surrogates, which have no UTF-8, turned into question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def head(text: str, characters: int) -> str:
    """The first `characters` of a text, cleaned."""
    return clean(text[:characters])


def ends(text: str, first: int, last: int) -> str:
    """The first and the last characters of a text that is longer than both together, with a space between, cleaned."""
    if len(text) > first + last:
        text = text[:first] + " " + text[-last:]
    return clean(text)
