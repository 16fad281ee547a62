"""The tables that `bench.strategies` prints."""

from __future__ import annotations

from typing import Any

from bench.strategies_data import ORDERS

__all__ = ["BESIDE", "UNUSED", "markdown"]

BESIDE = {
    "linear": "LLMRouter has none",
    "ensemble": "LLMRouter has none",
    "routerdc": "not run: wants mDeBERTa's weights",
}
"""Why there is nothing of LLMRouter's to compare with."""
UNUSED = {"personalized": "not run: these data know no users"}
"""Kinds that are not measured, and why."""


def at(found: dict[str, Any]) -> str:
    """Quality, and US dollars for a thousand prompts."""
    return f"{found['quality']:.3f} at {1000 * found['cost']:.3f}"


def short(value: float) -> str:
    """A figure with as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def markdown(results: list[dict[str, Any]]) -> str:
    """The tables of docs/strategies.md."""
    lines: list[str] = []
    for result in results:
        sizes = f"{result['train']} prompts to learn from, {result['held']} held out, {result['models']} models"
        lines += [f"**{result['name']}**: {sizes}.", ""]
        lines += ["| | Quality | $ for 1000 |", "|-|-|-|"]
        lines += [f"| {name} | {quality:.3f} | {1000 * cost:.3f} |" for name, (quality, cost) in result["baselines"].items()]
        lines += [
            "",
            "| Strategy | Ours | LLMRouter, alphabetical | cheapest first | best first | Ours at its best one's cost |",
        ]
        lines[-1] += " Less its best one | Cost, ours / its |"
        lines.append("|-|-|-|-|-|-|-|-|")
        for row in result["rows"]:
            cells = [f"`{row['kind']}`", at(row)]
            cells += [at(row["upstream"][order]) if order in row["upstream"] else "" for order in ORDERS]
            against = row.get("against")
            if against:
                mean, low, high = against["difference"]
                share, least, most = against["cost_ratio"]
                cells += [at(against), f"{mean:+.3f} ({low:+.3f} to {high:+.3f})", f"{share:.2f} ({least:.2f} to {most:.2f})"]
            else:
                cells += ["", "", ""]
                cells[2] = BESIDE.get(row["kind"], "")
            lines.append("| " + " | ".join(cells) + " |")
        lines += [f"| `{kind}` | {why} | | | | | | |" for kind, why in UNUSED.items()]
        lines.append("")
        if any("us" in row for row in result["rows"]):
            lines.append("| Decision, µs | p50 | p99 | with encoding p50 | p99 |")
            lines[-1] += " LLMRouter's `route_single` p50 | p99 | p50, its / ours |"
            lines.append("|-|-|-|-|-|-|-|-|")
        for row in result["rows"]:
            if "us" in row:
                cells = [f"`{row['kind']}`", *map(short, (*row["us"], *row["us_with_text"]))]
                cells += [*map(short, row["upstream_us"]), short(row["ratio"])] if "ratio" in row else ["", "", ""]
                lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    encoders = results[0]["encoders"]
    if encoders:
        lines += ["| Encoder, µs a prompt | p50 | p99 |", "|-|-|-|"]
    lines += [f"| `{name}` | {short(p50)} | {short(p99)} |" for name, (p50, p99) in encoders.items()]
    return "\n".join(lines) + "\n"
