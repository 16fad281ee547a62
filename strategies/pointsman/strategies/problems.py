"""What is wrong with one strategy now, logged when it begins, changes and ends, and not at every poll in between."""

from __future__ import annotations

import logging
from collections import OrderedDict

from pointsman.errors import PointsmanError

__all__ = ["AREAS", "Problems"]

logger = logging.getLogger("pointsman.strategies")

AREAS = ("poll", "disk", "state", "copy", "publish", "pointer", "bundle", "source", "rollout", "blocked")
"""What can be wrong at the same time; the first of them is told first."""

REMEMBERED = 256
"""Refused objects that are told apart; beyond that an old one would be counted again."""


class Problems:
    """One strategy's; `rejected` counts distinct objects that were refused."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._now: dict[str, PointsmanError] = {}
        self._refused: OrderedDict[str, None] = OrderedDict()
        self.rejected = 0

    @property
    def worst(self) -> PointsmanError | None:
        """The one to tell."""
        return next((self._now[area] for area in AREAS if area in self._now), None)

    def note(self, area: str, error: PointsmanError) -> None:
        """Something is wrong."""
        before = self._now.get(area)
        if before is None or str(before) != str(error):
            logger.log(logging.WARNING if area in ("source", "blocked") else logging.ERROR, "%s: %s", self._name, error)
        self._now[area] = error

    def reject(self, area: str, error: PointsmanError, key: str) -> None:
        """An object was refused; `key` names it."""
        if key not in self._refused:
            self.rejected += 1
        self._refused[key] = None
        self._refused.move_to_end(key)
        if len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)
        self.note(area, error)

    def clear(self, area: str) -> None:
        """It is well again."""
        if self._now.pop(area, None) is not None:
            logger.info("%s: %s is well again", self._name, area)
