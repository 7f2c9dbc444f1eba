"""Spans of conversations with mail servers."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable

from infrastructure.circuits import CircuitOpen
from infrastructure.mail.smtp.server import Refused, TooLate
from infrastructure.telemetry.trace_context import DOING
from infrastructure.telemetry.tracing import Kind, Tracing, Value


async def traced(tracing: Tracing, provider: str, talking: Awaitable[int]) -> int:
    """Wrap one try at a server in a span, its wait for a turn included; none where the server was not called.

    Args:
        provider: `host:port` of the server.
        talking: see `infrastructure.mail.smtp.server.Server.hand_over`.
    """
    host, _, port = provider.rpartition(":")
    attributes: dict[str, Value] = {"network.protocol.name": "smtp", "server.address": host, "server.port": int(port)}
    doing = DOING.get()
    parent = None if doing is None else doing.trace
    span = tracing.span("smtp", parent=parent, kind=Kind.CLIENT, attributes=attributes)
    try:
        attributes["smtp.reply_code"] = await talking
    except (CircuitOpen, TooLate):
        raise
    except Refused as refusal:
        if refusal.verdict.reply_code is not None:
            attributes["smtp.reply_code"] = refusal.verdict.reply_code
        span.fail(refusal.verdict.failure)
        span.end()
        raise
    except CancelledError:
        span.end()
        raise
    except Exception as error:
        span.fail(type(error).__name__)
        span.end()
        raise
    span.end()
    return int(attributes["smtp.reply_code"])
