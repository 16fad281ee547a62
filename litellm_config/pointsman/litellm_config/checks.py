"""Checks of the sections that LiteLLM reads: typing errors, references to the environment, fallbacks, ours against theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pointsman.database_url import environment_url, parts_of
from pointsman.errors import ConfigError, DatabaseError
from pointsman.litellm_config.detect import PROVIDER_KEYS
from pointsman.litellm_config.models import Deployment, near_miss
from pointsman.litellm_config.problems import KeyPath, Problem
from pointsman.litellm_config.source import Source
from pointsman.litellm_config.tables import GENERAL_SETTINGS, LITELLM_SETTINGS, ROUTER_SETTINGS, SECTIONS
from pointsman.overrides import closest
from pointsman.settings import PointsmanSettings

__all__ = ["REFERENCE", "check_environment", "check_references", "check_routing", "check_sections", "resolve"]

REFERENCE = "os.environ/"
"""How LiteLLM's files refer to the environment: `os.environ/OPENAI_API_KEY`."""

_MADE_AT_START = frozenset({"LITELLM_MASTER_KEY", "LITELLM_SALT_KEY"})
"""`pointsman up` makes these; `serve` refuses to start without the first."""

_KNOWN_KEY = "sk-1234"
_REDIS_TARGETS = ("REDIS_HOST", "REDIS_URL", "REDIS_SENTINEL_NODES", "REDIS_CLUSTER_NODES")
_WEAK_KEY_SETTING = "dangerously_permit_weak_or_unset_master_key"
_WEAK_KEY_VARIABLE = "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"

_MAPPINGS = ("litellm_settings", "general_settings", "router_settings", "environment_variables", "pointsman")


def resolve(value: Any, env: Mapping[str, str]) -> str | None:
    """The text behind a value that may be a reference; None for anything that is no text or not set."""
    if not isinstance(value, str):
        return None
    return env.get(value.removeprefix(REFERENCE)) if value.startswith(REFERENCE) else value


def check_sections(source: Source) -> None:
    """Unknown sections, sections of the wrong shape, misspelt settings."""
    assert source.value is not None  # noqa: S101 - called for parsed files only
    known = SECTIONS | {"pointsman"}
    for section, value in source.value.items():
        if section not in known and not section.startswith("x-"):
            guess = closest(section, known, 0.75)
            if guess is not None and guess not in source.value:
                source.problem((section,), "E4202", f"there is no section {section!r}", f"Did you mean {guess}?")
            else:
                mend = "Remove it; begin a name with `x-` to keep anchors there."
                source.warn((section,), "E4202", f"there is no section {section!r}; it is ignored", mend)
        if section in _MAPPINGS and value is not None and not isinstance(value, dict):
            source.problem((section,), "E4203", "is not a mapping", f"Write the settings below `{section}:`, indented.")
    _near_misses(source, "general_settings", GENERAL_SETTINGS)
    _near_misses(source, "litellm_settings", LITELLM_SETTINGS)
    general = _section(source, "general_settings")
    if general.get("store_model_in_db") is False:
        message = "stays true: with it off, LiteLLM rewrites its configuration with the master key in clear"
        source.warn(("general_settings", "store_model_in_db"), "E4203", message, "Remove the line.")
    _check_router(source)
    litellm = _section(source, "litellm_settings")
    callbacks = litellm.get("callbacks")
    if callbacks is not None and not isinstance(callbacks, list | str):
        source.problem(("litellm_settings", "callbacks"), "E4203", "is not a list of names", "Write `callbacks: [prometheus]`.")
    handlers = litellm.get("custom_provider_map")
    if handlers is not None and not isinstance(handlers, list):
        mend = "Write `- {provider: name, custom_handler: module.instance}`."
        source.problem(("litellm_settings", "custom_provider_map"), "E4203", "is not a list", mend)


def _section(source: Source, name: str) -> dict[str, Any]:
    value = (source.value or {}).get(name)
    return value if isinstance(value, dict) else {}


def _near_misses(source: Source, name: str, known: frozenset[str]) -> None:
    near_miss(source, (name,), _section(source, name), known, frozenset())


def _check_router(source: Source) -> None:
    router = _section(source, "router_settings")
    for key in router:
        if key in ROUTER_SETTINGS:
            continue
        path: KeyPath = ("router_settings", key)
        if key in {"health_check_interval", "health_check_concurrency"}:
            source.problem(path, "E4202", "LiteLLM refuses to start with it here", "Move it to `general_settings`.")
            continue
        guess = closest(key, ROUTER_SETTINGS, 0.75)
        mend = f"Did you mean {guess}?" if guess else "Remove it, or move it to the section that it belongs to."
        source.warn(path, "E4202", f"{key!r} is no setting of LiteLLM's router; it is ignored", mend)


def _fallbacks(source: Source, groups: set[str]) -> None:
    for section in ("router_settings", "litellm_settings"):
        settings = _section(source, section)
        for kind in ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "default_fallbacks"):
            entries = settings.get(kind)
            path: KeyPath = (section, kind)
            if entries is None:
                continue
            if not isinstance(entries, list):
                source.problem(path, "E4203", "is not a list", "Write `- {group: [other, ...]}`.")
                continue
            for index, entry in enumerate(entries):
                _fallback(source, (*path, index), entry, groups, plain=kind == "default_fallbacks")


def _fallback(source: Source, path: KeyPath, entry: Any, groups: set[str], *, plain: bool) -> None:
    if plain:
        names = [entry]
    elif not isinstance(entry, dict) or len(entry) != 1:
        source.problem(path, "E4203", "LiteLLM wants a mapping of one group here", "Write `- {group: [other, ...]}`.")
        return
    else:
        group, targets = next(iter(entry.items()))
        names = [group, *(targets if isinstance(targets, list) else [targets])]
    for name in names:
        if isinstance(name, str):
            _known_group(source, path, name, groups)


def _known_group(source: Source, path: KeyPath, name: str, groups: set[str]) -> None:
    if name in groups or name == "*" or any(group.endswith("*") and name.startswith(group[:-1]) for group in groups):
        return
    guess = closest(name, groups)
    mend = f"Did you mean {guess}?" if guess else "Add a model of that name, here or in the admin UI."
    source.warn(path, "E4204", f"no model is called {name!r} in this file", mend)


def check_routing(
    source: Source, settings: PointsmanSettings, deployments: Iterable[Deployment], translated: str | None
) -> None:
    """Names in `pointsman.routing`, in fallbacks and aliases that nothing bears.

    Args:
        source: takes the problems.
        settings: valid settings.
        deployments: usable entries of `model_list`.
        translated: strategy that `router_settings` named, or None.
    """
    deployments = list(deployments)
    aliases = _section(source, "router_settings").get("model_group_alias")
    groups = {item.group for item in deployments} | set(aliases if isinstance(aliases, dict) else ())
    _fallbacks(source, groups)
    routing = settings.routing
    named: dict[KeyPath, str | None] = {}
    if routing.default != translated:
        named["pointsman", "routing", "default"] = routing.default
    for group, strategy in routing.groups.items():
        named[("pointsman", "routing", "groups", group)] = strategy
        _known_group(source, ("pointsman", "routing", "groups", group), group, groups)
    for path, strategy in named.items():
        if strategy is not None and strategy not in settings.strategies:
            guess = closest(strategy, settings.strategies)
            known = ", ".join(sorted(settings.strategies)) or "none"
            mend = f"Did you mean {guess}?" if guess else f"Define it under `pointsman.strategies`; defined: {known}."
            source.problem(path, "E4206", f"there is no strategy {strategy!r}", mend)
    names = {item.model for item in deployments} | {item.model_id for item in deployments if item.model_id}
    for candidate, target in routing.candidates.items():
        if target not in names:
            guess = closest(target, names)
            mend = f"Did you mean {guess}?" if guess else "Give the `litellm_params.model` or `model_info.id` of a deployment."
            source.warn(
                ("pointsman", "routing", "candidates", candidate),
                "E4206",
                f"no deployment has the model or id {target!r}",
                mend,
            )


def check_references(source: Source, deployments: Iterable[Deployment], env: Mapping[str, str]) -> None:
    """`os.environ/NAME` of variables that are not set, and providers whose usual key is nowhere."""
    assert source.value is not None  # noqa: S101 - called for parsed files only
    if _section(source, "general_settings").get("key_management_system") is not None:
        return  # the secret manager is asked at start; only it knows
    known = {name for name, value in env.items() if value} | set(_section(source, "environment_variables"))
    for path, value in _texts({key: value for key, value in source.value.items() if key != "pointsman"}, ()):
        if value.startswith(REFERENCE):
            name = value.removeprefix(REFERENCE)
            if not name:
                source.problem(path, "E4203", "refers to no variable", f"Write `{REFERENCE}NAME`.")
            elif name not in known and name not in _MADE_AT_START:
                source.warn(path, "E4204", f"the environment variable {name} is not set", f"export {name}=...")
        elif value.startswith(("${", "os.environ.", "os.getenv")):
            message = "LiteLLM does not expand this; it would be sent as it stands"
            source.warn(path, "E4203", message, f"Write `{REFERENCE}NAME`.")
    for item in deployments:
        variables = PROVIDER_KEYS.get(item.provider or "")
        given = {"api_key", "api_base", "litellm_credential_name"} & set(item.params)
        if variables and not given and known.isdisjoint(variables):
            message = f"{item.model} has no api_key, and {' or '.join(variables)} is not set"
            mend = f"export {variables[0]}=..., or add `api_key: {REFERENCE}...`."
            source.warn(("model_list", item.index, "litellm_params"), "E4204", message, mend)


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))


def check_environment(source: Source, env: Mapping[str, str]) -> str | None:
    """Problems of variables that the whole gateway hangs on; returns the database's URL, if there is one."""
    if env.get("LITELLM_CONFIG_BUCKET_NAME"):
        message = "LiteLLM would read its configuration from that bucket and nothing of this file"
        _environment(source, "LITELLM_CONFIG_BUCKET_NAME", "E4203", message, "Unset it; fetch the file before the start.")
    _check_master_key(source, env)
    _check_redis(source, env)
    given = _section(source, "general_settings").get("database_url")
    try:
        url = resolve(given, env) or environment_url(env)
    except ConfigError as error:
        _environment(source, error.where or "DATABASE_URL", error.code, error.message, error.mend or "")
        return None
    if url is not None:
        try:
            parts = parts_of(url)
            valid = bool(parts.get("dbname") or (parts.path or "").strip("/"))
        except DatabaseError:
            valid = False
        if not valid:
            message, mend = "is no URL of a Postgres database", "Write postgresql://user:password@host:5432/name."
            if resolve(given, env):
                source.problem(("general_settings", "database_url"), "E4504", message, mend)
            else:
                _environment(source, "DATABASE_URL", "E4504", message, mend)
            return None
    return url


def _check_master_key(source: Source, env: Mapping[str, str]) -> None:
    """What LiteLLM refuses to start with; that there is none at all is told at start, since `up` makes one."""
    general = _section(source, "general_settings")
    if general.get(_WEAK_KEY_SETTING) is True or env.get(_WEAK_KEY_VARIABLE):
        return
    given = general.get("master_key")
    path: KeyPath = ("general_settings", "master_key")
    mend = f"Make a long random one: sk-$(openssl rand -hex 32); write `master_key: {REFERENCE}LITELLM_MASTER_KEY`."
    if given is not None and (not isinstance(given, str) or not given):
        source.problem(path, "E4203", "is no text", mend)
    elif resolve(given or f"{REFERENCE}LITELLM_MASTER_KEY", env) == _KNOWN_KEY:
        message = "is the key of LiteLLM's documentation, which everybody knows; LiteLLM refuses to start with it"
        if isinstance(given, str) and not given.startswith(REFERENCE):
            source.problem(path, "E4203", message, mend)
        else:
            variable = given.removeprefix(REFERENCE) if isinstance(given, str) else "LITELLM_MASTER_KEY"
            _environment(source, variable, "E4203", message, mend)


def _check_redis(source: Source, env: Mapping[str, str]) -> None:
    """LiteLLM's workers end at start when the cache is Redis and nothing names one."""
    settings = _section(source, "litellm_settings")
    params = settings.get("cache_params")
    if settings.get("cache") is not True or not isinstance(params, dict) or params.get("type", "redis") != "redis":
        return
    named = any(params.get(key) for key in ("host", "url", "sentinel_nodes", "startup_nodes", "redis_startup_nodes"))
    if not named and not any(env.get(name) for name in _REDIS_TARGETS):
        message = "the cache is Redis, and nothing says where it is"
        mend = "export REDIS_HOST and REDIS_PORT, or REDIS_URL, or REDIS_SENTINEL_NODES and REDIS_SERVICE_NAME."
        source.warn(("litellm_settings", "cache_params"), "E4204", message, mend)


def _environment(source: Source, variable: str, code: str, message: str, mend: str) -> None:
    source.problems.append(Problem(source.path, None, variable, code, message, mend))
