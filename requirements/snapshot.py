"""A picture of the installed LiteLLM as far as this project meets it, and what differs between two of them.

    python -m requirements.snapshot > old.json         in an environment that has LiteLLM; takes some seconds
    python -m requirements.snapshot --diff old.json new.json

It is made in a process of its own, for a module once imported stays what it was.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from requirements.touched import TOUCHED

__all__ = ["Snapshot", "differences", "main", "report", "schema_models", "signature", "snapshot"]

Snapshot = dict[str, dict[str, str]]
"""Section -> name -> what it is like, as text."""

SECTIONS = {
    "versions": "Packages",
    "hooks": "What we reach in LiteLLM",
    "routes": "Routes",
    "columns": "Tables and columns (schema.prisma)",
    "migrations": "Migrations",
    "settings": "Settings keys",
    "requirements": "What its proxy requires",
}
GONE = "(gone)"
_MODEL = re.compile(r"^model\s+(\w+)\s*\{(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s+(\S.*?)\s*(?://.*)?$")
_REFERENCE = re.compile(r"#/components/schemas/([^\"]+)")
_SHOWN = 200


def snapshot() -> Snapshot:
    """Look at the LiteLLM that is installed here."""
    # As text into the environment, before the import that would otherwise ask the internet for prices.
    os.environ.update(
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True", "LITELLM_LOG": "ERROR"}
    )
    proxy = importlib.import_module("litellm.proxy.proxy_server")
    types = importlib.import_module("litellm.proxy._types")
    litellm = importlib.import_module("litellm")
    schema = Path(str(proxy.__file__)).with_name("schema.prisma").read_text(encoding="utf-8")
    settings = {
        f"general_settings.{name}": str(field.annotation) for name, field in types.ConfigGeneralSettings.model_fields.items()
    }
    settings |= {
        f"router_settings.{name}": _plain(str(parameter))
        for name, parameter in inspect.signature(litellm.Router.__init__).parameters.items()
        if name != "self"
    }
    settings |= {
        f"litellm_settings.{name}": type(value).__name__
        for name, value in vars(litellm).items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str | list | dict | type(None))
    }
    return {
        "versions": {name: version(name) for name in ("litellm", "litellm-proxy-extras")},
        "hooks": {name: signature(name) for name in TOUCHED},
        "routes": _routes(proxy.app),
        "columns": schema_models(schema),
        "migrations": _migrations(),
        "settings": settings,
        "requirements": {
            line.partition(";")[0].strip(): ""
            for line in requires("litellm") or []
            if "extra ==" not in line or "'proxy'" in line
        },
    }


def signature(name: str) -> str:
    """How one thing of `TOUCHED` is called, or `(gone)`."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return GONE
    fields = getattr(found, "model_fields", None)
    if inspect.isclass(found) and fields is not None:
        return ", ".join(f"{field}{'' if info.is_required() else '?'}" for field, info in fields.items())
    try:
        return _plain(str(inspect.signature(found)))
    except (TypeError, ValueError):
        return type(found).__name__


def schema_models(text: str) -> dict[str, str]:
    """`Model.field` -> type and attributes, of a schema.prisma."""
    fields: dict[str, str] = {}
    for model, body in _MODEL.findall(text):
        for line in body.splitlines():
            match = _FIELD.match(line)
            if match and not line.strip().startswith(("@@", "//")):
                fields[f"{model}.{match[1]}"] = " ".join(match[2].split())
    return fields


def differences(old: Snapshot, new: Snapshot) -> dict[str, dict[str, tuple[str | None, str | None]]]:
    """Section -> name -> (before, after); None: was not, or is no more. Empty sections are left out."""
    found = {}
    for section in SECTIONS:
        one, other = old.get(section, {}), new.get(section, {})
        changed = {
            name: (one.get(name), other.get(name))
            for name in sorted(one.keys() | other.keys())
            if one.get(name) != other.get(name)
        }
        if changed:
            found[section] = changed
    return found


def report(old: Snapshot, new: Snapshot) -> str:
    """The differences as Markdown; what we reach and what is gone comes first."""
    found = differences(old, new)
    title = f"# LiteLLM {old['versions'].get('litellm')} to {new['versions'].get('litellm')}\n"
    if not found:
        return title + "\nNothing changes.\n"
    lines = [title]
    for section, heading in SECTIONS.items():
        changed = found.get(section, {})
        if not changed:
            lines.append(f"## {heading}\n\nNo change.\n")
            continue
        gone = [name for name, (_, after) in changed.items() if after in (None, GONE)]
        new_ones = [name for name, (before, _) in changed.items() if before in (None, GONE)]
        lines.append(
            f"## {heading}\n\n{len(new_ones)} new, {len(gone)} gone, {len(changed) - len(new_ones) - len(gone)} changed.\n"
        )
        for name, (before, after) in changed.items():
            if after in (None, GONE):
                lines.append(f"- gone: `{name}` {_why(section, name)}".rstrip())
            elif before in (None, GONE):
                lines.append(f"- new: `{name}` {_cut(after or '')}".rstrip())
            else:
                lines.append(f"- changed: `{name}` {_why(section, name)}".rstrip() + _change(before or "", after or ""))
        lines.append("")
    return "\n".join(lines)


def _change(before: str, after: str) -> str:
    """Both, or of long lists only what came and went."""
    if len(before) <= _SHOWN and len(after) <= _SHOWN:
        return f"\n  - was {_cut(before)}\n  - is {_cut(after)}"
    old, new = before.split(", "), after.split(", ")
    lost, won = [part for part in old if part not in new], [part for part in new if part not in old]
    return f"\n  - without {_cut(', '.join(lost)) or 'nothing'}\n  - with {_cut(', '.join(won)) or 'nothing'}"


def _why(section: str, name: str) -> str:
    return f"({TOUCHED[name]})" if section == "hooks" and name in TOUCHED else ""


def _cut(text: str) -> str:
    return f"`{text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}`" if text else ""


def _plain(text: str) -> str:
    """Without addresses of objects, which differ from run to run."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _routes(app: Any) -> dict[str, str]:
    """`GET /path` -> its parameters and the schema of its body; and what has no schema (pages, mounts, sockets)."""
    found = {f"{type(route).__name__} {route.path}": "" for route in app.routes if getattr(route, "path", None)}
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            names = [one.get("name") or one.get("$ref", "?") for one in operation.get("parameters", [])]
            body = json.dumps(operation.get("requestBody", {}).get("content", {}), sort_keys=True)
            found[f"{method.upper()} {path}"] = f"({', '.join(names)}) {' '.join(_REFERENCE.findall(body))}".strip()
    return found


def _migrations() -> dict[str, str]:
    import hashlib

    package = importlib.import_module("litellm_proxy_extras")
    folder = Path(str(package.__file__)).parent / "migrations"
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*/migration.sql"))}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m requirements.snapshot", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--diff", nargs=2, metavar=("OLD", "NEW"), type=Path, help="compare two pictures")
    chosen = parser.parse_args(arguments)
    if chosen.diff:
        print(report(*(json.loads(path.read_text(encoding="utf-8")) for path in chosen.diff)))
        return 0
    real, sys.stdout = sys.stdout, sys.stderr  # what libraries print at import is not the picture
    json.dump(snapshot(), real, indent=1, sort_keys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
