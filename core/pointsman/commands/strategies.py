"""`pointsman strategies`: look after strategies and their bundles. Parses and prints; what is done stands in the rooms.

Heavy imports stay inside the commands, so that `pointsman --help` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pointsman.errors import ConfigError
from pointsman.settings import S3Settings, StrategySettings, environment, one_thread
from pointsman.strategies.catalogue import CATALOGUE

if TYPE_CHECKING:
    from pointsman.strategies.obtain import Copy

__all__ = ["keygen", "publish", "strategies"]

PATH = click.Path(path_type=Path)
endpoint_option = click.option("--endpoint-url", help="An S3-compatible store instead of AWS.")
size_option = click.option(
    "--max-bytes",
    type=click.IntRange(1),
    default=StrategySettings.model_fields["max_bytes"].default,
    show_default=True,
    help="Largest bundle in bytes.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
trusted_option = click.option(
    "--trusted-key",
    "trusted",
    multiple=True,
    metavar="ID=BASE64",
    help="A public key, as keygen prints it; with one, only a pointer that such a key signed will do. May be given often.",
)


@click.group()
def strategies() -> None:
    """Look after strategies and their bundles.

    A BUNDLE is a file (.zip), the pointer to one (.json), or either at s3://bucket/key.
    """


@strategies.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Every strategy: how it is served, what it needs, what it learned from."""
    if as_json:
        rows = [{"name": entry.name, **asdict(entry)} for entry in CATALOGUE.values()]
        click.echo(json.dumps(rows, indent=2))
        return
    from pointsman.commands.bundle_text import listing

    click.echo(listing(CATALOGUE.values()))


@strategies.command()
@click.argument("bundle")
@json_option
@size_option
@endpoint_option
def inspect(bundle: str, as_json: bool, max_bytes: int, endpoint_url: str | None) -> None:
    """Show what a bundle says of itself: models, arrays, where it comes from, its evaluation. It is not verified by this."""
    from pointsman.commands.bundle_text import inspection
    from pointsman.strategies.describe import describe

    with _obtained(bundle, max_bytes, endpoint_url) as copy:
        found = describe(copy.path.read_bytes(), copy.where)
    if copy.pointer is not None:
        found["pointer"] = copy.pointer.model_dump(mode="json")
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else inspection(found))


@strategies.command()
@click.argument("bundle")
@trusted_option
@click.option("--name", help="Strategy that it must be for.")
@json_option
@size_option
@endpoint_option
def verify(
    bundle: str, trusted: tuple[str, ...], name: str | None, as_json: bool, max_bytes: int, endpoint_url: str | None
) -> None:
    """Do every check that a gateway does before a bundle serves, its self-test included. Exit status 1 if one fails."""
    from pointsman.strategies.obtain import load

    one_thread()
    with _obtained(bundle, max_bytes, endpoint_url, _keys(trusted), name) as copy:
        loaded = load(copy, name=name, max_bytes=max_bytes)
    signed = "no pointer" if copy.pointer is None else copy.signed_by or "not checked: no --trusted-key"
    found = {
        "name": loaded.name,
        "version": loaded.version,
        "kind": loaded.kind,
        "encoder": loaded.manifest.encoder.kind,
        "sha256": loaded.sha256,
        "size": loaded.size,
        "models": list(loaded.models),
        "probes": len(loaded.manifest.probes.items),
        "sequence": copy.pointer.sequence if copy.pointer is not None else None,
        "signature": signed,
    }
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        click.echo(f"{copy.where}: ok")
        click.echo(f"{loaded.name} {loaded.version}, {loaded.kind} of {len(loaded.models)} models, {loaded.size} bytes")
        click.echo(f"sha256 {loaded.sha256}")
        click.echo(f"self-test: {found['probes']} probes; signature: {signed}")


@strategies.command()
@click.argument("bundle")
@click.argument("file")
@click.option("--batch", type=click.IntRange(1, 65_536), default=1, show_default=True, help="Queries that are scored at once.")
@trusted_option
@click.option("--name", help="Strategy that it must be for.")
@size_option
@endpoint_option
def score(
    bundle: str,
    file: str,
    batch: int,
    trusted: tuple[str, ...],
    name: str | None,
    max_bytes: int,
    endpoint_url: str | None,
) -> None:
    """Print what a bundle says to each query of FILE (`-`: standard input).

    A line of FILE is a JSON object with `query`, and if it likes `id` and `user`. A line of the answer is {"id", "scores":
    {model: number}, "pick", "us"}; `us` are the microseconds of that decision alone (in a batch, its share of the batch).
    """
    one_thread()  # as in the gateway's workers; before NumPy comes
    from pointsman.commands.scoring import read_queries
    from pointsman.commands.scoring import score as scored
    from pointsman.strategies.obtain import load

    with _obtained(bundle, max_bytes, endpoint_url, _keys(trusted), name) as copy:
        loaded = load(copy, name=name, max_bytes=max_bytes)
        for answer in scored(loaded, read_queries(file), batch):
            click.echo(json.dumps(answer, ensure_ascii=False))


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--to", "destination", required=True, help="Pointer to write: s3://bucket/key/current.json, or a path.")
@click.option("--key", type=PATH, help="Private key to sign with.")
@click.option("--sequence", type=click.IntRange(1), help="Number to publish under.  [default: one above the present one]")
@click.option("--strategy", help="Of a wheel (*.whl) with code of your own: the strategy that it is for.")
@endpoint_option
def publish(
    bundle: Path, destination: str, key: Path | None, sequence: int | None, strategy: str | None, endpoint_url: str | None
) -> None:
    """Upload a bundle, or a wheel with code of your own, then point to it."""
    from pointsman.mlops.publish import publish as published
    from pointsman.mlops.publish_code import publish_code

    if bundle.suffix == ".whl":
        code = publish_code(bundle, destination, strategy=strategy, key=key, sequence=sequence, s3=_s3(endpoint_url))
        click.echo(f"{destination}: sequence {code.sequence}, sha256 {code.sha256}")
        return
    pointer = published(bundle, destination, key=key, sequence=sequence, s3=_s3(endpoint_url))
    click.echo(f"{destination}: sequence {pointer.sequence}, sha256 {pointer.sha256}")


@click.command()
@click.option("--out", type=PATH, required=True, help="File for the private key (0600); the public key is printed.")
@click.option("--id", "key_id", default="default", show_default=True, help="Key id, as `trusted_keys` names it.")
def keygen(out: Path, key_id: str) -> None:
    """Make an Ed25519 key pair for signing."""
    from pointsman.mlops.keys import generate

    click.echo(f"{key_id}: {generate(out, key_id)}")


@strategies.command()
@click.argument("name")
@click.option("--reason", default="", help="For the fleet's history.")
@click.option("--url", default="http://127.0.0.1:4000", show_default=True, help="The gateway, any instance of the fleet.")
@click.option("--key-file", type=PATH, help="File with an admin's key.  [default: LITELLM_MASTER_KEY, else what `up` made]")
@click.option("--timeout", type=click.FloatRange(1, 600), default=60.0, show_default=True, help="Seconds to wait for it.")
@json_option
def rollback(name: str, reason: str, url: str, key_file: Path | None, timeout: float, as_json: bool) -> None:
    """Return to the previous good bundle; the present one is blocked for the whole fleet."""
    from pointsman.commands.rollback import admin_key, roll_back

    row = roll_back(name, reason, url, admin_key(key_file, environment()), timeout)
    if as_json:
        click.echo(json.dumps(row, indent=2, ensure_ascii=False))
    else:
        click.echo(f"{name}: version {row.get('version') or 'none'} is in service, sha256 {row.get('sha256') or 'none'}")


for command in (publish, keygen):
    strategies.add_command(command)


def _s3(endpoint_url: str | None) -> S3Settings:
    return S3Settings(endpoint_url=endpoint_url)


def _keys(given: tuple[str, ...]) -> dict[str, str]:
    """Key id -> public key.

    Raises:
        ConfigError: E4203.
    """
    keys: dict[str, str] = {}
    for item in given:
        key_id, separator, public = item.partition("=")
        if not (key_id and separator and public):
            raise ConfigError(
                f"{item!r} is no trusted key",
                code="E4203",
                where="--trusted-key",
                mend="write ID=BASE64, as keygen prints them",
            )
        keys[key_id] = public
    return keys


@contextmanager
def _obtained(
    bundle: str, max_bytes: int, endpoint_url: str | None, trusted: dict[str, str] | None = None, name: str | None = None
) -> Iterator[Copy]:
    from pointsman.strategies.obtain import obtain

    options: dict[str, Any] = {"trusted": trusted, "name": name, "max_bytes": max_bytes, "s3": _s3(endpoint_url)}
    with obtain(bundle, **options) as copy:
        yield copy
