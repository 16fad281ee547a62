"""Publishes a bundle: the bundle first, then the pointer to it, which is the one step that counts.

Beside the pointer `current.json` stand `bundles/<sha256>.zip` and `bundles/<sha256>.json`, a copy of the signed pointer with
which an instance can take up a bundle that the desired state names and the pointer no longer does. Readers never meet a half:
objects are written whole, the pointer last, and only if nobody else published meanwhile.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pointsman.errors import BundleError, SourceError
from pointsman.mlops.destinations import Destination, open_destination
from pointsman.mlops.keys import SigningKey, load_key
from pointsman.settings import S3Settings
from pointsman.strategies.bundle import DEFAULT_MAX_BYTES, Bundle, load_bundle, parse_bundle
from pointsman.strategies.pointer import Pointer, parse_pointer, sign

__all__ = ["publish"]


def publish(
    bundle: Path,
    destination: str,
    *,
    key: SigningKey | Path | None = None,
    sequence: int | None = None,
    s3: S3Settings | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Pointer:
    """Verify a bundle, upload it, point to it, and read back what was written.

    Args:
        bundle: the file; it passes every check of a loader, its self-test included, or nothing happens.
        destination: `s3://bucket/key/current.json`, a `file://` URL or a path; without `.json` a directory.
        key: signs the pointer; gateways require that by default.
        sequence: of the pointer, above the present one's; by default one more.
        s3: how to reach the S3 API.
        max_bytes: size limit; gateways have one too.

    Raises:
        BundleError: the bundle is bad (see `load_bundle`); E4304 (sequence), E4305 (another strategy's pointer is there),
            E4312 (what is there is no pointer).
        SourceError: E4410, writing failed; E4400, E4401, E4404, reading failed. The pointer is then as it was.
        ConfigError: E4203, E4204, the key or the destination.
    """
    checked = load_bundle(bundle, max_bytes=max_bytes)
    signer = load_key(key) if isinstance(key, Path) else key
    place = open_destination(destination, s3 or S3Settings())
    with place.locked():
        previous = place.read(place.pointer)
        number = _sequence(previous[0] if previous else None, checked, sequence, destination)
        pointer = _pointer(checked, number, signer)
        name, copy = pointer.bundle, f"bundles/{checked.sha256}.json"
        written: list[str] = []
        try:
            for item, data in ((name, bundle.read_bytes()), (copy, pointer.encoded())):
                if place.write(item, data):
                    written.append(item)
            _read_back(place, pointer, checked, max_bytes)
            place.replace(pointer.encoded(), previous[1] if previous else None)
        except BaseException:  # whatever it was, also Ctrl-C: nobody points to what was written
            for item in reversed(written):
                place.remove(item)
            raise
        after = place.read(place.pointer)
        if after is None or after[0] != pointer.encoded():
            raise SourceError(
                "the pointer reads back otherwise than it was written: somebody else wrote to it",
                code="E4410",
                where=destination,
                mend="look at it, then publish again",
            )
    return pointer


def _sequence(previous: bytes | None, bundle: Bundle, wanted: int | None, destination: str) -> int:
    """The number to publish under."""
    if previous is None:
        return wanted or 1
    try:
        present = parse_pointer(previous, destination)
    except BundleError as error:
        if wanted is not None:  # the operator knows better
            return wanted
        mend = "remove it, or give a sequence number above the last one that gateways accepted"
        raise BundleError(
            f"what is there is no pointer: {error.message}", code="E4312", where=destination, mend=mend
        ) from error
    if present.strategy != bundle.name:
        raise BundleError(
            f"the pointer there is for the strategy {present.strategy!r}, the bundle for {bundle.name!r}",
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


def _pointer(bundle: Bundle, sequence: int, signer: SigningKey | None) -> Pointer:
    pointer = Pointer(
        strategy=bundle.name,
        bundle=f"bundles/{bundle.sha256}.zip",
        sha256=bundle.sha256,
        size=bundle.size,
        manifest_sha256=bundle.manifest_sha256,
        sequence=sequence,
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return sign(pointer, signer.private, signer.key_id) if signer else pointer


def _read_back(place: Destination, pointer: Pointer, bundle: Bundle, max_bytes: int) -> None:
    """What a gateway will get is what was meant."""
    found = place.read(pointer.bundle)
    if found is None:
        raise SourceError("the bundle is not there after it was written", code="E4410", where=pointer.bundle)
    parse_bundle(found[0], where=pointer.bundle, max_bytes=max_bytes, expect_sha256=bundle.sha256, expect_name=bundle.name)
