"""What an adoption did and found, for people (lines as it goes) and for programs (`as_json`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Outcome", "Report", "Step"]


class Outcome(Enum):
    """How it ended; the value is the exit status of `pointsman db adopt`."""

    ADOPTED = 0
    REFUSED = 1
    MIGRATION_FAILED = 3
    NOT_PROVED = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One thing looked at or done.

    Attributes:
        name: `check`, `key`, `backup`, `migrate` or `prove`.
        state: `ok`, `note` (look at it), `skipped` or `failed`.
        text: one sentence; never a secret.
    """

    name: str
    state: str
    text: str


@dataclass(slots=True)
class Report:
    """The record of one adoption.

    Attributes:
        database: host, port and name.
        dry_run: whether it was only to check.
        say: gets each step as a line.
        steps: in order.
        outcome: how it ended.
        facts: figures for programs: versions, rows, keys, backup.
    """

    database: str
    dry_run: bool
    say: Callable[[str], None]
    steps: list[Step] = field(default_factory=list)
    outcome: Outcome = Outcome.ADOPTED
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, text: str, state: str = "ok") -> None:
        """Note a step and say it."""
        self.steps.append(Step(name, state, text))
        self.say(f"{state:<7} {name:<8} {text}")

    def found(self, state: str) -> list[str]:
        """The texts of the steps in a state."""
        return [step.text for step in self.steps if step.state == state]

    def end(self, outcome: Outcome, text: str, name: str) -> Report:
        """Close with a failure."""
        self.add(name, text, "failed")
        self.outcome = outcome
        return self

    def as_json(self) -> dict[str, Any]:
        """All of it, without `say`."""
        return {
            "database": self.database,
            "dry_run": self.dry_run,
            "outcome": self.outcome.name.lower(),
            "exit_status": self.outcome.value,
            "steps": [{"name": step.name, "state": step.state, "text": step.text} for step in self.steps],
            **self.facts,
        }
