"""A consistent backup of a database with a manifest beside it, and its restore into an empty one.

PostgreSQL's own programs do it (tools.py); what is ours is that the manifest tells what is in the file, counted in the very
snapshot that was dumped (dump.py), and that a restore is all or nothing and checked against it (restore.py).
"""

from pointsman.migrations.backup.dump import Backup, Manifest, backup, manifest_path, read_manifest
from pointsman.migrations.backup.restore import Restored, restore

__all__ = ["Backup", "Manifest", "Restored", "backup", "manifest_path", "read_manifest", "restore"]
