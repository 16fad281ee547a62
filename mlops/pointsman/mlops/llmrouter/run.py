"""`pointsman strategies import`: from a router that LLMRouter trained to a bundle, or nothing.

The bundle is compared with LLMRouter itself on held-out queries before it is written: every choice must be the same, and every
score within `TOLERANCE`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.errors import BundleError, ConfigError
from pointsman.mlops.data import read_queries
from pointsman.mlops.llmrouter import IMPORTERS
from pointsman.mlops.llmrouter.base import Context, Imported, Importer, mismatch
from pointsman.mlops.llmrouter.upstream import VERSION, construct, picks, read_config, stored_embeddings, talking_to_stderr
from pointsman.mlops.probes import stable
from pointsman.mlops.train import default_name
from pointsman.mlops.trainers.base import Progress, silent
from pointsman.strategies.base import Encoder, Matrix, Personal, Strategy
from pointsman.strategies.bundle import DEFAULT_MAX_BYTES, build_bundle, parse_bundle, save_bundle
from pointsman.strategies.encoders.nothing import NoEncoder
from pointsman.strategies.files import canonical_json, sha256_hex
from pointsman.strategies.manifest import Provenance

__all__ = ["TOLERANCE", "import_strategy"]

TOLERANCE = 1e-5
"""Largest difference between a score of ours and LLMRouter's, in units of the largest score where that is above 1."""
MIN_QUERIES = 20
SAMPLE = 64
"""Training queries whose stored embeddings are compared with the encoder's."""
CLOSE = 0.01
"""Largest length of the difference between a stored embedding and the encoder's vector, relative to the stored one's length."""


def import_strategy(
    kind: str,
    config: Path,
    data: Path,
    out: Path,
    *,
    encoder: Encoder,
    name: str | None = None,
    version: str | None = None,
    trust_artifact: bool = False,
    limit: int = 500,
    progress: Progress = silent,
) -> Path:
    """Import one of LLMRouter's trained routers; write `<out>/<name>-<version>.zip`.

    Args:
        kind: one of `IMPORTERS`.
        config: LLMRouter's YAML file.
        data: held-out queries to compare on, JSON lines with `query` and perhaps `user` or `user_id`.
        out: directory; made if it is not there.
        encoder: that made the embeddings which LLMRouter learned from; without effect where the router trained one of its own.
        name: of the strategy; by default the catalogue's.
        version: by default made from the digests of artifact and configuration.
        trust_artifact: the operator allows that code inside the artifact is executed.
        limit: of queries to compare on.
        progress: told of each step.

    Returns:
        The bundle's path.

    Raises:
        ConfigError: E4206 (no such kind), E4207 (LLMRouter is not installed), E4205 (an artifact that nobody
            vouched for), E4204, E4201.
        BundleError: E4321 (it does not do what LLMRouter does), E4320 (the queries cannot be used).
        SourceError: E4410, the bundle could not be written.
    """
    importer = IMPORTERS.get(kind)
    if importer is None:
        raise ConfigError(
            f"there is no importer for {kind!r}", code="E4206", where="--kind", mend=f"one of {', '.join(sorted(IMPORTERS))}"
        )
    settings, (queries, users, digest) = read_config(config), read_queries(data, limit)
    if len(queries) < MIN_QUERIES:
        raise BundleError(
            f"{len(queries)} queries are too few to compare on; at least {MIN_QUERIES}", code="E4320", where=str(data)
        )
    if importer.artifact:
        _trusted(trust_artifact, config, settings, progress)
    encoder = encoder if importer.text else NoEncoder()
    if importer.text and importer.encoder is None and encoder.kind == "none":
        raise ConfigError(
            f"{kind} looks at the text: it needs the encoder that made LLMRouter's embeddings",
            code="E4204",
            where="--encoder",
            mend="a bundle whose encoder is taken, or an encoder's name",
        )
    progress(f"constructing LLMRouter's {importer.name}")
    with talking_to_stderr():
        context = construct(importer, config, settings, encoder)
        if importer.encoder is not None:
            progress("exporting the router's own encoder")
            encoder = importer.encoder(context)
            context = replace(context, dimensions=encoder.dimensions)
        likeness = _same_embeddings(importer, context, encoder) if importer.text else {}
        imported = importer.read(context)
        own = picks(importer, context, encoder, queries, users)
        vectors = encoder.encode(queries)
        proof: dict[str, Any] = {}
        strategy = imported.strategy
        for strategy in (imported.strategy, *([imported.precise] if imported.precise is not None else [])):
            proof = _compare(strategy, imported, vectors, users, own)
            if proof["largest_difference"] <= proof["allowed"]:
                break
        proof |= {"queries": len(queries), "queries_sha256": digest, "distinct_choices": len(set(own)), **likeness}
        _refuse_unequal(proof, kind, data)
        artifact = sha256_hex(context.artifact.read_bytes()) if context.artifact is not None else None
        origin = _origin(importer, config, artifact, proof, imported.note)
        called = name or default_name(kind)
        number = version or f"{(artifact or origin['config_sha256'])[:8]}-{sha256_hex(canonical_json(origin))[:8]}"
        content = build_bundle(
            name=called,
            version=number,
            encoder=encoder,
            strategy=strategy,
            provenance=Provenance(code_version=installed_version("pointsman"), seed=0, rows=0, settings={"imported": origin}),
            probe_texts=stable(encoder, strategy),
        )
        path = out / f"{called}-{number}.zip"
        largest = max(DEFAULT_MAX_BYTES, len(content))  # an encoder of the router's own may be large
        loaded = parse_bundle(content, where=str(path), max_bytes=largest)
        again = _compare(loaded.strategy, imported, loaded.encoder.encode(queries), users, own)
        _refuse_unequal(again, kind, data)
    bundle = save_bundle(path, content, max_bytes=largest)
    if bundle.size > DEFAULT_MAX_BYTES:
        progress(f"gateways take it only with the strategy's `max_bytes` at {bundle.size} or more")
    progress(
        f"{len(queries)} queries, {len(set(own))} different choices: all as LLMRouter's; largest difference of a score "
        f"{proof['largest_difference']:.1e}"
    )
    if len(set(own)) == 1:
        progress(f"LLMRouter chooses {own[0]!r} for every one of these queries: agreement on them says little")
    progress(f"{path}: {bundle.size} bytes, sha256 {bundle.sha256}")
    return path


def _trusted(trust: bool, config: Path, settings: Mapping[str, Any], progress: Progress) -> None:
    artifact = (settings.get("model_path") or {}).get("load_model_path")
    if not trust:
        raise ConfigError(
            "LLMRouter's artifact is a pickle (or PyTorch's format): reading it executes whatever code it holds",
            code="E4205",
            where=f"{config} model_path.load_model_path",
            mend="if you trained it yourself, say so with --trust-artifact, here and never in a gateway",
        )
    progress(f"WARNING: executing the code inside {artifact}, because --trust-artifact was given")


def _same_embeddings(importer: Importer, context: Context, encoder: Encoder) -> dict[str, float]:
    """Check that our encoder makes the embeddings that LLMRouter learned from.

    Raises:
        BundleError: E4321.
    """
    stored = (importer.stored or stored_embeddings)(context, SAMPLE)
    if stored is None:
        raise mismatch(
            "LLMRouter's training data hold no embeddings to compare the encoder with",
            "query_embedding_data",
            "give the configuration that the router was trained with",
        )
    texts, theirs = stored
    mend = "give the encoder that made `query_embedding_data`: --encoder NAME, or --encoder BUNDLE.zip"
    if theirs.shape[1] != encoder.dimensions:
        raise mismatch(
            f"LLMRouter's embeddings have {theirs.shape[1]} dimensions, the encoder {encoder.kind!r} has {encoder.dimensions}",
            "--encoder",
            mend,
        )
    ours = encoder.encode(texts).astype(np.float64)
    lengths = np.linalg.norm(theirs, axis=1)
    apart = float((np.linalg.norm(ours - theirs, axis=1) / np.where(lengths > 0, lengths, 1)).max())
    cosines = (ours * theirs).sum(axis=1) / np.maximum(np.linalg.norm(ours, axis=1) * lengths, 1e-12)
    if not apart <= CLOSE:
        raise mismatch(
            f"the encoder {encoder.kind!r} does not make the embeddings that LLMRouter learned from: "
            f"least cosine {cosines.min():.4f}, largest relative difference {apart:.4f} (at most {CLOSE})",
            "--encoder",
            mend,
        )
    return {"least_cosine": round(float(cosines.min()), 6), "embedding_difference": round(apart, 6)}


def _compare(
    strategy: Strategy, imported: Imported, vectors: Matrix, users: Sequence[str | None], own: Sequence[str]
) -> dict[str, Any]:
    """Agreement of choices, and the largest difference of scores; one query at a time and all at once."""
    theirs = imported.own_scores(vectors, users)
    score = strategy.score_for if isinstance(strategy, Personal) else lambda rows, _: strategy.score(rows)
    batch = score(vectors, users)
    single = np.concatenate([score(vectors[row : row + 1], users[row : row + 1]) for row in range(len(vectors))])
    agreement = [
        strategy.models[int(one.argmax())] == strategy.models[int(other.argmax())] == pick
        for one, other, pick in zip(batch, single, own, strict=True)
    ]
    difference = max(float(np.abs(scores - theirs).max()) for scores in (batch, single))
    return {
        "agreement": sum(agreement) / len(agreement),
        "largest_difference": difference,
        "allowed": TOLERANCE * max(1.0, float(np.abs(theirs).max())),
    }


def _refuse_unequal(proof: Mapping[str, Any], kind: str, data: Path) -> None:
    if proof["agreement"] == 1.0 and proof["largest_difference"] <= proof["allowed"]:  # written so that NaN fails
        return
    raise mismatch(
        f"the imported {kind} does not do what LLMRouter does: {proof['agreement']:.4f} of the choices agree, scores differ by "
        f"up to {proof['largest_difference']:.2e} ({proof['allowed']:.0e} is allowed); nothing was written",
        str(data),
        f"the importer knows llmrouter-lib {VERSION}; with that release, please report it, and train with "
        "`pointsman mlops train` meanwhile",
    )


def _origin(importer: Importer, config: Path, artifact: str | None, proof: Mapping[str, Any], note: str) -> dict[str, Any]:
    def found(package: str) -> str | None:
        try:
            return installed_version(package)
        except PackageNotFoundError:
            return None

    return {
        "from": importer.name,
        "llmrouter-lib": found("llmrouter-lib"),
        "scikit-learn": found("scikit-learn"),
        "torch": found("torch"),
        "machine": platform.machine(),
        "config_sha256": sha256_hex(config.read_bytes()),
        "artifact_sha256": artifact,
        "proof": dict(proof),
        **({"note": note} if note else {}),
    }
