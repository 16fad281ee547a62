"""A gateway's owner process, reduced to its database: starts it, says where, writes rows, waits to be killed.

Run as `python owner.py DATA_DIR [UID]`. With a user id it becomes that user after the imports (whose files that user may not
read), and ends after one row. Writes one JSON line `{"url", "pid", "owner", "way"}`, then one line for each committed row.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from pointsman.embedded_postgres import EmbeddedPostgres
from pointsman.errors import PointsmanError


async def main(data_dir: Path) -> int:
    database = EmbeddedPostgres(data_dir, address="http://127.0.0.1:4000")
    try:
        url = await database.start()
    except PointsmanError as error:
        print(json.dumps({"error": str(error), "code": error.code}), flush=True)
        return 1
    status = database.status()
    print(json.dumps({"url": url, "pid": status["pid"], "owner": os.getpid(), "way": status["way"]}), flush=True)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS committed (n bigserial PRIMARY KEY, at float)")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            cursor = await connection.execute("INSERT INTO committed (at) VALUES (%s) RETURNING n", (time.time(),))
            row = await cursor.fetchone()
            print(row[0] if row else "?", flush=True)
            if len(sys.argv) > 2:
                break
            await asyncio.sleep(0.005)
    await database.stop()
    return 0


async def load_everything() -> None:
    """Go the whole way once: Python loads modules as they are first used, from directories closed to the other user."""
    with tempfile.TemporaryDirectory() as place:
        database = EmbeddedPostgres(Path(place) / "data")
        async with await psycopg.AsyncConnection.connect(await database.start()) as connection:
            await connection.execute("SELECT 1")
        await database.stop()


if __name__ == "__main__":
    if len(sys.argv) > 2 and int(sys.argv[2]) != os.geteuid():
        asyncio.run(load_everything())
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
