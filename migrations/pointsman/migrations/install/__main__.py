"""``python -m pointsman.migrations.install``: do the set-up step, or tell what is missing (``--check``)."""

from __future__ import annotations

import argparse
import sys

from pointsman.errors import PointsmanError
from pointsman.migrations.install import ensure_installed, problems

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the step; exit codes 0 done or fine, 1 failed or something missing, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m pointsman.migrations.install", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; print what is missing")
    types = parser.add_mutually_exclusive_group()
    types.add_argument("--full-types", action="store_true", help="keep the generated types as Prisma made them (slower start)")
    types.add_argument("--slim-types", action="store_true", help="replace them by the stand-in (the default at first)")
    options = parser.parse_args(arguments)
    if options.check:
        found = problems()
        for problem in found:
            print(problem)
        return 1 if found else 0
    try:
        ensure_installed(
            lambda line: print(line, flush=True),
            types_stand_in=False if options.full_types else True if options.slim_types else None,
        )
    except PointsmanError as error:
        print(error, file=sys.stderr)
        return 1
    print("set-up complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
