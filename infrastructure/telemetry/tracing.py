"""Spans: what was done for a request, and how long it took.

Spans are recorded here and not by the SDK's tracer. An error is to be kept even where its trace is not sampled, so each
span is recorded, sampled or not: that takes 1 µs here, and 12 there.
"""

from __future__ import annotations

import random
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from types import TracebackType
from typing import Final, Self

from application.ports import Conflict, MailRequest
from infrastructure.telemetry.trace_context import DOING, TRACEPARENT_LENGTH, is_context, is_sampled, trace_id_of

Value = str | int

MOST_KEPT: Final = 1024
"""Traces in which something failed lately, as far as a process remembers them."""


class Kind(IntEnum):
    """A span's kind, as OTLP numbers it."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Span:
    """One thing that was done; ends with the block that it is used for, or by `end`.

    Attributes:
        attributes: what is not on the list in `infrastructure.telemetry.encoding` is never exported.
        links: contexts of spans of other traces.
        began, ended: nanoseconds since 1970.
        error: a class of errors, in a word; None: it succeeded.
    """

    __slots__ = (
        "_tracing",
        "attributes",
        "began",
        "ended",
        "error",
        "kind",
        "links",
        "name",
        "parent_id",
        "sampled",
        "span_id",
        "state",
        "trace_id",
    )

    def __init__(
        self,
        tracing: Tracing,
        name: str,
        kind: Kind,
        parent: str | None,
        attributes: dict[str, Value],
        links: Sequence[str],
    ) -> None:
        self._tracing = tracing
        self.name = name
        self.kind = kind
        if parent is None or not is_context(parent):
            number = _random_trace()
            self.trace_id = f"{number:032x}"
            self.parent_id = self.state = ""
            self.sampled = tracing.samples(number)
        else:
            self.trace_id, self.parent_id = parent[3:35], parent[36:52]
            self.state = parent[TRACEPARENT_LENGTH:]
            self.sampled = is_sampled(parent)
        self.span_id = f"{_random_span() or 1:016x}"
        self.attributes = attributes
        self.links = [link for link in links if is_context(link)]
        self.error: str | None = None
        self.ended = 0
        self.began = time.time_ns()

    @property
    def trace(self) -> str:
        """The context in which what follows from it continues the trace."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self._is_kept else '00'}{self.state}"

    def fail(self, error: str) -> None:
        self.error = error
        self._tracing.keep(self.trace_id)

    def end(self) -> None:
        """Export it, if it is to be kept."""
        self.ended = time.time_ns()
        if self._is_kept:
            self._tracing.put(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Somebody who went away, or was faster, is no failure.
        if kind is not None and self.error is None and not issubclass(kind, (CancelledError, Conflict)):
            self.fail(kind.__name__)
        self.end()

    @property
    def _is_kept(self) -> bool:
        return self.sampled or self._tracing.is_kept(self.trace_id)


class Tracing:
    """Makes the spans of a process.

    A trace is sampled or not from its first span on (parent-based). Once something in it has failed, it is kept from
    there on: the failed span, those that are still open around it, and all that follows from what they recorded.

    Attributes:
        put: takes a span that has ended and is to be exported. Must not wait.
    """

    def __init__(self, put: Callable[[Span], None], *, ratio: float = 1.0) -> None:
        """
        Args:
            ratio: of the traces that begin here, how many are sampled.
        """
        # Only where it is used: the SDK is a twentieth of a process's start (our measurement).
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415

        self.put = put
        self._bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        self._kept: dict[str, None] = {}

    def span(
        self,
        name: str,
        *,
        parent: str | None,
        kind: Kind = Kind.INTERNAL,
        attributes: dict[str, Value] | None = None,
        links: Sequence[str] = (),
    ) -> Span:
        """Begin a span, of a new trace if there is no parent.

        Args:
            name: one of few; ids are attributes.
        """
        return Span(self, name, kind, parent, {} if attributes is None else attributes, links)

    def span_after(self, before: str | None, name: str, *, attributes: dict[str, Value]) -> Span:
        """Begin a span of a new trace that is linked to an earlier one, and sampled if that is."""
        span = self.span(name, parent=None, attributes=attributes, links=() if before is None else (before,))
        if span.links:
            span.sampled = is_sampled(span.links[0])
        return span

    def samples(self, trace_id: int) -> bool:
        """Is a trace that begins with this id sampled? Decided as other services with OpenTelemetry do."""
        return trace_id & _SAMPLED_BY < self._bound

    def keep(self, trace_id: str) -> None:
        """Something in this trace has failed."""
        self._kept[trace_id] = None
        if len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def is_kept(self, trace_id: str) -> bool:
        return trace_id in self._kept

    def kept(self, trace: str) -> str:
        """The context, marked as sampled if something in its trace has failed."""
        if is_context(trace) and not is_sampled(trace) and trace_id_of(trace) in self._kept:
            return f"{trace[:53]}01{trace[TRACEPARENT_LENGTH:]}"
        return trace


_SAMPLED_BY: Final = (1 << 64) - 1
"""The part of a trace id by which it is sampled."""

_random_trace = partial(random.getrandbits, 128)
_random_span = partial(random.getrandbits, 64)


def mail_attributes(request: MailRequest) -> dict[str, Value]:
    """Which mail a span is about."""
    return {
        "registrar.correlation_id": str(request.correlation_id),
        "registrar.registration_id": str(request.registration_id),
        "registrar.position": request.position or 0,
    }


Deliver = Callable[[MailRequest], Awaitable[None]]


def traced(
    tracing: Tracing | None,
    act: Deliver,
    name: str,
    *,
    kind: Kind = Kind.INTERNAL,
    attributes: Callable[[MailRequest], Mapping[str, Value]] = mail_attributes,
    is_linked: bool = False,
) -> Deliver:
    """Wrap what is done with a mail's request in a span each, in whose context it goes on.

    Args:
        is_linked: the span is linked to what it continues, too.
    """
    if tracing is None:
        return act

    async def act_traced(request: MailRequest) -> None:
        links = (request.trace,) if is_linked and request.trace is not None else ()
        with tracing.span(
            name, parent=request.trace, kind=kind, attributes={**attributes(request)}, links=links
        ) as span:
            request = replace(request, trace=span.trace)
            DOING.set(request)
            await act(request)

    return act_traced
