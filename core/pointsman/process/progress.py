"""What a person sees while the gateway starts: a line a step, with its time; a failing step says which, why and what to do."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Writes to `stream` (standard error by default); `quiet` writes nothing. With `logger` set, lines are its records."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self.logger: logging.Logger | None = None

    def say(self, text: str) -> None:
        """One line."""
        if self.logger is not None:
            self.logger.info("%s", text.strip())
        elif not self._quiet:
            print(text, file=self._stream, flush=True)

    def detail(self, text: str) -> None:
        """A line below the step that is running."""
        self.say(f"    {text}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step and print it when it is over; on an error the step is named, the error itself is the caller's."""
        started = time.monotonic()
        try:
            yield
        except Exception:
            self.say(f"  ✗ {name}")
            raise
        except BaseException:  # Ctrl-C: nothing failed
            self.say(f"  - {name}: interrupted")
            raise
        self.say(f"  ✓ {name} ({time.monotonic() - started:.1f} s)")
