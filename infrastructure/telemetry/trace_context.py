"""W3C trace contexts, which lead from one span to the next, and what a task does, for the log.

A trace context is text: a `traceparent`, after it perhaps a space and a `tracestate`. It stands beside each event in
the log, so that whoever acts on an event continues its trace, in whatever process.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final, Protocol
from uuid import UUID

from domain.recorded import TRACEPARENT

# OpenTelemetry's own member of `tracestate`: the threshold and the random value of a sampling decision. Its syntax has
# no room for anything that a client might want to say; that of the others has.
_OT_MEMBER = re.compile(r"ot=(th:[0-9a-f]{1,14}(;rv:[0-9a-f]{14})?|rv:[0-9a-f]{14}(;th:[0-9a-f]{1,14})?)")

TRACEPARENT_LENGTH: Final = 55


def parse_traceparent(header: bytes | None, state: bytes | None = None) -> str | None:
    """The trace context that a caller sent, None if it is none. Of its `tracestate` only what sampling needs is kept:
    the rest is free text, and would be in the log for ever."""
    if header is None or len(header) != TRACEPARENT_LENGTH:
        return None
    text = header.decode("latin-1")
    if not TRACEPARENT.fullmatch(text):
        return None
    if state:
        members = (member.strip() for member in state.decode("latin-1").split(","))
        known = next((member for member in members if _OT_MEMBER.fullmatch(member)), None)
        if known is not None:
            return f"{text} {known}"
    return text


def headers_of_trace(trace: str | None) -> dict[str, str]:
    """The headers by which a message continues it."""
    if trace is None or not is_context(trace):
        return {}
    headers = {"traceparent": trace[:TRACEPARENT_LENGTH]}
    if len(trace) > TRACEPARENT_LENGTH:
        headers["tracestate"] = trace[TRACEPARENT_LENGTH + 1 :]
    return headers


def is_context(trace: str) -> bool:
    """Is it one? What stands in a log that was imported may be anything."""
    return TRACEPARENT.fullmatch(trace, 0, TRACEPARENT_LENGTH) is not None and trace[TRACEPARENT_LENGTH:][:1] in {
        "",
        " ",
    }


def is_sampled(trace: str) -> bool:
    """Are the spans of this trace exported?"""
    return int(trace[53:TRACEPARENT_LENGTH], 16) & 1 == 1


def trace_id_of(trace: str) -> str:
    """The 32 digits by which a collector knows the trace."""
    return trace[3:35]


# --- What is being done -----------------------------------------------------------------------------


class Doing(Protocol):
    """A request, a message or a decision that a task works on."""

    @property
    def correlation_id(self) -> UUID: ...

    @property
    def trace(self) -> str | None: ...


DOING: Final[ContextVar[Doing | None]] = ContextVar("what this task does", default=None)
"""Log lines carry its ids (`infrastructure.telemetry.logs`)."""
