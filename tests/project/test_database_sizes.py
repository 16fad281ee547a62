"""The table of connections in docs/database.md: its numbers follow from the code, so they cannot grow old."""

from __future__ import annotations

import re

from pointsman.process.environment import DEFAULT_POOL_LIMIT, most_connections, pooled_url
from support.marks import ROOT

URL = "postgresql://u@h/d"
INSTANCES = (1, 2, 5, 10, 20, 50, 100)
WORKERS = 4
LIMIT = 10
"""`connection_limit` of the table's second half: one engine's."""
RESERVED = 13
"""Postgres's own superuser_reserved_connections (3) and ten for people, backups and monitoring."""
DIRECT = 5
"""What an instance may have at DIRECT_URL: two to migrate, then one for upkeep and two to build indexes, as if at once."""


def by_default() -> int:
    """Connections of an instance whose URL says nothing."""
    return most_connections(pooled_url(URL, {}, WORKERS), WORKERS, decisions=True, strategies=True)


def with_limit() -> int:
    """Those of one with a `connection_limit`."""
    url = pooled_url(f"{URL}?connection_limit={LIMIT}", {}, WORKERS)
    return most_connections(url, WORKERS, decisions=True, strategies=True)


def pool_size(instances: int) -> int:
    """pgbouncer's default_pool_size: one a worker would be ample, and never fewer than its own default."""
    return max(20, instances)


def table() -> list[str]:
    """Rows as they stand in the page."""
    rows = []
    for instances in INSTANCES:
        straight = [2 * instances * each + RESERVED for each in (by_default(), with_limit())]
        bouncer = pool_size(instances)
        server = bouncer + instances * DIRECT + RESERVED
        rows.append(f"| {instances} | {straight[0]} | {straight[1]} | {bouncer} | {2 * instances * with_limit()} | {server} |")
    return rows


def test_the_table_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "database.md").read_text(encoding="utf-8")
    section = page.partition("\n## Sizes and pools\n")[2].partition("\n## ")[0]
    found = [line for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    assert found == table(), "write these rows:\n" + "\n".join(table())
    assert f"{by_default()} by default" in section
    assert f"{with_limit()} with `connection_limit={LIMIT}`" in section


def test_what_the_numbers_are_made_of() -> None:
    assert by_default() == WORKERS * DEFAULT_POOL_LIMIT + (WORKERS + 2) + 2 + 2
    assert with_limit() == LIMIT + (WORKERS + 2) + 2 + 2
