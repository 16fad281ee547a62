"""A strategy for Pointsman in thirty lines: short prompts go to the first model, long ones to the last.

The entry point in pyproject.toml names `make`; the configuration's `options` are its keywords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LengthStrategy", "make"]


@dataclass(frozen=True)
class LengthStrategy:
    """Scores by the number of words alone."""

    models: tuple[str, ...]
    words: int
    scale: str = "rank"
    version: str = "1.0.0"

    def score(self, texts: Sequence[str], users: Sequence[str | None]) -> Mapping[str, list[float]]:
        """Model -> a score for each text; higher is better."""
        size = [min(1.0, len(text.split()) / self.words) for text in texts]
        last = max(1, len(self.models) - 1)
        return {model: [-abs(index / last - each) for each in size] for index, model in enumerate(self.models)}


def make(models: Sequence[str], words: int = 100) -> LengthStrategy:
    """The factory. `models`: weakest first; `words`: from here on a prompt is long."""
    if len(models) < 2 or words < 1:
        raise ValueError("give two or more models, and a number of words above zero")
    return LengthStrategy(tuple(models), words)
