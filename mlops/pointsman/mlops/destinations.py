"""Where bundles are published to: a directory or an S3 bucket. Single objects appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from pointsman.errors import ConfigError, SourceError
from pointsman.settings import S3Settings
from pointsman.strategies.files import write_atomic
from pointsman.strategies.sources.s3 import make_client, translate

__all__ = ["Destination", "open_destination"]

T = TypeVar("T")
_NOTHING_HALF = "the pointer still says what it said; publish again when that is mended"


class Destination(Protocol):
    """Objects by their key relative to the pointer's directory.

    Raises (from all methods):
        SourceError: E4410, writing failed, or somebody else published meanwhile; reading: E4400, E4401, E4404.
    """

    pointer: str
    """The pointer's key."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other publishers away, where that is possible; see `replace` for where not."""

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Content and tag, or None if there is no such object."""

    def write(self, key: str, data: bytes) -> bool:
        """Write an object that nobody points to yet; whether it is new."""

    def replace(self, data: bytes, tag: str | None) -> None:
        """Write the pointer if its tag is still `tag` (None: if there is none)."""

    def remove(self, key: str) -> None:
        """Take an object back, as well as that can be done."""


def open_destination(destination: str, s3: S3Settings) -> Destination:
    """The destination of an `s3://` or `file://` URL or a path: a pointer's (`*.json`), or a directory for `current.json`.

    Raises:
        ConfigError: E4203.
    """
    scheme, separator, rest = destination.partition("://")
    if not separator:
        return _Directory(Path(_pointer_in(destination)))
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        if bucket:
            return _Bucket(bucket, _pointer_in(key), s3)
    parts = urlsplit(destination)
    if scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return _Directory(Path(_pointer_in(unquote(parts.path))))
    raise ConfigError(
        f"{destination!r} is no destination", code="E4203", mend="use a path, file:///path or s3://bucket/key/current.json"
    )


def _pointer_in(path: str) -> str:
    """The pointer's path: `path` itself, or `current.json` in the directory that it is."""
    if path.endswith(".json"):
        return path
    return f"{path.rstrip('/')}/current.json" if path.strip("/") else f"{path}current.json"


def _failed(what: str, where: str, mend: str | None = None) -> SourceError:
    return SourceError(what, code="E4410", where=where, mend=f"{mend + '; ' if mend else ''}{_NOTHING_HALF}")


class _Directory:
    def __init__(self, path: Path) -> None:
        self.pointer = path.name
        self._root = path.parent

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed(f"the directory cannot be used: {error.strerror or error}", str(self._root)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise _failed("somebody else is publishing there", str(self._root)) from error
        finally:
            os.close(descriptor)

    def read(self, key: str) -> tuple[bytes, str] | None:
        path = self._root / key
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
        return data, "locked"

    def write(self, key: str, data: bytes) -> bool:
        path = self._root / key
        try:
            new = not path.exists()
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, data, mode=0o644)
        except OSError as error:
            raise _failed(
                f"the file cannot be written: {error.strerror or error}", str(path), "check permissions and the space left"
            ) from error
        return new

    def replace(self, data: bytes, tag: str | None) -> None:
        del tag  # the lock keeps other publishers away
        self.write(self.pointer, data)

    def remove(self, key: str) -> None:
        path = self._root / key
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()  # only if it is empty


class _Bucket:
    def __init__(self, bucket: str, key: str, settings: S3Settings) -> None:
        self._bucket = bucket
        directory, slash, self.pointer = key.rpartition("/")
        self._prefix = directory + slash
        self._endpoint = settings.endpoint_url
        self._settings = settings
        self._made: Any = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._made is not None:
                self._made.close()

    def read(self, key: str) -> tuple[bytes, str] | None:
        def work(client: Any, target: dict[str, str]) -> tuple[bytes, str]:
            answer = client.get_object(**target)
            return answer["Body"].read(), answer["ETag"]

        try:
            return self._call(key, work)
        except SourceError as error:
            if error.code == "E4404" and "NoSuchBucket" not in error.message:
                return None
            raise

    def write(self, key: str, data: bytes) -> bool:
        self._put(key, data)
        return False  # taking it back would need a right that publishers should not have; nobody points to it

    def replace(self, data: bytes, tag: str | None) -> None:
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        try:
            self._put(self.pointer, data, **condition)
        except SourceError as error:
            if "NotImplemented" not in error.message:
                raise
            # A store without conditional writes: look again, which leaves a gap of milliseconds.
            present = self.read(self.pointer)
            if (present[1] if present else None) != tag:
                raise _failed("somebody else published meanwhile", self._where(self.pointer)) from error
            self._put(self.pointer, data)

    def remove(self, key: str) -> None:
        del key

    def _put(self, key: str, data: bytes, **condition: str) -> None:
        def work(client: Any, target: dict[str, str]) -> None:
            client.put_object(**target, Body=data, **condition)

        try:
            self._call(key, work)
        except SourceError as error:
            if "PreconditionFailed" in error.message or "ConditionalRequestConflict" in error.message:
                raise _failed("somebody else published meanwhile", self._where(key)) from error
            raise _failed(f"the upload failed: {error.message}", self._where(key), error.mend) from error

    def _where(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _call(self, key: str, work: Callable[[Any, dict[str, str]], T]) -> T:
        try:
            if self._made is None:
                self._made = make_client(self._settings)
            return work(self._made, {"Bucket": self._bucket, "Key": self._prefix + key})
        except Exception as error:  # boto3's errors share no base class; what is not its own is raised again
            raise translate(error, self._where(key), self._endpoint) or error from error
