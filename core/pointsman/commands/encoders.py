"""`pointsman strategies encoder` and `pointsman mlops distil`: encoders' files on this machine. Parses and prints.

Nothing else of Pointsman ever downloads an encoder.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from pointsman.errors import BundleError, ConfigError, SourceError

__all__ = ["distil", "encoder"]

PATH = click.Path(path_type=Path)
NAMES = ("model.onnx", "tokenizer.json")
MEGABYTE = 2**20
CHUNK = MEGABYTE
TIMEOUT = 30.0

directory_option = click.option(
    "--encoders-dir", type=PATH, required=True, help="Directory that the configuration names as `pointsman.encoders_dir`."
)


@click.group()
def encoder() -> None:
    """Put files of encoders where bundles find them that name and do not hold them."""


@encoder.command()
@click.argument("source", type=PATH)
@directory_option
def add(source: Path, encoders_dir: Path) -> None:
    """Copy model.onnx and tokenizer.json from a directory, an encoder file or a bundle, each under its sha256.

    A model that a gateway would refuse is not copied.
    """
    from pointsman.strategies.encoders.local import add_file

    found = _files(source)
    for name, data in found.items():
        _check(name, data, str(source))
    for name, data in found.items():
        click.echo(f"{add_file(encoders_dir, data)}  {name}, {len(data)} bytes")


@encoder.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--from", "url", required=True, help="https:// URL; http:// to this machine only.")
@click.option("--sha256", required=True, help="Digest that the file must have.")
@click.option("--max-megabytes", type=click.IntRange(1, 65_536), default=1024, show_default=True, help="Largest size.")
@directory_option
def fetch(name: str, url: str, sha256: str, max_megabytes: int, encoders_dir: Path) -> None:
    """Download one file of an encoder and keep it if it is the one that was meant."""
    from pointsman.strategies.encoders.local import add_file

    data = _download(url, sha256.lower(), max_megabytes * MEGABYTE)
    _check(name, data, url)
    click.echo(f"{add_file(encoders_dir, data)}  {name}, {len(data)} bytes")


@click.command()
@click.option(
    "--from", "directory", type=PATH, required=True, help="Directory with the model's config, weights and vocabulary."
)
@click.option("--out", type=PATH, required=True, help="Encoder file to write, for `mlops train --encoder`.")
@click.option(
    "--kind",
    type=click.Choice(["static", "minilm", "minilm-fp32"]),
    default="static",
    show_default=True,
    help="A token table, or the network itself with 8-bit or float weights.",
)
@click.option("--dimensions", type=click.IntRange(2, 4096), default=256, show_default=True, help="Of the token table.")
@click.option("--precision", type=click.Choice(["float16", "int8"]), default="float16", show_default=True, help="Of the table.")
@click.option("--max-tokens", type=click.IntRange(3, 4096), default=128, show_default=True, help="Of the network.")
def distil(directory: Path, out: Path, kind: str, dimensions: int, precision: Any, max_tokens: int) -> None:
    """Make an encoder out of a sentence encoder. Runs in the training environment: needs torch and transformers."""
    from pointsman.strategies.encoders.file import save_encoder

    chosen: Literal["float16", "int8"] = precision
    try:
        if kind == "static":
            from pointsman.mlops.distil import distil as make

            made: Any = make(
                directory, dimensions=dimensions, precision=chosen, progress=lambda line: click.echo(line, err=True)
            )
        else:
            from pointsman.mlops.encoders import export_minilm

            made = export_minilm(directory, int8=kind == "minilm", max_tokens=max_tokens)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed",
            code="E4204",
            mend="run this in the training environment: pip install torch (a CPU build) and transformers",
        ) from error
    click.echo(f"{out}: sha256 {save_encoder(out, made)}")


def _files(source: Path) -> Mapping[str, bytes]:
    from pointsman.strategies.archive import unpack

    try:
        if source.is_dir():
            found = {name: (source / name).read_bytes() for name in NAMES if (source / name).is_file()}
        else:
            members = unpack(source.read_bytes(), str(source))
            found = {name: data for name, data in members.items() if name.endswith(NAMES)}
    except OSError as error:
        raise SourceError(f"it cannot be read: {error.strerror or error}", code="E4404", where=str(source)) from error
    if not found:
        raise BundleError(f"there is no {' or '.join(NAMES)}", code="E4316", where=str(source))
    return found


def _check(name: str, data: bytes, where: str) -> None:
    from pointsman.strategies.encoders.onnx_check import check_onnx

    if name.endswith("model.onnx"):
        check_onnx(data, where)


def _download(url: str, sha256: str, limit: int) -> bytes:
    local = url.startswith(("http://127.0.0.1:", "http://localhost:"))
    if not url.startswith("https://") and not local:
        raise ConfigError(f"{url!r}: an https:// URL is wanted", code="E4203", where="--from")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 - the scheme was looked at
            chunks, size = [], 0
            while chunk := answer.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise BundleError(f"it is over the limit of {limit} bytes", code="E4301", where=url)
                chunks.append(chunk)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise SourceError(f"it cannot be fetched: {error}", where=url) from error
    data = b"".join(chunks)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleError(
            f"its sha256 is {hashlib.sha256(data).hexdigest()}, not {sha256}", code="E4302", where=url, mend="nothing was kept"
        )
    return data
