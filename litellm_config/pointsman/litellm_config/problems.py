"""What is wrong with a configuration: one record a problem, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pointsman.errors import ConfigError

__all__ = ["InvalidConfigError", "KeyPath", "Problem", "key_text"]

KeyPath = tuple[str | int, ...]
"""Where a value stands: `("model_list", 2, "litellm_params", "model")`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a configuration.

    Attributes:
        path: the file it stands in (an included one, perhaps).
        line: 1 for the first line, or None when the problem has no line (a missing file, an environment variable).
        key: `model_list[2].litellm_params.model`, a variable's name, or "".
        code: of `pointsman.errors.CATALOGUE`.
        message: what is wrong.
        mend: what to do about it.
        severity: `error` stops the gateway from starting; `warning` does not.
    """

    path: Path
    line: int | None
    key: str
    code: str
    message: str
    mend: str
    severity: Literal["error", "warning"] = "error"

    @property
    def where(self) -> str:
        """`file:line`, or the file alone."""
        return f"{self.path}:{self.line}" if self.line else str(self.path)

    def __str__(self) -> str:
        key = f" {self.key}:" if self.key else ""
        return f"{self.where}: {self.severity} {self.code}:{key} {self.message} -> {self.mend}"


class InvalidConfigError(ConfigError):
    """A configuration that cannot be used; `problems` holds every one found, warnings too."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        errors = [problem for problem in self.problems if problem.severity == "error"]
        first = errors[0]
        if len(errors) == 1:
            key = f"{first.key}: " if first.key else ""
            super().__init__(f"{key}{first.message}", code=first.code, where=first.where, mend=first.mend)
        else:
            summary = "\n".join(f"  {problem}" for problem in self.problems)
            super().__init__(
                f"the configuration has {len(errors)} errors:\n{summary}\n",
                code="E4200",
                where=str(path),
                mend="Mend them all, then run `pointsman check`.",
            )


def key_text(path: KeyPath) -> str:
    """`("a", 0, "b")` -> `a[0].b`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
