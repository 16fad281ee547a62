"""The master key and the salt key of a gateway run by `up`: made once, kept beside its data, readable by the owner only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pointsman.errors import ProcessError

__all__ = ["Secrets", "load_or_create"]


@dataclass(frozen=True, slots=True)
class Secrets:
    """Attributes: the keys, and where the master key lies (None: in the environment)."""

    master_key: str
    salt_key: str
    master_key_path: Path | None

    def environment(self) -> dict[str, str]:
        """The keys under the names that LiteLLM reads."""
        return {"LITELLM_MASTER_KEY": self.master_key, "LITELLM_SALT_KEY": self.salt_key}


def load_or_create(data_dir: Path, env: Mapping[str, str]) -> Secrets:
    """Take the keys from the environment, else from `<data-dir>/{master,salt}_key`, made (0600) where missing.

    The salt key encrypts provider credentials in the database: with another one they cannot be read any more.

    Raises:
        ProcessError: E4602, the files cannot be read or written.
    """
    master = env.get("LITELLM_MASTER_KEY")
    path = data_dir / "master_key"
    return Secrets(
        master_key=master or _file(path, "sk-"),
        salt_key=env.get("LITELLM_SALT_KEY") or _file(data_dir / "salt_key", "sk-salt-"),
        master_key_path=None if master else path,
    )


def _file(path: Path, prefix: str) -> str:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            value = path.read_text("utf-8").strip()
            if value:
                return value
            path.unlink()  # a crash between creating and writing it left nothing worth keeping
            return _file(path, prefix)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            value = prefix + secrets.token_urlsafe(32)
            stream.write(value + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ProcessError(
            f"cannot use the key file: {error.strerror}",
            code="E4602",
            where=str(path),
            mend="choose a directory that you may write to with --data-dir",
        ) from error
    return value
