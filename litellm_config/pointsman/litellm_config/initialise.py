"""`pointsman init`: a configuration to start from, written from what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from pointsman.litellm_config.detect import Detected

__all__ = ["render_init"]

_HEAD = """\
# Written by `pointsman init`. LiteLLM's own format, plus one section of Pointsman's.
# `pointsman check` says what is wrong in it; `pointsman up --config` runs it.

"""

_MOCK = """\
  # No provider key and no local server was found, so here are two models that only pretend:
  # they answer at once, cost nothing and need no network.
  - model_name: auto
    litellm_params: {model: mock/cheap, mock: {answer: "{model} says: {prompt}"}}
  - model_name: auto
    litellm_params: {model: mock/strong, mock: {answer: "{model} says: {prompt}"}}
"""

_TAIL = """
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY

# pointsman:
#   strategies:
#     my-router:                          # a learned strategy picks among deployments of one model_name
#       source: /srv/router/current.json  # or s3://bucket/key; polled, verified and swapped while running
#       trusted_keys: {}                  # key id: base64 of the Ed25519 public key
#   routing: {default: my-router}
"""


def render_init(detected: Iterable[Detected]) -> str:
    """A commented YAML file with the models found, or mock ones when nothing was; it passes `check` in the same environment."""
    detected = [item for item in detected if item.entries]
    lines = ["model_list:\n"]
    taken: set[str] = set()
    for item in detected:
        fresh = [entry for entry in item.entries if entry["model_name"] not in taken]
        if fresh:
            lines.append(f"  # {item.name}: found by {item.where}\n")
        for entry in fresh:
            taken.add(entry["model_name"])
            lines.append(_entry(entry))
    if not taken:
        lines.append(_MOCK)
    return _HEAD + "".join(lines) + _TAIL


def _entry(entry: Mapping[str, Any]) -> str:
    text = f"  - model_name: {_scalar(entry['model_name'])}\n    litellm_params:\n"
    return text + "".join(f"      {key}: {_scalar(value)}\n" for key, value in entry["litellm_params"].items())


def _scalar(value: Any) -> str:
    """Plain where that is safe in YAML, else quoted and escaped as YAML wants it (JSON's surrogate pairs are no YAML)."""
    text = str(value)
    plain = text.replace("/", "a").replace("_", "a").replace("-", "a").replace(".", "a")
    if plain.isascii() and plain.isalnum() and text[0].isalpha() and "/" in text:
        return text
    return yaml.dump(text, Dumper=yaml.SafeDumper, default_style='"', allow_unicode=True, width=1_000_000).strip()
