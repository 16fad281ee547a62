"""Every strategy that a configuration may name: what it is called, how it is served, what it needs, what it learned from.

The one table. The configuration's check, `pointsman strategies list` and docs/strategies.md are made from it. It imports
nothing, so that checking a file costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

__all__ = ["CATALOGUE", "PREFIX", "Entry", "Serving", "entry_of"]

PREFIX = "llmrouter-"
"""Before the names of LLMRouter's strategies, as users of its gateways write them."""

Serving: TypeAlias = Literal["bundle", "cascade", "worker", "plugin"]
"""`bundle`: in the gateway's workers, from a bundle. `cascade`: calls the gateway's own models. `worker`: LLMRouter itself,
in a process of its own. `plugin`: code that the operator installed or signed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One strategy.

    Attributes:
        kind: what manifests and settings call it; the name in `routing_strategy` is `llmrouter-<kind>` for LLMRouter's.
        llmrouter: LLMRouter's class, or None for ours.
        serving: see `Serving`.
        learned_from: what it is trained on; empty: nothing.
        needs: what it wants at run time.
        upstream: what is known of LLMRouter's own implementation (release 0.4.0, measured), where that matters to a user.
        broken: why LLMRouter's own cannot run, or None. Then a `worker` strategy is refused with this reason.
    """

    kind: str
    llmrouter: str | None
    serving: Serving
    learned_from: str
    needs: str
    upstream: str = ""
    broken: str | None = None

    @property
    def name(self) -> str:
        """As `routing_strategy` names it."""
        return f"{PREFIX}{self.kind}" if self.llmrouter is not None else self.kind


_SCORES = "a score for each prompt and model"
_TIES = "its labels take the first of equal models, so the order of rows decides"

CATALOGUE: Mapping[str, Entry] = MappingProxyType(
    {
        entry.kind: entry
        for entry in (
            Entry("knn", "KNNRouter", "bundle", _SCORES, "a bundle", _TIES),
            Entry("svm", "SVMRouter", "bundle", _SCORES, "a bundle", _TIES),
            Entry("mlp", "MLPRouter", "bundle", _SCORES, "a bundle", _TIES),
            Entry("mf", "MFRouter", "bundle", _SCORES, "a bundle", _TIES),
            Entry("elo", "EloRouter", "bundle", _SCORES, "a bundle", _TIES),
            Entry(
                "hybrid",
                "HybridLLMRouter",
                "bundle",
                _SCORES,
                "a bundle of two models",
                "its pair is taken by size, whatever they score",
            ),
            Entry(
                "graph",
                "GraphRouter",
                "bundle",
                _SCORES,
                "a bundle",
                "needs its whole training set at run time; draws features of models anew at each start if none are given",
            ),
            Entry("routerdc", "DCRouter", "bundle", _SCORES, "a bundle", "wants mDeBERTa's weights; 594 ms a query"),
            Entry(
                "personalized",
                "PersonalizedRouter",
                "bundle",
                _SCORES + " and user",
                "a bundle; `user` in the request",
                "users are numbers; one that it does not know is taken for the nearest number; features of models are a pickle",
            ),
            Entry("smallest", "SmallestLLM", "bundle", "", "a bundle, made from `llm_data`'s sizes"),
            Entry("largest", "LargestLLM", "bundle", "", "a bundle, made from `llm_data`'s sizes"),
            Entry("automix", "AutomixRouter", "cascade", "verified answers (threshold)", "two or more models of the gateway"),
            Entry(
                "knn-multiround",
                "KNNMultiRoundRouter",
                "cascade",
                _SCORES,
                "a kNN bundle; models of the gateway",
                "its wheel ships no prompts, so it cannot be constructed; rebuilt here with prompts of ours",
            ),
            Entry(
                "llm-multiround",
                "LLMMultiRoundRouter",
                "cascade",
                "",
                "models of the gateway",
                "its wheel ships no prompts, so it cannot be constructed; rebuilt here with prompts of ours",
            ),
            Entry(
                "causallm",
                "CausalLMRouter",
                "worker",
                "labelled prompts (LoRA)",
                "`pointsman[llmrouter]`, vLLM, a GPU",
                f"{_TIES}; runs the code that lies beside the model; text that names no model counts as the first one",
            ),
            Entry(
                "router-r1",
                "RouterR1",
                "worker",
                "",
                "`pointsman[llmrouter]`, vLLM 0.6.3, a GPU",
                broken="RouterR1 of LLMRouter 0.4.0 names no model: it writes an answer itself, loads its weights anew for "
                "each query, and calls providers past the gateway with a key of its own",
            ),
            Entry(
                "gmt",
                "GMTRouter",
                "worker",
                "conversations of users",
                "`pointsman[llmrouter]`",
                broken="GMTRouter of LLMRouter 0.4.0 cannot be constructed: `MetaRouter.__init__()` lacks the argument 'model'",
            ),
            Entry(
                "tsrouter",
                "TSRouter",
                "worker",
                "labelled prompts",
                "`pointsman[llmrouter]`, vLLM, a GPU, a checkout of TSRouter",
                broken="TSRouter of LLMRouter 0.4.0 imports from a checkout of another repository that its wheel does not ship",
            ),
            Entry("custom", "", "plugin", "whatever it likes", "an installed entry point, or a signed wheel"),
            Entry("linear", None, "bundle", _SCORES, "a bundle"),
            Entry("ensemble", None, "bundle", _SCORES, "a bundle"),
        )
    }
)
"""By kind."""


def entry_of(name: str) -> Entry | None:
    """The entry of a `routing_strategy` name (`llmrouter-knn`, `linear`), or None."""
    found = CATALOGUE.get(name.removeprefix(PREFIX))
    return found if found is not None and found.name == name else None
