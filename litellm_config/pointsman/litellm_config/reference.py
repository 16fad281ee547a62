"""docs/configuration.md, made from the types and tables themselves: every setting, its type, default and variable."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pointsman.backends.mock_settings import MockSettings
from pointsman.litellm_config.effective import DEFAULTS, ENVIRONMENT
from pointsman.litellm_config.tables import LLMROUTER_ARGUMENTS
from pointsman.overrides import ENVIRONMENT_PREFIX
from pointsman.settings import PointsmanSettings
from pointsman.strategies.catalogue import CATALOGUE

__all__ = ["configuration_page", "settings_rows"]

_HEAD = """\
# Configuration

Generated from the types by `make docs`; do not edit.

One YAML file in LiteLLM's own format, plus a section `pointsman:`. `pointsman check FILE` reports every problem of a file and
of the files that it includes at once: line, key, what is wrong, how to mend it. `pointsman init` writes a file from the
provider keys and local servers that it finds. The file is only ever read: LiteLLM is given an effective copy in a private
directory.

## The section `pointsman:`

A variable overrides the file: `{prefix}SHUTDOWN__GRACE=5`. A name between two `__` is found without regard to case, and `_`
meets `-` too; a mapping may be given whole, as JSON; `null` clears an optional setting. A relative path counts from the file
that it stands in.

| Setting | Type | Default | Meaning |
|-|-|-|-|
"""

_LLMROUTER = """
## `router_settings.routing_strategy`

Accepted as users of LLMRouter's gateways write it: it becomes `pointsman.strategies.<name>` and `pointsman.routing.default`.
Served in this version: {served}. Every other `routing_strategy` is LiteLLM's own and is left to it.

| `routing_strategy_args` | becomes |
|-|-|
"""

_DEFAULTS = """
## What LiteLLM is given where your file is silent

Your value holds, except where the table says *always*. Every deployment without a `model_info.id` gets one, made of its name
and parameters as written, so it survives edits of other entries and rotated keys. Includes are merged into the copy. Where a
model group has two or more deployments, or fallbacks, a deployment that fails twice rests for `cooldown_time`
(`model_info.allowed_fails`).

| Setting | Value | Reason |
|-|-|-|
"""

_ENVIRONMENT = """
## Environment of LiteLLM's processes

Set unless you set them.

| Variable | Value | Reason |
|-|-|-|
"""

_MOCK = """
## Models that pretend: `mock/<anything>`

`litellm_params.mock` says how such a deployment behaves. A caller may send `mock` in the body, for that one request.

| Setting | Type | Default | Meaning |
|-|-|-|-|
"""

_BECOMES = {
    "model_path": "`source`: a pointer (.json) or bundle (.zip), as path, `file://` or `s3://` URL. A pickle is refused.",
    "model_s3_bucket": "`source`, with `model_s3_key`; both or none.",
    "model_s3_key": "`source`: key of the pointer (.json), or of a bundle (.zip), which is then taken as immutable.",
}


def configuration_page() -> str:
    """The whole page."""
    lines = [_HEAD.format(prefix=ENVIRONMENT_PREFIX)]
    lines += settings_rows(PointsmanSettings, "pointsman")
    served = ", ".join(f"`{entry.name}`" for entry in CATALOGUE.values() if entry.broken is None)
    lines.append(_LLMROUTER.format(served=served))
    lines += [f"| `{name}` | {_BECOMES.get(name, f'`{name}`.')} |\n" for name in sorted(LLMROUTER_ARGUMENTS)]
    lines.append(_DEFAULTS)
    for item in DEFAULTS:
        value = f"`{json.dumps(item.value)}`" + (", *always*" if item.enforced else "")
        lines.append(f"| `{item.section}.{item.key}` | {value} | {item.reason} |\n")
    lines.append(_ENVIRONMENT)
    lines += [f"| `{item.name}` | `{item.value}` | {item.reason} |\n" for item in ENVIRONMENT]
    lines.append(_MOCK)
    lines += settings_rows(MockSettings, "mock")
    return "".join(lines)


def settings_rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """One table row for each setting, nested ones after their section."""
    for name, info in model.model_fields.items():
        path = f"{prefix}.{name}"
        inner, named = _inner(info.annotation)
        shown = "mapping" if inner is not None else _type(info.annotation)
        default = "" if inner is not None else _default(info)
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| `{path}` | {shown} | {default} | {meaning} |\n"
        if inner is not None:
            yield from settings_rows(inner, f"{path}.<name>" if named else path)


def _bare(annotation: Any) -> Any:
    if hasattr(annotation, "__metadata__"):
        return get_args(annotation)[0]
    if get_origin(annotation) in {Union, types.UnionType}:
        rest = [part for part in get_args(annotation) if part is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    bare = _bare(annotation)
    named = get_origin(bare) is dict
    if named:
        bare = _bare(get_args(bare)[1])
    return (bare, named) if isinstance(bare, type) and issubclass(bare, BaseModel) else (None, named)


def _type(annotation: Any) -> str:
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    bare = _bare(annotation)
    if get_origin(bare) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(bare))
    if get_origin(bare) is Annotated:
        return _type(get_args(bare)[0])
    if get_origin(bare) in {Union, types.UnionType}:
        return " or ".join(map(_type, get_args(bare)))
    return "mapping" if get_origin(bare) is dict else words.get(bare, str(bare))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return "none" if value is None or value is PydanticUndefined else f"`{json.dumps(value)}`"
