"""Publishes code: a wheel, and a signed pointer of its own kind to it. As `pointsman.mlops.publish` does with bundles."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pointsman.errors import BundleError, ConfigError, SourceError
from pointsman.mlops.destinations import open_destination
from pointsman.mlops.keys import SigningKey, load_key
from pointsman.settings import S3Settings
from pointsman.strategies.files import sha256_hex
from pointsman.strategies.remote.code import CodePointer, parse_code_pointer, sign_code
from pointsman.strategies.remote.wheel import MAX_WHEEL, open_wheel

__all__ = ["publish_code"]


def publish_code(
    wheel: Path,
    destination: str,
    *,
    strategy: str | None,
    key: SigningKey | Path | None,
    sequence: int | None = None,
    s3: S3Settings | None = None,
) -> CodePointer:
    """Check a wheel, upload it, point to it.

    Args:
        wheel: the file; it passes a gateway's checks, or nothing happens.
        destination: see `pointsman.mlops.publish.publish`.
        strategy: what it is for, as the configuration names it.
        key: signs the pointer; there is no code without a signature.
        sequence: of the pointer, above the present one's; by default one more.
        s3: how to reach the S3 API.

    Raises:
        BundleError: E4330 and others, the wheel (see `open_wheel`); E4304 (sequence), E4305, E4312 (what is there).
        SourceError: E4410 and others; the pointer is then as it was.
        ConfigError: E4204, no key or no name.
    """
    if key is None or strategy is None:
        raise ConfigError(
            "code is published with a signature, for one strategy",
            code="E4204",
            where=str(wheel),
            mend="give `--key` (`pointsman mlops keygen` makes one) and `--strategy`",
        )
    try:
        data = wheel.read_bytes()
    except OSError as error:
        raise ConfigError(f"the wheel cannot be read: {error.strerror}", code="E4203", where=str(wheel)) from error
    checked = open_wheel(wheel, max_bytes=MAX_WHEEL, expect_sha256=sha256_hex(data))
    signer = load_key(key) if isinstance(key, Path) else key
    place = open_destination(destination, s3 or S3Settings())
    with place.locked():
        previous = place.read(place.pointer)
        pointer = sign_code(
            signer.private,
            key_id=signer.key_id,
            strategy=strategy,
            wheel=f"code/{checked.sha256}.whl",
            sha256=checked.sha256,
            size=len(data),
            sequence=_sequence(previous[0] if previous else None, strategy, sequence, destination),
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        new = place.write(pointer.wheel, data)
        try:
            place.replace(pointer.encoded(), previous[1] if previous else None)
        except BaseException:  # whatever it was, also Ctrl-C: nobody points to what was written
            if new:
                place.remove(pointer.wheel)
            raise
        after = place.read(place.pointer)
        if after is None or after[0] != pointer.encoded():
            raise SourceError("the pointer reads back otherwise than it was written", code="E4410", where=destination)
    return pointer


def _sequence(previous: bytes | None, strategy: str, wanted: int | None, destination: str) -> int:
    if previous is None:
        return wanted or 1
    present = parse_code_pointer(previous, destination)
    if present.strategy != strategy:
        raise BundleError(
            f"the pointer there is for the strategy {present.strategy!r}",
            code="E4305",
            where=destination,
            mend="publish to a place of its own",
        )
    if wanted is not None and wanted <= present.sequence:
        raise BundleError(
            f"the sequence number {wanted} does not rise: the pointer there has {present.sequence}",
            code="E4304",
            where=destination,
            mend=f"use {present.sequence + 1} or higher, or none",
        )
    return wanted or present.sequence + 1
