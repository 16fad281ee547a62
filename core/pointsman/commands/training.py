"""`mlops train` and `strategies import`: from what was typed to the call that does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack
from zipfile import ZipFile

from opentelemetry.util.types import AttributeValue

from pointsman.callbacks.process_spans import ProcessSpans
from pointsman.callbacks.spans import given
from pointsman.errors import ConfigError

__all__ = ["import_strategy", "parse_settings", "train_strategy"]


class Options(TypedDict):
    """What else was typed; see `pointsman.mlops.train.train`."""

    name: str | None
    encoder: str | None
    settings: Sequence[str]
    holdout: float
    seed: int
    llm_data: Path | None


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is JSON where it can be read as such, else a text.

    Raises:
        ConfigError: E4203, no `=`, or a key twice.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key or key in values:
            raise ConfigError(
                "--set wants KEY=VALUE, each key once", code="E4203", where=f"--set {setting}", mend="e.g. --set k=50"
            )
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def train_strategy(
    kind: str,
    data: Path | None,
    out: Path,
    *,
    env: Mapping[str, str],
    progress: Callable[[str], None],
    **options: Unpack[Options],
) -> Path:
    """Train one kind; see `pointsman.mlops.train.train`. The bundle's path.

    Where the environment names a collector (`OTEL_EXPORTER`, `OTEL_ENDPOINT`), the run is a span, under `TRACEPARENT`.

    Raises:
        ConfigError: E4206 (no such kind), E4204 (data are missing), E4203 (settings).
        BundleError: E4320, the data cannot be used.
    """
    spans = ProcessSpans.from_environment(env)
    try:
        with spans.run("pointsman.train", pointsman__train__kind=kind) as span:
            path = _train(kind, data, out, progress=progress, **options)
            if span.is_recording():
                span.set_attributes(_about(path))
            return path
    finally:
        spans.close()


def _about(bundle: Path) -> dict[str, AttributeValue]:
    with ZipFile(bundle) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    values: dict[str, AttributeValue | None] = {
        "pointsman.strategy.name": manifest["name"],
        "pointsman.strategy.version": manifest["version"],
        "pointsman.train.rows": manifest["provenance"].get("rows"),
    }
    return given(values)


def _train(
    kind: str,
    data: Path | None,
    out: Path,
    *,
    name: str | None,
    encoder: str | None,
    settings: Sequence[str],
    holdout: float,
    seed: int,
    llm_data: Path | None,
    progress: Callable[[str], None],
) -> Path:
    from pointsman.mlops.sizes import KINDS, make_by_size
    from pointsman.mlops.train import read_prices, train
    from pointsman.mlops.trainers import TRAINERS
    from pointsman.mlops.vectors import FITTED, encoder_from_bundle

    values = parse_settings(settings)
    if kind in KINDS:
        if llm_data is None or values or encoder is not None:
            raise ConfigError(
                f"{kind} is made from the models' sizes alone",
                code="E4204",
                where="--llm-data",
                mend="give --llm-data FILE.json",
            )
        return make_by_size(kind, llm_data, out, name=name, progress=progress)
    if kind not in TRAINERS:
        raise ConfigError(
            f"there is no trainer for {kind!r}",
            code="E4206",
            where="--strategy",
            mend=f"one of {', '.join(sorted({*TRAINERS, *KINDS}))}",
        )
    if data is None:
        raise ConfigError("training needs data", code="E4204", where="--data", mend="give a .jsonl or .jsonl.gz file")
    return train(
        kind,
        data,
        out,
        name=name,
        encoder=encoder if encoder is None or encoder in FITTED else encoder_from_bundle(Path(encoder)),
        settings=values,
        holdout=holdout,
        seed=seed,
        prices=read_prices(llm_data) if llm_data is not None else None,
        progress=progress,
    )


def import_strategy(
    kind: str,
    config: Path,
    data: Path,
    out: Path,
    *,
    encoder: str,
    name: str | None,
    trust_artifact: bool,
    progress: Callable[[str], None],
) -> Path:
    """Import one of LLMRouter's routers; see `pointsman.mlops.llmrouter.run.import_strategy`. The bundle's path.

    Raises:
        ConfigError, BundleError, SourceError: see there.
    """
    from pointsman.mlops.llmrouter import run
    from pointsman.mlops.vectors import ready_encoder

    return run.import_strategy(
        kind,
        config,
        data,
        out,
        encoder=ready_encoder(encoder),
        name=name,
        trust_artifact=trust_artifact,
        progress=progress,
    )
