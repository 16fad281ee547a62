"""The bundle: one immutable, content-addressed file that holds a trained strategy and its encoder.

Loading checks, in this order: size, digest of the whole, the archive's layout, the manifest's schema, the digest of each
file, names, types and shapes of arrays, finite values, the encoder's digest, and last the probes: texts with the scores that
they must give. Only what passes all of it becomes a `Bundle`. The bytes are held in memory and not mapped, because a page that
the kernel dropped would cost a request a read from disk.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pointsman.errors import BundleError, SourceError
from pointsman.strategies.archive import looks_like_pickle, pack, pack_arrays, pickle_error, unpack
from pointsman.strategies.assemble import ENCODER_FILE, STRATEGY_FILE, assemble, checked_files, encoder_digest, too_much_work
from pointsman.strategies.base import Encoder, Matrix, Personal, Scale, Strategy, UnavailableError, WithFiles
from pointsman.strategies.encoders.local import external_files
from pointsman.strategies.encoders.remote import RemoteEncoder
from pointsman.strategies.files import canonical_json, sha256_hex, write_atomic
from pointsman.strategies.manifest import (
    MANIFEST,
    Encoding,
    Evaluation,
    FileEntry,
    Manifest,
    Probe,
    Probes,
    Provenance,
    parse_manifest,
)

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Bundle",
    "build_bundle",
    "load_bundle",
    "parse_bundle",
    "save_bundle",
    "too_large",
]

DEFAULT_MAX_BYTES = 256 * 2**20
PROBE_TOLERANCE = 1e-3
PROBE_SECONDS = 2.0
"""Of its thread's processor time that a decision may take, the quicker of two tries: far more than a deadline allows. By the
clock on the wall a good bundle would be refused because the machine has other work."""


class Bundle:
    """A verified bundle, ready to score. Immutable and thread-safe.

    Attributes:
        name: strategy that it is for.
        version: the trainer's version string.
        kind: of the strategy, e.g. `knn`.
        sha256: digest of the file.
        size: bytes of the file.
        models: candidates that it scores.
        manifest: everything that the manifest says.
        manifest_sha256: digest of the manifest, which pointers sign.
    """

    __slots__ = ("_encoder", "_strategy", "kind", "manifest", "manifest_sha256", "models", "name", "sha256", "size", "version")

    def __init__(
        self, manifest: Manifest, manifest_sha256: str, sha256: str, size: int, encoder: Encoder, strategy: Strategy
    ) -> None:
        self.manifest, self.manifest_sha256, self.sha256, self.size = manifest, manifest_sha256, sha256, size
        self.name, self.version, self.kind, self.models = manifest.name, manifest.version, manifest.kind, manifest.models
        self._encoder, self._strategy = encoder, strategy

    @property
    def scale(self) -> Scale:
        """What the scores mean."""
        return self._strategy.scale

    @property
    def encoder(self) -> Encoder:
        """Text to vector."""
        return self._encoder

    @property
    def strategy(self) -> Strategy:
        """Vector to scores."""
        return self._strategy

    def score(self, text: str, user: str | None = None) -> dict[str, float]:
        """The score of each candidate for one text; see `scale`."""
        return dict(zip(self.models, self.score_batch((text,), (user,))[0].tolist(), strict=True))

    def score_timed(self, text: str, user: str | None = None) -> tuple[dict[str, float], int, int]:
        """As `score`, and when the encoder began and ended, by `time.perf_counter_ns`."""
        begin = time.perf_counter_ns()
        vectors = self._encoder.encode((text,))
        end = time.perf_counter_ns()
        return dict(zip(self.models, self.score_vectors(vectors, (user,))[0].tolist(), strict=True)), begin, end

    def score_batch(self, texts: Sequence[str], users: Sequence[str | None] | None = None) -> Matrix:
        """The same for many: float32, (len(texts), len(models)). `users`: who asks, a name or None for each text."""
        return self.score_vectors(self._encoder.encode(texts), users)

    def score_vectors(self, vectors: Matrix, users: Sequence[str | None] | None = None) -> Matrix:
        """The same for texts that were encoded already, with this bundle's encoder."""
        if users is not None and isinstance(self._strategy, Personal):
            return self._strategy.score_for(vectors, users)
        return self._strategy.score(vectors)

    def __repr__(self) -> str:
        return f"Bundle({self.name} {self.version} {self.kind} {self.sha256[:12]})"


def build_bundle(
    *,
    name: str,
    version: str,
    encoder: Encoder,
    strategy: Strategy,
    provenance: Provenance,
    probe_texts: Sequence[str],
    evaluation: Evaluation | None = None,
    external: bool = False,
) -> bytes:
    """The bytes of a bundle; the same arguments give the same bytes.

    Args:
        name: strategy that it is for; a gateway refuses it for any other.
        version: free, up to 64 letters, digits, dots, dashes, underscores.
        encoder, strategy: as trained.
        provenance: where it comes from.
        probe_texts: texts for the self-test. They are stored in clear: never take customers' prompts.
        evaluation: held-out evaluation.
        external: the encoder's files are named and left out; gateways have them in `pointsman.encoders_dir`.

    Raises:
        BundleError: E4306, E4308: what a loader would refuse.
    """
    if isinstance(encoder, RemoteEncoder):
        encoder = encoder.with_probes(probe_texts)
    members: dict[str, bytes] = {}
    native = encoder.files() if isinstance(encoder, WithFiles) else {}
    if not external:
        members |= native
    if arrays := encoder.arrays():
        members[ENCODER_FILE] = pack_arrays(arrays)
    if arrays := strategy.arrays():
        members[STRATEGY_FILE] = pack_arrays(arrays)
    scores = strategy.score(encoder.encode(probe_texts))
    if not bool(np.isfinite(scores).all()):
        raise BundleError("the strategy's scores are not finite", code="E4308", where=name)
    probes = tuple(
        Probe(text=text, scores=dict(zip(strategy.models, (round(float(value), 6) for value in row), strict=True)))
        for text, row in zip(probe_texts, scores, strict=True)
    )
    manifest = Manifest.model_construct(
        format="pointsman/bundle/1",
        name=name,
        version=version,
        kind=strategy.kind,
        encoder=Encoding(
            kind=encoder.kind,
            dimensions=encoder.dimensions,
            sha256=encoder_digest(encoder),
            params=encoder.params(),
            external=_entries(native) if external else {},
        ),
        params=strategy.params(),
        models=strategy.models,
        files=_entries(members),
        provenance=provenance,
        evaluation=evaluation,
        probes=Probes.model_construct(tolerance=PROBE_TOLERANCE, items=probes),
    )
    encoded = canonical_json(manifest.model_dump(mode="json"))
    parse_manifest(encoded)  # what a loader would refuse is refused here
    return pack({MANIFEST: encoded, **members})


def _entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    return {name: FileEntry(sha256=sha256_hex(data), size=len(data)) for name, data in files.items()}


def save_bundle(path: Path, data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, encoders_dir: Path | None = None) -> Bundle:
    """Check the bytes of a bundle as a loader does, then write them atomically.

    Raises:
        BundleError: as `load_bundle`.
        SourceError: E4410, the file cannot be written; nothing is left behind.
    """
    bundle = parse_bundle(data, where=str(path), max_bytes=max_bytes, encoders_dir=encoders_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, mode=0o644)
    except OSError as error:
        raise SourceError(
            f"the bundle cannot be written: {error.strerror or error}",
            code="E4410",
            where=str(path),
            mend="check the directory's permissions and the space left on it; nothing was left half-written",
        ) from error
    return bundle


def load_bundle(
    path: Path,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    expect_sha256: str | None = None,
    expect_name: str | None = None,
    where: str | None = None,
    encoders_dir: Path | None = None,
) -> Bundle:
    """Read and verify a bundle. Blocking (disk, CPU): call it in a thread.

    Args:
        path: the file.
        max_bytes: size limit, checked before it is read.
        expect_sha256: digest that it must have.
        expect_name: strategy that it must be for.
        where: what messages call it, if not its path.
        encoders_dir: where files of its encoder lie that it names and does not hold.

    Raises:
        BundleError: E4301 (size), E4302 (digest), E4300 and E4310 (archive), E4306 (manifest), E4307 (shapes),
            E4308 (not finite), E4309 (probes), E4305 (another strategy's), E4205 (a pickle), E4315 (a model or tokeniser),
            E4316 (an encoder's file that is not here).
        SourceError: E4404, E4400: the file is not there or cannot be read.
    """
    where = where or str(path)
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            data = b"" if size > max_bytes else stream.read(size)
    except FileNotFoundError as error:
        raise SourceError("the bundle does not exist", code="E4404", where=where) from error
    except OSError as error:
        raise SourceError(f"the bundle cannot be read: {error.strerror or error}", where=where) from error
    if size > max_bytes:
        raise too_large(where, max_bytes)
    return parse_bundle(
        data,
        where=where,
        max_bytes=max_bytes,
        expect_sha256=expect_sha256,
        expect_name=expect_name,
        encoders_dir=encoders_dir,
    )


def too_large(where: str, max_bytes: int) -> BundleError:
    """E4301."""
    return BundleError(
        f"the bundle is over the limit of {max_bytes} bytes",
        code="E4301",
        where=where,
        mend="train a smaller one, or raise the strategy's `max_bytes`",
    )


def parse_bundle(
    data: bytes,
    *,
    where: str,
    max_bytes: int = DEFAULT_MAX_BYTES,
    expect_sha256: str | None = None,
    expect_name: str | None = None,
    encoders_dir: Path | None = None,
) -> Bundle:
    """Verify a bundle that is in memory; see `load_bundle`. `where` stands in messages."""
    if len(data) > max_bytes:
        raise too_large(where, max_bytes)
    sha256 = hashlib.sha256(data).hexdigest()
    if expect_sha256 is not None and sha256 != expect_sha256:
        raise BundleError(
            f"the bundle's sha256 is {sha256}, not {expect_sha256}",
            code="E4302",
            where=where,
            mend="publish it again; it was damaged or replaced",
        )
    if looks_like_pickle(data, where):
        raise pickle_error(where)
    members = unpack(data, where)
    encoded = members.pop(MANIFEST)
    try:
        manifest = parse_manifest(encoded)
        arrays, native = checked_files(manifest, members)
        encoder, strategy = assemble(manifest, arrays, native | external_files(manifest.encoder.external, encoders_dir))
    except BundleError as error:
        error.where = f"{where} {error.where}" if error.where else where
        raise
    if expect_name is not None and manifest.name != expect_name:
        raise BundleError(
            f"the bundle is for the strategy {manifest.name!r}, not {expect_name!r}",
            code="E4305",
            where=where,
            mend=f"train or publish it with the name {expect_name!r}",
        )
    bundle = Bundle(manifest, sha256_hex(encoded), sha256, len(data), encoder, strategy)
    try:
        _probe(bundle, where)
    except UnavailableError as error:  # a remote encoder is asked nothing here; the bundle must bring its probes' vectors
        raise BundleError(f"the probes cannot be tried: {error.message}", code="E4309", where=where) from error
    return bundle


def _probe(bundle: Bundle, where: str) -> None:
    """The self-test, one text at a time and all at once: both ways are used. In time, too."""
    probes = bundle.manifest.probes
    for number, probe in enumerate(probes.items):
        single, seconds = _timed(bundle, probe.text)
        if seconds > PROBE_SECONDS:
            seconds = min(seconds, _timed(bundle, probe.text)[1])
        if seconds > PROBE_SECONDS:
            message = f"a decision takes {seconds:.1f} s of processor time; at most {PROBE_SECONDS:g}"
            raise too_much_work(message, f"{where} probe {number}")
        _compare(probe, probes.tolerance, single, f"{where} probe {number}")
    batch = bundle.score_batch([probe.text for probe in probes.items])
    if batch.shape != (len(probes.items), len(bundle.models)):
        raise BundleError(f"scores of shape {batch.shape} for {len(probes.items)} probes", code="E4307", where=where)
    for number, probe in enumerate(probes.items):
        scores = dict(zip(bundle.models, batch[number].tolist(), strict=True))
        _compare(probe, probes.tolerance, scores, f"{where} probe {number}")


def _timed(bundle: Bundle, text: str) -> tuple[dict[str, float], float]:
    started = time.thread_time()
    return bundle.score(text), time.thread_time() - started


def _compare(probe: Probe, tolerance: float, scores: Mapping[str, float], where: str) -> None:
    for model, promised in probe.scores.items():
        got = scores[model]
        if not abs(got - promised) <= tolerance:  # written so that NaN fails
            raise BundleError(
                f"the probe gives {model!r} {got:.6f}, the manifest promises {promised:.6f}",
                code="E4309",
                where=where,
                mend="train it again; the code that scores is not the code that it was trained for",
            )
