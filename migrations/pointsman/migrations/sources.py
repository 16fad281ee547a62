"""The two sets of migrations as files: LiteLLM's (from its package, found without importing it) and ours (`sql/*.sql`)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pointsman.errors import DatabaseError
from pointsman.migrations.statements import without_comments

__all__ = ["Migration", "litellm_migrations", "litellm_version", "our_migrations"]

_PACKAGE = "litellm_proxy_extras"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file.

    Attributes:
        name: folder name (LiteLLM's) or file name without `.sql` (ours); names sort in the order of application.
        path: the file.
        text: its SQL.
        sha256: of its bytes, 64 hexadecimal digits; Prisma's checksum too.
    """

    name: str
    path: Path
    text: str
    sha256: str

    @property
    def concurrent(self) -> bool:
        """Whether it must run outside a transaction (CREATE/DROP INDEX CONCURRENTLY; a word in a comment does not count)."""
        return "CONCURRENTLY" in without_comments(self.text).upper()

    @classmethod
    def read(cls, name: str, path: Path) -> Migration:
        """Read one file. Raises DatabaseError E4501 when it is not readable UTF-8."""
        try:
            data = path.read_bytes()
            # A byte order mark is no SQL; the checksum is over the bytes as they are.
            return cls(name, path, data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest())
        except (OSError, UnicodeDecodeError) as error:
            raise DatabaseError(
                f"a migration cannot be read: {error}", code="E4501", where=str(path), mend="install Pointsman again"
            ) from error


def litellm_migrations(folder: Path | None = None) -> list[Migration]:
    """LiteLLM's, in order.

    Args:
        folder: where the migration folders lie; by default in the installed package. (Its import would pull in all of LiteLLM.)

    Raises:
        DatabaseError: E4501 when the package is not installed.
    """
    if folder is None:
        spec = find_spec(_PACKAGE)
        places = [Path(place) / "migrations" for place in (spec.submodule_search_locations or ())] if spec else []
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise DatabaseError(
                "LiteLLM's migrations are not installed", code="E4501", where=_PACKAGE, mend="run `make setup` again"
            )
    return [Migration.read(path.parent.name, path) for path in sorted(folder.glob("*/migration.sql"))]


def our_migrations(folder: Path | None = None) -> list[Migration]:
    """Ours, in order: `sql/*.sql` of this package or of `folder`."""
    folder = folder or Path(__file__).with_name("sql")
    return [Migration.read(path.stem, path) for path in sorted(folder.glob("*.sql"))]


def litellm_version() -> str:
    """Version of the package that LiteLLM's migrations come from, or `unknown`."""
    try:
        return version(_PACKAGE.replace("_", "-"))
    except PackageNotFoundError:
        return "unknown"
