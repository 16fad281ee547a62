"""Code from a source: a pointer of its own kind to a signed wheel, polled for, verified, kept on disk.

Its pointer is no bundle's pointer: another format and another domain of the signature, so that neither can stand for the other.
The signature is required, whatever `require_signature` says. A wheel is run by a process of its own and by nothing else; one
that does not load there is refused, and the one before serves again.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pointsman.errors import BundleError, PointsmanError, ProcessError
from pointsman.settings import StrategySettings
from pointsman.strategies.files import canonical_json, sha256_hex, strict_json, write_atomic
from pointsman.strategies.manifest import Name, Sha256
from pointsman.strategies.plugins import GROUP
from pointsman.strategies.pointer import safe_key, verify_bytes
from pointsman.strategies.remote.wheel import MAX_WHEEL, Wheel, open_wheel, unpack_wheel
from pointsman.strategies.sources import Source, open_source
from pointsman.strategies.sources.receive import receive, receive_pointer
from pointsman.strategies.threads import in_thread

__all__ = ["CodePointer", "CodeSource", "parse_code_pointer", "sign_code"]

logger = logging.getLogger("pointsman.code")

DOMAIN = b"pointsman code v1\n"
"""Stands before what is signed; a bundle's pointer is signed with another."""

START_WAIT = 5.0
"""Seconds that a start waits for the source; it is looked at further beside it."""

KEPT = 2
"""Wheels on disk: the one in service and the one before."""


def _wheel_key(value: str) -> str:
    if not value.endswith(".whl"):
        raise ValueError("code comes as a wheel, *.whl")
    return safe_key(value)


class CodePointer(BaseModel):
    """Which wheel is proposed: as `pointsman.strategies.pointer.Pointer`, but for code, and always signed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["pointsman/code/1"] = "pointsman/code/1"
    strategy: Name
    wheel: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_wheel_key)]
    sha256: Sha256
    size: Annotated[int, Field(gt=0, le=MAX_WHEEL)]
    sequence: Annotated[int, Field(ge=1, lt=2**53)]
    published_at: Annotated[str, Field(max_length=40)]
    key_id: Annotated[str, Field(min_length=1, max_length=128)]
    signature: Annotated[str, Field(max_length=128)]

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return DOMAIN + canonical_json(self.model_dump(exclude={"signature"}))

    def encoded(self) -> bytes:
        """The file's content."""
        return canonical_json(self.model_dump()) + b"\n"


def sign_code(key: Ed25519PrivateKey, **fields: Any) -> CodePointer:
    """A pointer with its signature; `fields` are its other ones."""
    bare = CodePointer(**fields, signature="")
    return bare.model_copy(update={"signature": base64.b64encode(key.sign(bare.signed_bytes())).decode()})


def parse_code_pointer(data: bytes, where: str) -> CodePointer:
    """Parse and validate.

    Raises:
        BundleError: E4312.
    """
    mend = "a pointer to code is written by `pointsman mlops publish WHEEL`"
    try:
        return CodePointer.model_validate(strict_json(data))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise BundleError(f"{key}: {first['msg']}", code="E4312", where=where, mend=mend) from error
    except ValueError as error:
        raise BundleError(f"the pointer is not JSON: {error}", code="E4312", where=where, mend=mend) from error


class _State(BaseModel):
    """What outlives a restart: the pointers in service and before it, newest first; the newest that was verified."""

    model_config = ConfigDict(frozen=True)

    good: tuple[CodePointer, ...] = ()
    sequence: int = 0
    digest: str = ""


class CodeSource:
    """One strategy's code. Everything but `run` is told by attributes; see the module.

    Args:
        name: of the strategy.
        settings: its settings.
        directory: where wheels are kept; nobody else's.
        scratch: the process's directory, where a wheel is unpacked.
        changed: another wheel is to be run.

    Attributes:
        current: of the wheel to run, or None.
    """

    def __init__(
        self, name: str, settings: StrategySettings, directory: Path, scratch: Path, changed: Callable[[], object]
    ) -> None:
        assert settings.source is not None  # noqa: S101 - narrows the type; the configuration's check saw to it
        self._name, self._settings, self._directory, self._scratch = name, settings, directory, scratch
        self._source: Source = open_source(settings.source, settings.s3)
        self._changed = changed
        self._state = _State()
        self._tag: str | None = None
        self._refused: dict[str, BundleError] = {}
        self._proposed = ""
        self._polling = asyncio.Lock()
        self._first: asyncio.Task[None] | None = None
        self.current: CodePointer | None = None
        self.version: str | None = None
        self.last_check: float | None = None
        self.error: PointsmanError | None = None
        self.counters = dict.fromkeys(("polls", "swaps", "rejected", "failures"), 0)

    @property
    def sequence(self) -> int:
        """Of the newest pointer that was verified."""
        return self._state.sequence

    async def start(self) -> None:
        """Take up what is on disk, by the keys that are trusted today; then look at the source once, and wait `START_WAIT`
        seconds for it at most. Never raises because something is away or bad."""
        try:
            await in_thread(self._restore)
        except OSError as error:
            self._note("failures", ProcessError(str(error), code="E4602", where=str(self._directory)))
        self.current = next(iter(self._state.good), None)
        self._first = asyncio.create_task(self.poll(), name=f"first-poll-{self._name}")
        await asyncio.wait({self._first}, timeout=START_WAIT)

    async def run(self) -> None:
        """Poll for ever; without `hot_reload`, until there is something to run."""
        try:
            if self._first is not None:
                await self._first
            while self._settings.hot_reload or self.current is None:
                await asyncio.sleep(self._settings.reload_interval)
                await self.poll()
        finally:
            if self._first is not None:
                self._first.cancel()

    async def poll(self) -> None:
        """Look once; what goes wrong is kept in `error`, and the wheel in service stays."""
        async with self._polling:
            self.counters["polls"] += 1
            self.last_check = time.time()
            try:
                found = await in_thread(self._fetch)
            except BundleError as error:
                self._note("rejected", error)
                return
            except (PointsmanError, OSError) as error:
                self._note("failures", error if isinstance(error, PointsmanError) else ProcessError(str(error), code="E4602"))
                return
            except Exception as error:  # a mistake of ours must not end the polling
                logger.exception("%s: looking for its code failed", self._name)
                self._note("failures", ProcessError(f"the poll failed: {error!r}", mend="see the log; please report it"))
                return
            self.error = self._refused.get(self._proposed)
            if found is not None:
                self.current = found
                self.counters["swaps"] += 1
                logger.info("%s: code %s is to be run", self._name, found.wheel)
                self._changed()

    def _note(self, counter: str, error: PointsmanError) -> None:
        if str(error) != str(self.error):
            logger.error("%s: %s", self._name, error)
            self.counters[counter] += 1
        self.error = error

    def _fetch(self) -> CodePointer | None:
        opened = self._source.open(None, self._tag)
        if opened is None:
            return None
        with opened:
            pointer = parse_code_pointer(receive_pointer(opened), opened.where)
            self._verify(pointer, opened.where)
            digest = sha256_hex(pointer.signed_bytes())
            if pointer.sequence < self._state.sequence or (
                pointer.sequence == self._state.sequence and digest != self._state.digest
            ):
                message = f"the pointer's sequence number is {pointer.sequence}; {self._state.sequence} was accepted already"
                raise BundleError(message, code="E4304", where=opened.where, mend="publish again")
            tag = opened.tag
        present = self.current is not None and self.current.sha256 == pointer.sha256
        wanted = not present and pointer.sha256 not in self._refused
        if wanted:
            self._obtain(pointer)
        self._save(self._state.model_copy(update={"sequence": pointer.sequence, "digest": digest}))
        self._tag, self._proposed = tag, pointer.sha256
        return pointer if wanted else None

    def _obtain(self, pointer: CodePointer) -> None:
        if self._wheel(pointer).is_file():
            return
        opened = self._source.open(pointer.wheel)
        assert opened is not None  # noqa: S101 - narrows the type; without a known tag something always comes
        incoming = self._directory / f".{pointer.sha256}.tmp"
        with opened:
            try:  # a rest of an interrupted download is replaced, for `receive` writes whole files
                limit = min(self._settings.max_bytes, MAX_WHEEL)
                receive(opened, incoming, max_bytes=limit, sha256=pointer.sha256, size=pointer.size)
                open_wheel(incoming, max_bytes=limit, expect_sha256=pointer.sha256, where=opened.where)
                incoming.replace(self._wheel(pointer))
            except BundleError as error:
                if error.code != "E4302":  # it may be on its way; whatever else is wrong with a digest's bytes stays wrong
                    self._refused[pointer.sha256] = error
                raise
            finally:
                incoming.unlink(missing_ok=True)

    def _verify(self, pointer: CodePointer, where: str) -> None:
        trusted = self._settings.trusted_keys
        verify_bytes(pointer.signed_bytes(), pointer.key_id, pointer.signature, trusted, required=True, where=where)
        if pointer.strategy != self._name:
            raise BundleError(
                f"the pointer is for the strategy {pointer.strategy!r}, not {self._name!r}", code="E4305", where=where
            )

    def _wheel(self, pointer: CodePointer) -> Path:
        return self._directory / f"{pointer.sha256}.whl"

    def _restore(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            state = _State.model_validate(strict_json((self._directory / "state.json").read_bytes()))
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            logger.error("%s: what was kept of its code is damaged: %s", self._name, error)
            return
        good = []
        for pointer in state.good:
            try:
                self._verify(pointer, str(self._wheel(pointer)))
                open_wheel(self._wheel(pointer), max_bytes=MAX_WHEEL, expect_sha256=pointer.sha256)
                good.append(pointer)
            except BundleError as error:
                logger.error("%s: a kept wheel is not used: %s", self._name, error)
        self._state = state.model_copy(update={"good": tuple(good)})

    def _save(self, state: _State) -> None:
        if state != self._state:
            write_atomic(self._directory / "state.json", canonical_json(state.model_dump()))
            self._state = state

    async def spec(self) -> Mapping[str, Any]:
        """What the process is told to load.

        Raises:
            BundleError: there is no wheel, or it is not what it was.
        """
        pointer = self.current
        if pointer is None:
            raise self.error or BundleError("there is no code yet", code="E4404", where=self._settings.source)
        wheel = await in_thread(partial(open_wheel, self._wheel(pointer), max_bytes=MAX_WHEEL, expect_sha256=pointer.sha256))
        directory = await in_thread(partial(unpack_wheel, wheel, self._scratch))
        self.version = wheel.version
        return self._spec(wheel, directory)

    def _spec(self, wheel: Wheel, directory: Path) -> dict[str, Any]:
        return {
            "mode": "code",
            "directory": str(directory),
            "group": GROUP,
            "entry_point": self._settings.entry_point,
            "options": self._settings.options,
            "version": wheel.version,
        }

    def proved(self) -> None:
        """The wheel to run was loaded: it is a good one."""
        pointer = self.current
        if pointer is None or (self._state.good and self._state.good[0].sha256 == pointer.sha256):
            return
        others = tuple(item for item in self._state.good if item.sha256 != pointer.sha256)
        try:
            self._save(self._state.model_copy(update={"good": (pointer, *others)[:KEPT]}))
            keep = {item.sha256 for item in self._state.good}
            for path in self._directory.glob("*.whl"):
                if path.stem not in keep:
                    path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("%s: the state of its code cannot be saved: %s", self._name, error)

    def failed(self, message: str) -> None:
        """The wheel to run was not loaded. If it never was, it is refused, and the one before serves again."""
        pointer, before = self.current, next(iter(self._state.good), None)
        if pointer is None or before is None or before.sha256 == pointer.sha256:
            return
        what = f"{pointer.wheel} cannot be loaded, and the one before serves: {message}"
        refusal = BundleError(what, code="E4330", where=self._settings.source, mend="publish another one")
        self._refused[pointer.sha256], self.current = refusal, before
        self._note("rejected", refusal)
        self._changed()
