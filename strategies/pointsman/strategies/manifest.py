"""The schema of a bundle's `manifest.json`."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pointsman.errors import BundleError
from pointsman.strategies.files import strict_json

__all__ = [
    "CALIBRATION_STEPS",
    "FORMAT",
    "MANIFEST",
    "MARGIN_DIGITS",
    "NATIVE_FILE",
    "Calibration",
    "Encoding",
    "Evaluation",
    "FileEntry",
    "Manifest",
    "Probe",
    "Probes",
    "Provenance",
    "Result",
    "parse_manifest",
]

FORMAT = "pointsman/bundle/1"
MANIFEST = "manifest.json"
MAX_MODELS = 1024
MAX_PROBES = 64
CALIBRATION_STEPS = 101
"""Rows of a calibration table: 0 to 100 percent of the requests go to the strong model."""
MARGIN_DIGITS = 4


def _unique(models: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(models)) != len(models):
        raise ValueError("a candidate stands twice")
    return models


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
NATIVE_FILE = r"(?:[0-5]\.)?(?:model\.onnx|tokenizer\.json)"
"""Names of an encoder's files that native code parses; those of a `concat`'s members begin with the member's number."""
FileName = Annotated[str, Field(pattern=rf"^(?:[a-z0-9][a-z0-9_-]{{0,63}}\.safetensors|{NATIVE_FILE})$")]
NativeName = Annotated[str, Field(pattern=rf"^{NATIVE_FILE}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
Models = Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=MAX_MODELS), AfterValidator(_unique)]
Unit = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Part):
    """One file of the archive. `size` in bytes."""

    sha256: Sha256
    size: Count


class Encoding(_Part):
    """How text becomes a vector. `sha256` covers kind, parameters, arrays and files (`assemble.encoder_digest`).

    `external`: files of the encoder that are not in the archive; they lie in the gateway's `pointsman.encoders_dir`.
    """

    kind: Kind
    dimensions: Annotated[int, Field(ge=1, le=65_536)]
    sha256: Sha256
    params: dict[str, Any] = {}
    external: dict[NativeName, FileEntry] = {}


class Provenance(_Part):
    """Where it comes from: hash of the data file, version of the code that trained it, seed, rows and settings used."""

    data_sha256: Sha256 | None = None
    code_version: str
    seed: int
    rows: Count
    settings: dict[str, Any] = {}


class Result(_Part):
    """One line of the evaluation's table.

    Attributes:
        name: `strategy`, or a baseline: `best_single`, `cheapest`, `random`, `oracle`, `knn`.
        quality: mean score of the models picked, in [0, 1].
        low, high: 95% interval of it (bootstrap over groups of near-duplicates).
        cost: US dollars for a thousand requests at estimated tokens, or None without prices.
        model: the one model that a constant baseline picks.
        shares: model -> share of the requests that it gets.
    """

    name: str
    quality: Unit
    low: Unit
    high: Unit
    cost: Annotated[float, Field(ge=0)] | None = None
    model: str | None = None
    shares: dict[str, Unit] = {}


class Calibration(_Part):
    """A threshold on `score(strong) - score(weak)` for each percent of requests to the strong model, on held-out rows.

    Margins are rounded to `MARGIN_DIGITS`, on both sides: sums in another order must not move a row past a threshold.

    Attributes:
        weak, strong: the cheapest (without costs: the weakest) and the best single model of the training rows.
        rows: how many held-out rows.
        margins: at step i, rows with a margin above `margins[i]` go to the strong model; falling.
        ties: at step i, the share of rows with exactly that margin that go there too.
        quality: mean score then.
        cost: mean cost then, the strong model's being 1; or None without costs.
    """

    weak: ModelName
    strong: ModelName
    rows: Count
    margins: Annotated[tuple[float, ...], Field(min_length=CALIBRATION_STEPS, max_length=CALIBRATION_STEPS)]
    ties: Annotated[tuple[Unit, ...], Field(min_length=CALIBRATION_STEPS, max_length=CALIBRATION_STEPS)]
    quality: Annotated[tuple[Unit, ...], Field(min_length=CALIBRATION_STEPS, max_length=CALIBRATION_STEPS)]
    cost: Annotated[tuple[float, ...], Field(min_length=CALIBRATION_STEPS, max_length=CALIBRATION_STEPS)] | None = None

    @model_validator(mode="after")
    def _falling(self) -> Calibration:
        if any(after > before for before, after in itertools.pairwise(self.margins)):
            raise ValueError("margins must fall")
        if self.weak == self.strong:
            raise ValueError("weak and strong are the same model")
        return self


class Evaluation(_Part):
    """Held-out evaluation and its baselines, on the same rows.

    Attributes:
        rows, groups: how many held-out prompts, in how many groups of near-duplicates.
        split: how they were chosen.
        refit: the bundle was trained again on all rows after the evaluation, with the same settings.
        table: the strategy and every baseline.
        difference: strategy minus best single in quality: mean, low and high of its 95% interval (paired bootstrap).
        apgr: area under the performance-gap-recovered curve between cheapest (or weakest) and best single; 0.5 is random.
        brier: mean squared error of the predicted scores, and the same for each model's mean as prediction; None where
            scores only rank.
        notes: what a reader should know.
        calibration: for policies with a target; None: the cheapest model is the best one, too.
    """

    rows: Count
    groups: Count
    split: str
    refit: bool
    table: tuple[Result, ...]
    difference: tuple[float, float, float]
    apgr: float | None = None
    brier: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = None


class Probe(_Part):
    """A text and the scores that the bundle must give for it."""

    text: Annotated[str, Field(max_length=20_000)]
    scores: dict[str, float]


class Probes(_Part):
    """The self-test. `tolerance` is the largest difference allowed."""

    tolerance: Annotated[float, Field(gt=0, le=0.01)]
    items: Annotated[tuple[Probe, ...], Field(min_length=1, max_length=MAX_PROBES)]


class Manifest(_Part):
    """The whole manifest. `params` are the strategy's."""

    format: Literal["pointsman/bundle/1"]
    name: Name
    version: Name
    kind: Kind
    encoder: Encoding
    params: dict[str, Any]
    models: Models
    files: dict[FileName, FileEntry]
    provenance: Provenance
    evaluation: Evaluation | None = None
    probes: Probes

    @model_validator(mode="after")
    def _probes_name_all_models(self) -> Manifest:
        for probe in self.probes.items:
            if set(probe.scores) != set(self.models):
                raise ValueError("a probe must give a score for each of the models and for no other")
        return self


def parse_manifest(data: bytes) -> Manifest:
    """Parse and validate.

    Raises:
        BundleError: E4306, with the key that is wrong.
    """
    try:
        value = strict_json(data)
    except ValueError as error:
        raise BundleError(f"the manifest is not JSON: {error}", code="E4306", where=MANIFEST) from error
    found = value.get("format") if isinstance(value, dict) else None
    if isinstance(found, str) and found != FORMAT and found.startswith("pointsman/bundle/"):
        raise BundleError(
            f"the bundle's format is {found!r}; this version reads {FORMAT!r}",
            code="E4306",
            where=f"{MANIFEST} format",
            mend="use a gateway and a trainer of fitting versions",
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise BundleError(f"{key}: {first['msg']}", code="E4306", where=f"{MANIFEST} {key}") from error
