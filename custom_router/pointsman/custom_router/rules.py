"""Embeddings by rule: which deployment embeds a text of this length, in this script."""

from __future__ import annotations

from collections.abc import Sequence

from pointsman.custom_router.request import Candidate
from pointsman.custom_router.text import estimate_tokens, is_latin
from pointsman.policy_settings import EmbeddingRule

__all__ = ["by_rule", "measure"]

MAX_TEXTS = 10_000


def measure(given: object) -> tuple[int, bool]:
    """The longest text's tokens (see `estimate_tokens`; token ids are counted), and whether the texts are in Latin script.

    Args:
        given: `input` of an embeddings request: a text, texts, token ids, or lists of token ids.
    """
    texts = [given] if isinstance(given, str) or _is_ids(given) else given
    if not isinstance(texts, Sequence):
        return 0, True
    texts = texts[:MAX_TEXTS]
    longest = max((len(one) if _is_ids(one) else estimate_tokens(one) for one in texts), default=0)
    return longest, is_latin("\n".join(one[:200] for one in texts if isinstance(one, str)))


def _is_ids(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], int)


def by_rule(
    rules: Sequence[EmbeddingRule], given: object, candidates: Sequence[Candidate]
) -> tuple[str, tuple[str, ...]] | None:
    """The first rule that holds: the deployment that it names, and the ids of candidates that are it (none: it is away).

    None when no rule holds.
    """
    longest, latin = measure(given)
    for rule in rules:
        if rule.over_tokens is not None and longest <= rule.over_tokens:
            continue
        if rule.script is not None and latin != (rule.script == "latin"):
            continue
        ids = sorted(one.deployment_id for one in candidates if rule.deployment in (one.deployment_id, one.model))
        return rule.deployment, tuple(ids)
    return None
