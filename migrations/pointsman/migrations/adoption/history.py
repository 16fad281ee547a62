"""What a database's migration ledger says about where it comes from.

LiteLLM's history is not a plain prefix: files were added with an earlier date than others already released, nearly all of the
old ones were rewritten once (`IF NOT EXISTS`), a few were withdrawn, and LiteLLM itself makes two kinds of entries at run time
for a database that was begun without migrations. All of that is in real databases and is understood; what is not is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psycopg

from pointsman.migrations.ledger import PrismaLedger
from pointsman.migrations.plan import compare
from pointsman.migrations.sources import Migration

__all__ = ["WITHDRAWN", "History", "read_history"]

WITHDRAWN = frozenset(
    {
        "20251101123718_add_vector_store_index_table",  # litellm-proxy-extras 0.3.0
        "20251115120021_baseline_diff",  # 0.4.10 to 0.4.20
        "20251115120539_baseline_diff",
        "20260214124140_baseline_diff",  # 0.4.45
        "20260311180521_schema_sync",  # 0.4.55 to 0.4.60
    }
)
"""Released by LiteLLM once, and no longer among its files."""

# LiteLLM's names for "this is how the schema was when I met it" and "this is what it lacked then".
_GENERATED = re.compile(r"0_init|\d{14}_baseline_diff")
_DATE = re.compile(r"\d{8,14}")


@dataclass(frozen=True, slots=True)
class History:
    """A ledger, sorted.

    Attributes:
        present: whether there is a ledger at all.
        applied, pending: names of this version's files, in order.
        late: pending ones that are older than an applied one; LiteLLM released them later.
        rewritten: applied with other bytes than this version's file has.
        withdrawn: applied, and known to have been LiteLLM's.
        newer: applied, unknown, and dated after this version's last: a newer LiteLLM was here.
        foreign: applied and unknown otherwise.
        failed: name -> log of those that another tool began and did not finish.
    """

    present: bool
    applied: tuple[str, ...]
    pending: tuple[str, ...]
    late: tuple[str, ...]
    rewritten: tuple[str, ...]
    withdrawn: tuple[str, ...]
    newer: tuple[str, ...]
    foreign: tuple[str, ...]
    failed: dict[str, str]


def read_history(
    connection: psycopg.Connection[Any], files: list[Migration], accepted: frozenset[str] = frozenset()
) -> History:
    """Read LiteLLM's ledger of the connection's schema and judge it.

    Args:
        files: this version's migrations of LiteLLM.
        accepted: further names that the operator vouches for.
    """
    ledger = PrismaLedger.read(connection)
    status = compare(files, ledger)
    last_applied = status.applied[-1] if status.applied else ""
    last_file = files[-1].name if files else ""
    known = {name for name in status.unknown if name in WITHDRAWN | accepted or _GENERATED.fullmatch(name)}
    unknown = [name for name in status.unknown if name not in known]
    newer = tuple(name for name in unknown if _DATE.match(name) and name > last_file)
    resumable = {m.name for m in files if ledger.complete.get(m.name) == m.sha256}
    return History(
        ledger.exists,
        status.applied,
        status.pending,
        tuple(name for name in status.pending if name < last_applied),
        status.changed,
        tuple(sorted(known)),
        newer,
        tuple(name for name in unknown if name not in newer),
        {name: log for name, log in status.failed.items() if name not in resumable},
    )
