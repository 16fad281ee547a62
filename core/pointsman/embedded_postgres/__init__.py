"""The embedded PostgreSQL of `pointsman up`.

`EmbeddedPostgres` (server.py) ties together who owns the data directory (lock.py), as whom the binaries run (identity.py), the
files (cluster.py) and the process (postmaster.py). `running_url` finds the way to one that runs already.
"""

from pointsman.embedded_postgres.running import running_url
from pointsman.embedded_postgres.server import DATABASE, EmbeddedPostgres

__all__ = ["DATABASE", "EmbeddedPostgres", "running_url"]
