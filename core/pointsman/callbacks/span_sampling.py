"""Which traces are kept, decided when their request has ended: those that failed always, of the others a share.

The decision stands behind the batching of the SDK, in the thread that exports, so that it costs a request nothing but its
spans. What is held is bounded in number and age. A request is decided on as a whole, when its local root (the server span)
has ended; other requests of the same trace have roots of their own, and a share is taken by the trace id, so that all of them
fare alike. A span that ends after its root follows the root's decision.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from pointsman.callbacks.spans import SCOPE

__all__ = ["HARMLESS", "TailSampler", "failed"]

HARMLESS = frozenset({"not_text", "no_text", "continued", "only_candidate"})
"""Words of `x-pointsman-fallback` by which nothing is wrong with the strategy. One that knows none of the candidates
(`no_candidate`) is of no use where it was put, and that is wrong. The alert's rule (deploy/observability) names the same."""
_TRACE_ID_LIMIT = (1 << 64) - 1
_STATUS = ("http.response.status_code", "http.status_code")


def _is_root(span: ReadableSpan) -> bool:
    return span.parent is None or span.parent.is_remote


def failed(span: ReadableSpan) -> bool:
    """Whether the trace of this span is kept for it.

    A server span of status 5xx; an error of a call to somebody else (a provider, a database) or of a span of ours; a strategy
    that could not decide; a fallback to another group, though none was tried in the first. What the client did wrong (no key,
    bad body) is no failure of ours.
    """
    attributes = span.attributes or {}
    fallback = attributes.get("pointsman.route.fallback")
    if (fallback is not None and fallback not in HARMLESS) or "pointsman.route.fell_back" in attributes:
        return True
    if _is_root(span) and span.kind is SpanKind.SERVER:
        status = next((attributes[name] for name in _STATUS if name in attributes), None)
        if isinstance(status, int):
            return status >= 500
    if span.status.status_code is not StatusCode.ERROR:
        return False
    ours = span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE
    return _is_root(span) or ours or span.kind is SpanKind.CLIENT


@dataclass(slots=True)
class _Held:
    """Spans of one trace that wait, by their ids, and the ids of those under each: no request pays for others of its trace."""

    born: float
    spans: dict[int, ReadableSpan] = field(default_factory=dict)
    children: dict[int, dict[int, None]] = field(default_factory=dict)  # a dict is a set that keeps its order

    def add(self, span_id: int, span: ReadableSpan) -> None:
        if span_id in self.spans:
            self.remove(span_id)
        self.spans[span_id] = span
        if span.parent is not None:
            self.children.setdefault(span.parent.span_id, {})[span_id] = None

    def remove(self, span_id: int) -> None:
        parent = self.spans.pop(span_id).parent
        if parent is not None:
            siblings = self.children[parent.span_id]
            del siblings[span_id]
            if not siblings:
                del self.children[parent.span_id]

    def under(self, span_id: int) -> list[ReadableSpan]:
        """This one and all below it that wait."""
        found: dict[int, ReadableSpan] = {}
        todo = [span_id]
        while todo:
            one = todo.pop()
            if one in self.spans and one not in found:
                found[one] = self.spans[one]
                todo += self.children.get(one, ())
        return list(found.values())


class TailSampler:
    """See the module. Thread-safe.

    Args:
        ratio: share of the traces that are kept though nothing failed.
        parent: whether a remote parent's flag decides in place of `ratio`.
        max_spans: how many are held.
        max_age: seconds.
        clock: monotonic time in seconds.

    Attributes:
        kept, dropped: spans.
        forced: requests that were decided on before they had ended, for want of room or time.
    """

    def __init__(
        self, ratio: float, *, parent: bool, max_spans: int, max_age: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        self._parent, self._max_spans, self._max_age, self._clock = parent, max_spans, max_age, clock
        self._held: OrderedDict[int, _Held] = OrderedDict()  # oldest first
        self._count = 0
        self._decided: OrderedDict[int, bool] = OrderedDict()  # span id -> kept
        self._lock = threading.Lock()
        self.kept = self.dropped = self.forced = 0

    @property
    def held(self) -> int:
        """Spans that wait for their request's end."""
        return self._count

    def take(self, spans: Sequence[ReadableSpan]) -> list[ReadableSpan]:
        """Spans that have ended in; those to be exported now out."""
        out: list[ReadableSpan] = []
        with self._lock:
            now, ends = self._clock(), []
            for span in spans:
                context = span.context
                if context is None:
                    continue
                held = self._held.get(context.trace_id)
                if held is None:
                    held = self._held[context.trace_id] = _Held(now)
                self._count += context.span_id not in held.spans
                held.add(context.span_id, span)
                if _is_root(span) or (span.parent is not None and span.parent.span_id in self._decided):
                    ends.append((context.trace_id, context.span_id))
            for trace_id, span_id in ends:
                out += self._settle(trace_id, span_id)
            while self._held:
                trace_id, oldest = next(iter(self._held.items()))
                if self._count <= self._max_spans and now - oldest.born <= self._max_age:
                    break
                self.forced += 1
                out += self._decide(trace_id, list(oldest.spans.values()), None)
        return out

    def drain(self) -> list[ReadableSpan]:
        """Decide on everything that is held."""
        with self._lock:
            return [
                span
                for trace_id, held in list(self._held.items())
                for span in self._decide(trace_id, list(held.spans.values()), None)
            ]

    def _settle(self, trace_id: int, span_id: int) -> list[ReadableSpan]:
        """Decide on one request: a root, or one that came after its root, and all under it."""
        held = self._held.get(trace_id)
        if held is None or span_id not in held.spans:
            return []
        root = held.spans[span_id]
        known = self._decided.get(root.parent.span_id) if root.parent is not None and not _is_root(root) else None
        return self._decide(trace_id, held.under(span_id), known, root)

    def _decide(
        self, trace_id: int, spans: list[ReadableSpan], known: bool | None, root: ReadableSpan | None = None
    ) -> list[ReadableSpan]:
        keep = known if known is not None else any(map(failed, spans)) or self._sampled(trace_id, root)
        held = self._held[trace_id]
        for span in spans:
            if span.context is not None:
                held.remove(span.context.span_id)
                self._decided[span.context.span_id] = keep
        self._count -= len(spans)
        if not held.spans:
            del self._held[trace_id]
        while len(self._decided) > self._max_spans:
            self._decided.popitem(last=False)
        if keep:
            self.kept += len(spans)
            return spans
        self.dropped += len(spans)
        return []

    def _sampled(self, trace_id: int, root: ReadableSpan | None) -> bool:
        remote = root.parent if root is not None else None
        if self._parent and remote is not None and remote.is_remote:
            return bool(remote.trace_flags.sampled)
        return trace_id & _TRACE_ID_LIMIT < self._bound
