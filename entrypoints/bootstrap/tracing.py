"""Where the spans of a process go: to a collector over OTLP/HTTP, if one is set.

What makes and exports spans is a tenth of a process's start (our measurement): only a process with a collector loads
it.
"""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from infrastructure.telemetry.export import Post
    from infrastructure.telemetry.tracing import Tracing

DEADLINE: Final = timedelta(seconds=5)
"""For one call of the collector; what is not taken is sent again."""

MAY_PASS: Final = (429, 502, 503, 504)
"""Statuses after which a call may be made again (OTLP 1.x, "Retryable response codes")."""

_RESPONSE_BYTES: Final = 4096
"""Of a response, which says how many spans were rejected."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Makes spans, and exports them while `run` runs."""

    tracing: Tracing
    run: Coroutine[Any, Any, None]


def open_tracing(settings: Settings, stack: AsyncExitStack, metrics: Metrics, role: str | None) -> Exported | None:
    """Tracing for a process; None where no collector is set. What is left is exported when the stack is taken down.

    Args:
        role: what the process does, in a word; None: all of it, or an operator's command.
    """
    if settings.otlp_endpoint is None:
        return None
    from infrastructure.telemetry.encoding import resource_of, scope_of
    from infrastructure.telemetry.export import SpanExport
    from infrastructure.telemetry.tracing import Tracing

    release = version("registrar")
    service = "registrar" if role is None else f"registrar-{role}"
    export = SpanExport(
        _post_to(settings.otlp_endpoint),
        resource=resource_of(service, version=release, instance=str(uuid4())),
        scope=scope_of(release),
        on_exported=metrics.spans_exported,
        on_lost=metrics.spans_lost,
    )
    stack.push_async_callback(export.close)
    run = export.run()
    stack.callback(run.close)  # where it never began
    return Exported(Tracing(export.put, ratio=settings.trace_ratio), run)


def _post_to(endpoint: str) -> Post:
    from infrastructure.alerts.webhook import NotTaken as NoAnswer
    from infrastructure.alerts.webhook import Webhook
    from infrastructure.telemetry.export import NotTaken

    collector = Webhook(f"{endpoint.rstrip('/')}/v1/traces", deadline=DEADLINE)
    headers = {"Content-Type": "application/x-protobuf", "User-Agent": f"registrar/{version('registrar')}"}

    async def post(body: bytes) -> bytes:
        try:
            status, response = await collector.call(body, headers, most=_RESPONSE_BYTES)
        except NoAnswer as error:
            raise NotTaken(error.failure, may_pass=True) from None
        if not 200 <= status < 300:  # a redirect is none: spans are for the address that was configured
            raise NotTaken(f"status {status}", may_pass=status in MAY_PASS)
        return response

    return post
