"""THE table of telemetry: every span, attribute, metric and log field of ours, declared once.

docs/telemetry.md is generated from it, and tests hold what is really emitted against it. A name of ours begins with
`pointsman.` (`pointsman_` in a scrape); every other name is one of OpenTelemetry's semantic conventions, and a test looks it
up there. Nothing here may carry a prompt, an answer, a key or a secret.

Adding a row is all that a new name needs; using one without a row fails a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from pointsman.callbacks.log_fields import LOG_FIELDS, Field
from pointsman.callbacks.metric_names import METRICS, Metric

__all__ = [
    "ATTRIBUTES",
    "LOG_FIELDS",
    "METRICS",
    "SPANS",
    "Attribute",
    "Field",
    "Metric",
    "Span",
    "Type",
]

Type = Literal["string", "int", "double", "boolean", "string[]", "double[]"]
"""OpenTelemetry's types of attributes, as its registry spells them."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """Of a span or of a resource.

    Attributes:
        name: dotted.
        type: see `Type`.
        meaning: one sentence.
    """

    name: str
    type: Type
    meaning: str

    @property
    def ours(self) -> bool:
        """Whether we coined it; else it is of the semantic conventions."""
        return self.name.startswith("pointsman.")


@dataclass(frozen=True, slots=True)
class Span:
    """A span that we make.

    Attributes:
        name: as it is sent, the same for every request.
        kind: OpenTelemetry's kind.
        parent: what it stands under.
        meaning: what its time covers.
        attributes: names in `ATTRIBUTES`; no other one may stand on it.
    """

    name: str
    kind: Literal["internal", "client", "server"]
    parent: str
    meaning: str
    attributes: tuple[str, ...]


Row = TypeVar("Row", Attribute, Span)


def _by_name(*rows: Row) -> Mapping[str, Row]:
    return {row.name: row for row in rows}


ATTRIBUTES: Mapping[str, Attribute] = _by_name(
    # Of a decision.
    Attribute("pointsman.decision.id", "string", "Id of the routing decision, as in `x-pointsman-decision-id`."),
    Attribute("pointsman.request.id", "string", "The request's id, as in `x-request-id`."),
    Attribute("pointsman.route.group", "string", "Model group (`model_name`) that was asked for."),
    Attribute("pointsman.strategy.name", "string", "Strategy; absent where LiteLLM's own choice held."),
    Attribute("pointsman.strategy.version", "string", "Version of its bundle."),
    Attribute("pointsman.strategy.variant", "string", "`live`, `shadow` or `canary`."),
    Attribute(
        "pointsman.route.chosen_by", "string", "Who chose it: `header`, `key`, `team`, `group`, `default`, `rule`, `session`."
    ),
    Attribute("pointsman.route.candidates", "string[]", "Deployment ids that have a score, best score first."),
    Attribute("pointsman.route.scores", "double[]", "Their scores, in the same order."),
    Attribute("pointsman.route.scale", "string", "What scores mean: `quality` or `rank`."),
    Attribute("pointsman.route.dropped", "string[]", "Deployment ids that were not considered."),
    Attribute("pointsman.route.dropped_reasons", "string[]", "Why, in the same order."),
    Attribute("pointsman.route.pick", "string", "Deployment id that was put first; absent where LiteLLM chose."),
    Attribute("pointsman.route.model", "string", "`litellm_params.model` of the pick."),
    Attribute("pointsman.route.policy", "string", "How scores became an order, as in `x-pointsman-policy`."),
    Attribute("pointsman.route.propensity", "double", "Probability with which the pick was to be picked."),
    Attribute("pointsman.route.fallback", "string", "Why the strategy did not decide, as in `x-pointsman-fallback`."),
    Attribute("pointsman.route.microseconds", "int", "Time that the decision took."),
    Attribute("pointsman.route.fell_back", "string", "Why LiteLLM went on with this group: error's class, or `unavailable`."),
    # Of the encoder.
    Attribute("pointsman.encoder.kind", "string", "Kind of the encoder, e.g. `hashing`, `minilm`, `remote`."),
    Attribute("pointsman.encoder.dimensions", "int", "Length of the vectors that it makes."),
    # Of an attempt.
    Attribute("pointsman.attempt.number", "int", "1 for the first try of the request."),
    Attribute("pointsman.attempt.outcome", "string", "`ok`, `error`, or `abandoned` where nobody told how it ended."),
    Attribute("pointsman.attempt.flaw", "string", "`malformed`, `empty`, `not_json`, `no_tool_call`: no answer of the kind."),
    Attribute("pointsman.deployment.id", "string", "LiteLLM's `model_info.id` of the deployment that was tried."),
    Attribute("pointsman.deployment.model", "string", "Its `litellm_params.model`."),
    # Of the event `pointsman.breaker` on a decision's or an attempt's span: a breaker went to another state because of it.
    Attribute("pointsman.upstream", "string", "Of the event `pointsman.breaker`: the upstream (model, base URL, region)."),
    Attribute("pointsman.breaker.before", "string", "Of the event: the state before."),
    Attribute("pointsman.breaker.state", "string", "Of the event: `closed`, `open`, `half_open`, `held_open`, `held_closed`."),
    Attribute(
        "pointsman.breaker.cause",
        "string",
        "Of the event: `failures`, `failure_rate`, `rate_limit`, `probe`, `stalled`, `manual`.",
    ),
    # Of a wait for a turn.
    Attribute("pointsman.queue.priority", "string", "Class of the request: `high`, `normal`, `low`."),
    # Of a reload.
    Attribute("pointsman.reload.generation", "int", "Generation that the workers were given; absent where nothing changed."),
    Attribute("pointsman.reload.previous_version", "string", "Version in service before."),
    # Of a training run.
    Attribute("pointsman.train.kind", "string", "Kind of strategy that is trained, e.g. `knn`."),
    Attribute("pointsman.train.rows", "int", "Rows of the data set."),
    # OpenTelemetry's own.
    Attribute("error.type", "string", "Class of the error, or its code in docs/errors.md."),
    Attribute("gen_ai.request.model", "string", "Model group that was asked for."),
    Attribute("http.response.status_code", "int", "HTTP status of the upstream's answer, where the error had one."),
)

_DECISION = ("pointsman.decision.id", "pointsman.request.id")
_BREAKER = ("pointsman.upstream", "pointsman.breaker.before", "pointsman.breaker.state", "pointsman.breaker.cause")
_STRATEGY = ("pointsman.strategy.name", "pointsman.strategy.version")

SPANS: Mapping[str, Span] = _by_name(
    Span(
        "pointsman.route",
        "internal",
        "LiteLLM's `route <group>`, one for each attempt",
        "One routing decision: filters, scores, policy.",
        (
            *_DECISION,
            *_STRATEGY,
            "pointsman.strategy.variant",
            "pointsman.route.group",
            "pointsman.route.chosen_by",
            "pointsman.route.candidates",
            "pointsman.route.scores",
            "pointsman.route.scale",
            "pointsman.route.dropped",
            "pointsman.route.dropped_reasons",
            "pointsman.route.pick",
            "pointsman.route.model",
            "pointsman.route.policy",
            "pointsman.route.propensity",
            "pointsman.route.fallback",
            "pointsman.route.microseconds",
            "pointsman.route.fell_back",
            *_BREAKER,
            "gen_ai.request.model",
        ),
    ),
    Span(
        "pointsman.encode",
        "internal",
        "`pointsman.route`",
        "Text to vector, inside of a decision.",
        (*_DECISION, "pointsman.encoder.kind", "pointsman.encoder.dimensions"),
    ),
    Span(
        "pointsman.queue",
        "internal",
        "the request's server span",
        "A request's wait for its turn in the priority queue; none where it did not have to wait and was not refused.",
        ("pointsman.request.id", "gen_ai.request.model", "pointsman.queue.priority", "error.type"),
    ),
    Span(
        "pointsman.attempt",
        "internal",
        "the request's server span",
        "One try at one deployment, from the pick to its answer (streamed: to the last chunk) or its error. An upstream's "
        "spans stand under it, where it takes part in the trace.",
        (
            *_DECISION,
            "pointsman.attempt.number",
            "pointsman.attempt.outcome",
            "pointsman.attempt.flaw",
            "pointsman.deployment.id",
            "pointsman.deployment.model",
            *_BREAKER,
            "gen_ai.request.model",
            "error.type",
            "http.response.status_code",
        ),
    ),
    Span(
        "pointsman.reload",
        "internal",
        "none: a trace of its own",
        "The supervisor took up a changed bundle, or refused it: fetch, verification, self-test.",
        (*_STRATEGY, "pointsman.reload.generation", "pointsman.reload.previous_version", "error.type"),
    ),
    Span(
        "pointsman.train",
        "internal",
        "what the variable `TRACEPARENT` names, or none",
        "One run of `pointsman mlops train`.",
        (*_STRATEGY, "pointsman.train.kind", "pointsman.train.rows", "error.type"),
    ),
)
