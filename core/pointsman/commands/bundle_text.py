"""How `pointsman strategies list` and `inspect` look to a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pointsman.strategies.catalogue import Entry

__all__ = ["inspection", "listing"]


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as aligned text; the first is the head."""
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def listing(entries: Iterable[Entry]) -> str:
    """The catalogue."""
    rows = [("NAME", "SERVED AS", "NEEDS", "LEARNED FROM")]
    notes = []
    for entry in entries:
        rows.append((entry.name, "not served" if entry.broken else entry.serving, entry.needs, entry.learned_from or "nothing"))
        if note := entry.broken or entry.upstream:
            notes.append(f"{entry.name}: {note}")
    return "\n".join([columns(rows), "", "LLMRouter's own implementation:", *(f"  {note}" for note in notes)])


def inspection(found: Mapping[str, Any]) -> str:
    """One bundle, from `describe`."""
    manifest = found["manifest"]
    encoder, provenance, evaluation = manifest["encoder"], manifest["provenance"], manifest["evaluation"]
    pairs = [
        ("name", manifest["name"]),
        ("version", manifest["version"]),
        ("kind", manifest["kind"]),
        ("encoder", f"{encoder['kind']}, {encoder['dimensions']} dimensions"),
        ("models", ", ".join(manifest["models"])),
        ("size", f"{found['size']} bytes"),
        ("sha256", found["sha256"]),
        ("data", f"{provenance['data_sha256'] or 'unknown'}, {provenance['rows']} rows"),
        ("code", f"pointsman {provenance['code_version']}, seed {provenance['seed']}"),
        ("probes", f"{len(manifest['probes']['items'])}, within {manifest['probes']['tolerance']:g}"),
    ]
    pairs += [(key, _short(value)) for key, value in manifest["params"].items()]
    if "pointer" in found:
        pointer = found["pointer"]
        pairs.append(
            ("pointer", f"sequence {pointer['sequence']}, key {pointer['key_id'] or 'none'}, {pointer['published_at']}")
        )
    lines = [
        columns(pairs),
        "",
        columns([("FILE", "ARRAY", "TYPE", "SHAPE"), *_arrays(found["files"])]) if found["files"] else "",
    ]
    lines += ["", *(_evaluation(evaluation) if evaluation else ["not evaluated"])]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _arrays(files: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    for name, entry in files.items():
        if "arrays" not in entry:
            yield name, "", "", f"{entry['size']} bytes"
        for key, (dtype, *shape) in entry.get("arrays", {}).items():
            yield name, key, dtype, " x ".join(map(str, shape)) or "1"


def _evaluation(evaluation: Mapping[str, Any]) -> list[str]:
    rows = [("HELD OUT", "QUALITY", "95%", "COST OF 1000")]
    for result in evaluation["table"]:
        name = result["name"] + (f" ({result['model']})" if result["model"] else "")
        cost = "" if result["cost"] is None else f"${result['cost']:.4f}"
        rows.append((name, f"{result['quality']:.4f}", f"{result['low']:.4f} to {result['high']:.4f}", cost))
    mean, low, high = evaluation["difference"]
    lines = [
        f"{evaluation['rows']} prompts in {evaluation['groups']} groups; {evaluation['split']}",
        columns(rows),
        f"strategy - best single: {mean:+.4f} ({low:+.4f} to {high:+.4f})",
    ]
    return lines + [f"note: {note}" for note in evaluation["notes"]]
