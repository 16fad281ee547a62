"""The request-log indexes that LiteLLM leaves to be built after its migrations, beside a serving proxy.

LiteLLM's own function builds them: it knows partitioned tables, interrupted builds and indexes made by hand. It runs in a
process of its own, at low priority, for importing its package loads all of LiteLLM (3 s); and only once for a database and a
version of LiteLLM, which our ledger remembers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Callable

from pointsman.database_url import libpq_url, own_schema, parts_of, redact, schema_of
from pointsman.errors import DatabaseError
from pointsman.migrations.connection import connect
from pointsman.migrations.ledger import OurLedger
from pointsman.migrations.sources import litellm_version

__all__ = ["build_indexes", "build_indexes_task", "ledger_name"]

_SCRIPT = """
import os, sys
from litellm_proxy_extras.request_log_indexes import ensure_request_log_indexes
sys.exit(0 if ensure_request_log_indexes(os.environ["PM_URL"], os.environ["PM_SCHEMA"]) else 3)
"""
_SECONDS = 6 * 3600.0  # a large table may take hours; the build blocks nobody
_OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "WARNING", "LC_ALL": "C.UTF-8", "PATH": os.defpath}


def ledger_name() -> str:
    """The entry of `pointsman_migrations` that says that this version's indexes are in place."""
    return f"request_log_indexes:{litellm_version()}"


def _silent(_: str) -> None:
    """Progress for callers who do not want any."""


def _known(database_url: str) -> bool:
    with connect(database_url, direct=False) as connection:
        return ledger_name() in OurLedger(connection, own_schema(database_url)).read().applied


def _pooled(database_url: str) -> DatabaseError | None:
    """The refusal of a pooler in between: the build holds locks as migrations do."""
    try:
        with connect(database_url):
            return None
    except DatabaseError as error:
        if error.code != "E4508":
            raise
        return error


def _note(database_url: str) -> None:
    with connect(database_url) as connection:
        ledger = OurLedger(connection, own_schema(database_url))
        ledger.create()
        ledger.record(ledger_name(), "-")


async def build_indexes_task(
    database_url: str, progress: Callable[[str], None] = _silent, *, timeout: float = _SECONDS
) -> bool:
    """Build what is missing of the request-log indexes; cancel it to end the build, which the next start takes up again.

    Takes the migration lock for one index at a time, and gives way when another instance builds.

    Args:
        database_url: LiteLLM's DATABASE_URL, already migrated.
        progress: gets one line at a time.
        timeout: seconds after which the build is ended.

    Returns:
        Whether all are in place; False is no harm but slower log queries, and is tried again at the next start.

    Raises:
        DatabaseError: E4500, E4504.
    """
    if await asyncio.to_thread(_known, database_url):
        return True
    if (refusal := await asyncio.to_thread(_pooled, database_url)) is not None:
        progress(f"migrations: the request-log indexes are not built: {refusal}")
        return False
    progress("migrations: building the request-log indexes in the background")
    nice = shutil.which("nice", path=os.defpath)
    process = await asyncio.create_subprocess_exec(
        *([nice, "-n", "10"] if nice else []),
        sys.executable,
        "-c",
        _SCRIPT,
        # The URL by environment: arguments are visible to every user of the machine.
        env={
            **_OFFLINE,
            "PM_URL": str(parts_of(libpq_url(database_url)).having(application_name="pointsman indexes")),
            "PM_SCHEMA": schema_of(database_url),
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout):
            _, output = await process.communicate()
    except TimeoutError:
        progress(f"migrations: the request-log indexes took longer than {timeout:.0f} s")
        return False
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        said = redact(" ".join(output.decode(errors="replace").split())[-400:], database_url)
        progress(f"migrations: the request-log indexes are not all in place yet: {said}")
        return False
    await asyncio.to_thread(_note, database_url)
    progress("migrations: the request-log indexes are in place")
    return True


def build_indexes(database_url: str, progress: Callable[[str], None] = _silent, *, timeout: float = _SECONDS) -> bool:
    """`build_indexes_task` for callers without an event loop; blocks for seconds to hours."""
    return asyncio.run(build_indexes_task(database_url, progress, timeout=timeout))
