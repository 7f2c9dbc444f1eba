"""Spans of the mail saga's decisions.

A decision on an event continues the event's trace. One at a deadline, minutes or hours later, begins a trace of its
own: it is linked to the decision that set the date, and in that one's trace a span without a length is linked to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID

from application.ports import Context
from infrastructure.telemetry.tracing import Span, Tracing, Value


class Decided(Protocol):
    """What a step does for one registration.

    Attributes:
        happened: what is decided on, with the context of what follows from it.
        rows: the events of it; none at a deadline.
        has_effect: whether something follows.
        failure: why nothing could be decided, in a word.
    """

    registration_id: UUID
    happened: list[tuple[Any, Context]]
    failure: str | None

    @property
    def rows(self) -> Collection[object]: ...

    @property
    def has_effect(self) -> bool: ...


@contextmanager
def deciding(tracing: Tracing | None, registrations: Collection[Decided]) -> Iterator[None]:
    """For a step: what follows from its decisions continues their spans, which end with it.

    A decision that nothing follows from leaves no span, unless it failed.
    """
    if tracing is None:
        yield
        return
    steps = [_Step(tracing, one) for one in registrations]
    try:
        yield
    except asyncio.CancelledError:  # at a stop: what was decided may be in the log all the same
        for step in steps:
            step.end(None)
        raise
    except Exception as error:
        for step in steps:
            step.end(type(error).__name__)
        raise
    for step in steps:
        step.end(None)


class _Step:
    """The spans of one registration in a step: one for each trace."""

    def __init__(self, tracing: Tracing, decided: Decided) -> None:
        self._tracing = tracing
        self._decided = decided
        self._spans: dict[str | None, Span] = {}
        for number, (event, context) in enumerate(decided.happened):
            span = self._spans.get(context.trace)
            if span is None:
                span = self._spans[context.trace] = self._begin(event, context)
            decided.happened[number] = event, replace(context, trace=span.trace)

    def _begin(self, event: Any, context: Context) -> Span:
        attributes: dict[str, Value] = {
            "registrar.registration_id": str(self._decided.registration_id),
            "registrar.correlation_id": str(context.correlation_id),
            "registrar.position": context.causation_position or 0,
        }
        if self._decided.rows:
            attributes["registrar.event"] = event.TOPIC
            return self._tracing.span("mail-saga decide", parent=context.trace, attributes=attributes)
        return self._tracing.span_after(context.trace, "mail-saga decide", attributes=attributes)

    def end(self, failure: str | None) -> None:
        failure = failure or self._decided.failure
        if failure is None and not self._decided.has_effect:
            return
        for before, span in self._spans.items():
            if failure is not None:
                span.fail(failure)
            span.end()
            if before is not None and not self._decided.rows:
                attributes = {**span.attributes}
                self._tracing.span(
                    "mail-saga deadline", parent=before, attributes=attributes, links=(span.trace,)
                ).end()
