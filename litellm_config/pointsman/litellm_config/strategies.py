"""`router_settings.routing_strategy: llmrouter-*`, as users of LLMRouter's gateways write it, -> `pointsman.strategies`.

LiteLLM's router refuses to start with such a name, so the effective copy says `simple-shuffle`, and the learned strategy
decides in a callback. Strategies of ours (`linear`) are written in the same way. Whatever else there is, is left to LiteLLM.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pointsman.cascade_settings import SOURCELESS_KINDS
from pointsman.litellm_config.candidates import check_candidates
from pointsman.litellm_config.elsewhere import check_elsewhere
from pointsman.litellm_config.models import Deployment
from pointsman.litellm_config.problems import KeyPath
from pointsman.litellm_config.source import Source
from pointsman.litellm_config.tables import (
    LEARNED_STRATEGIES,
    LITELLM_STRATEGIES,
    LLMROUTER_ARGUMENTS,
    LLMROUTER_PREFIX,
    SERVED_KINDS,
)
from pointsman.overrides import closest
from pointsman.settings import PointsmanSettings, StrategySettings
from pointsman.strategies.catalogue import CATALOGUE, Entry, entry_of

__all__ = ["Translation", "check_strategies", "local_path", "translate"]

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin"})
_ROUTER: KeyPath = ("router_settings",)
_STRATEGY: KeyPath = ("router_settings", "routing_strategy")
_ARGUMENTS: KeyPath = ("router_settings", "routing_strategy_args")
_FROM = ("model_s3_bucket", "model_s3_key", "model_path")
"""Arguments that say where a bundle is; the others are settings of the same name."""


@dataclass(slots=True)
class Translation:
    """The learned strategy that `router_settings` names.

    Attributes:
        name: `llmrouter-knn`, or None when there is none.
        strategy: what to put under `pointsman.strategies.<name>`.
        origins: key within `strategy` -> the key of the file that it comes from.
    """

    name: str | None = None
    strategy: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, KeyPath] = field(default_factory=dict)


def translate(source: Source) -> Translation:
    """Read the learned strategy from `router_settings`, noting problems."""
    assert source.value is not None  # noqa: S101 - called for parsed files only
    router = source.value.get("router_settings")
    if not isinstance(router, dict):
        return Translation()
    _check_groups(source, router)
    name = router.get("routing_strategy")
    if name is None:
        return Translation()
    if not isinstance(name, str):
        source.problem(_STRATEGY, "E4203", "is not a name", f"Give one of {', '.join(sorted(LITELLM_STRATEGIES))}.")
        return Translation()
    entry = entry_of(name)
    if entry is None:
        if name not in LITELLM_STRATEGIES:
            _unknown_strategy(source, _STRATEGY, name)
        return Translation()
    if entry.broken is not None:
        _not_served(source, _STRATEGY, entry)
        return Translation()
    arguments = router.get("routing_strategy_args")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        source.problem(_ARGUMENTS, "E4203", "is not a mapping", "Write `model_path:` below it.")
        return Translation()
    return _translate(source, entry, arguments)


def _translate(source: Source, entry: Entry, arguments: Mapping[str, Any]) -> Translation:
    name, kind = entry.name, entry.kind
    for key in arguments:
        if key not in LLMROUTER_ARGUMENTS:
            guess = closest(key, LLMROUTER_ARGUMENTS)
            mend = (f"Did you mean {guess}? " if guess else "") + f"Known: {', '.join(sorted(LLMROUTER_ARGUMENTS))}."
            source.problem((*_ARGUMENTS, key), "E4202", f"{key!r} is no argument of {name}", mend)
    translation = Translation(name, {"kind": kind}, {"kind": _STRATEGY})
    origins = translation.origins
    for key in arguments:
        if key in LLMROUTER_ARGUMENTS and key not in _FROM and arguments[key] is not None:
            translation.strategy[key] = arguments[key]
            origins[key] = (*_ARGUMENTS, key)
    bucket, s3_key, path = (arguments.get(key) for key in _FROM)
    wrong = [key for key in _FROM if not isinstance(arguments.get(key), str | None)]
    for key in wrong:
        source.problem((*_ARGUMENTS, key), "E4203", "is not text", "Give a name or path; quote a number.")
    if wrong:
        return Translation()
    if bucket or s3_key:
        if not (bucket and s3_key):
            missing = "model_s3_key" if bucket else "model_s3_bucket"
            mend = f"Add `{missing}:`; a strategy in S3 has both."
            source.problem((*_ARGUMENTS, missing), "E4204", "is missing", mend)
            return Translation()
        if path:
            message = "is not used: the strategy comes from model_s3_bucket"
            source.warn(
                (*_ARGUMENTS, "model_path"), "E4203", message, "Remove one of the two; verified copies are kept anyway."
            )
        translation.strategy["source"] = f"s3://{bucket}/{str(s3_key).lstrip('/')}"
        origins["source"] = (*_ARGUMENTS, "model_s3_key")
    elif path:
        translation.strategy["source"] = path
        origins["source"] = (*_ARGUMENTS, "model_path")
    elif kind not in SOURCELESS_KINDS and not {"llmrouter", "entry_point"} & set(translation.strategy):
        source.problem(_ARGUMENTS if arguments else _STRATEGY, "E4204", f"{name} has no model", _MISSING[entry.serving])
        return Translation()
    return translation


_MISSING = {
    "bundle": "Add `model_path:` (a pointer or bundle), or `model_s3_bucket:` and `model_s3_key:`.",
    "cascade": "Add `model_path:` (a pointer or bundle), or `model_s3_bucket:` and `model_s3_key:`.",
    "worker": "Add `llmrouter:` with `config:`, LLMRouter's YAML file: LLMRouter itself serves it, in a process of its own.",
    "plugin": "Add `entry_point:`, or `model_path:` (the pointer to a signed wheel) and `allow_signed_code: true`.",
}
"""What a strategy without a model lacks, by how it is served."""


def _unknown_strategy(source: Source, path: KeyPath, name: str) -> None:
    bare = CATALOGUE.get(name.removeprefix(LLMROUTER_PREFIX))  # one of ours with the prefix, one of LLMRouter's without it
    guess = bare.name if bare is not None else closest(name, LITELLM_STRATEGIES | LEARNED_STRATEGIES)
    guess = guess or closest(f"{LLMROUTER_PREFIX}{name}", LEARNED_STRATEGIES)
    mend = f"Did you mean {guess}? " if guess else ""
    served = [entry.name for entry in CATALOGUE.values() if entry.broken is None]
    mend += f"Known: {', '.join([*served, *sorted(LITELLM_STRATEGIES)])}."
    source.problem(path, "E4206", f"there is no strategy {name!r}", mend)


def _not_served(source: Source, path: KeyPath, entry: Entry) -> None:
    mend = "Use another one (`pointsman strategies list`), or a strategy of LiteLLM's own."
    source.problem(path, "E4206", f"{entry.name} cannot be served: {entry.broken}", mend)


def _check_kind(source: Source, path: KeyPath, strategy: StrategySettings) -> None:
    """What the settings say of how a kind is served must fit the kind."""
    kind = str(strategy.kind)
    entry = CATALOGUE.get(kind)
    if entry is None:
        guess = closest(kind.removeprefix(LLMROUTER_PREFIX), SERVED_KINDS)
        mend = (f"Did you mean {guess}? " if guess else "") + f"Known: {', '.join(sorted(SERVED_KINDS))}."
        source.problem(path, "E4206", f"there is no kind of strategy {kind!r}", mend)
    elif entry.broken is not None:
        _not_served(source, path, entry)
    elif strategy.llmrouter is not None:
        if not entry.llmrouter:
            source.problem(path, "E4206", f"LLMRouter has no {kind!r}", "Remove `llmrouter:`.")
    elif entry.serving == "worker":
        source.problem(path, "E4206", f"{entry.name} is not served from a bundle", _MISSING["worker"])


def _check_groups(source: Source, router: Mapping[str, Any]) -> None:
    groups = router.get("routing_groups")
    for index, group in enumerate(groups if isinstance(groups, list) else ()):
        name = group.get("routing_strategy") if isinstance(group, dict) else None
        path: KeyPath = (*_ROUTER, "routing_groups", index, "routing_strategy")
        if isinstance(name, str) and (name.startswith(LLMROUTER_PREFIX) or name in LEARNED_STRATEGIES):
            mend = "Write the strategy under `pointsman.strategies` and name it in `pointsman.routing.groups`."
            source.problem(path, "E4206", "a learned strategy cannot stand in a routing group", mend)
        elif isinstance(name, str) and name not in LITELLM_STRATEGIES | {"priority"}:
            _unknown_strategy(source, path, name)


def local_path(location: str) -> Path | None:
    """The file behind a path or `file://` URL; None for `s3://`."""
    if location.startswith("file://"):
        return Path(unquote(location.removeprefix("file://")))
    return None if "://" in location else Path(location)


def check_strategies(
    source: Source,
    settings: PointsmanSettings,
    where: Mapping[str, Mapping[str, KeyPath]],
    deployments: Iterable[Deployment],
) -> None:
    """Check what the types cannot: pickles, kinds that are not served, keys that are missing, files that are not there.

    Args:
        source: takes the problems.
        settings: valid settings, with absolute paths.
        where: strategy -> its key -> where that stands in the file, for those that `translate` made.
        deployments: usable entries of `model_list`.
    """
    for name, strategy in settings.strategies.items():
        origins = where.get(name, {})

        def at(key: str, name: str = name, origins: Mapping[str, KeyPath] = origins) -> KeyPath:
            return origins.get(key, ("pointsman", "strategies", name, key))

        if strategy.source is not None:
            _check_source(source, at("source"), strategy.source)
        if strategy.kind is not None:
            _check_kind(source, at("kind"), strategy)
        check_elsewhere(source, name, strategy, at)
        if strategy.source is None:
            pass  # no bundle, no signature
        elif strategy.require_signature and not strategy.trusted_keys:
            message = "no bundle will be taken: signatures are required and no key is trusted; LiteLLM's own choice holds"
            mend = "Add `trusted_keys:` (`pointsman mlops` makes a key), or `require_signature: false` if you trust the store."
            source.warn(at("trusted_keys"), "E4206", message, mend)
        elif strategy.require_signature and strategy.source.lower().endswith(".zip"):
            message = "a bare bundle carries no signature, and signatures are required: it will not be taken"
            source.warn(at("source"), "E4206", message, "Give its pointer (.json), or `require_signature: false`.")

    def metadata(name: str) -> KeyPath:
        return where.get(name, {}).get("llm_data_path", ("pointsman", "strategies", name, "llm_data_path"))

    check_candidates(source, settings, deployments, metadata)


def _check_source(source: Source, path: KeyPath, location: str) -> None:
    suffix = Path(location).suffix.lower()
    file = local_path(location)
    if suffix in PICKLE_SUFFIXES or (file is not None and _is_pickle(file)):
        mend = "Convert it once, where you trust it, by `pointsman strategies import --help`; name what that writes."
        source.problem(path, "E4205", "a pickle runs whatever code is in it when it is read; it is never loaded here", mend)
    elif suffix not in {".json", ".zip"}:
        source.problem(
            path, "E4203", "names neither a pointer (.json) nor a bundle (.zip)", "Name the `current.json` of the strategy."
        )
    elif file is not None:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            message = (
                f"{file} cannot be read now ({error.strerror or type(error).__name__}); until then LiteLLM's own choice holds"
            )
            source.warn(path, "E4206", message, "Publish the strategy there: `pointsman mlops publish`.")
        else:
            if stat.S_ISDIR(mode):
                source.problem(path, "E4203", f"{file} is a directory", "Name the pointer in it, e.g. `current.json`.")


def _is_pickle(file: Path) -> bool:
    """Whether the file begins as pickles of protocol 2 to 5 do."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return False
        with file.open("rb") as stream:
            head = stream.read(2)
    except OSError:
        return False
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5
