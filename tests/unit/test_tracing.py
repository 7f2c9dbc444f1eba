"""What is told and counted of spans, by what a collector answers."""

from __future__ import annotations

import io
from contextlib import AsyncExitStack

import pytest

from entrypoints.bootstrap.tracing import open_tracing
from infrastructure.settings.settings import Settings
from infrastructure.telemetry.metrics import Metrics
from tests.support.collector import Collector, collecting


async def sent(collector: Collector, metrics: Metrics) -> None:
    """A span is made, and a process stops."""
    settings = Settings(otlp_endpoint=collector.url)
    async with AsyncExitStack() as stack:
        exported = open_tracing(settings, stack, metrics, "work")
        assert exported is not None
        exported.tracing.span("smtp", parent=None).end()


def counted(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("registrar_spans_")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_spans_that_were_taken_are_counted_and_not_told_of(log: io.StringIO) -> None:
    metrics = Metrics()
    with collecting() as collector:
        await sent(collector, metrics)
    [span] = collector.spans
    assert (span.service, span.name) == ("registrar-work", "smtp")
    assert counted(metrics) == {"registrar_spans_exported_total": 1}
    assert log.getvalue() == ""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 400, 401, 404, 503])
async def test_spans_that_were_not_taken_are_counted_and_told_of(status: int, log: io.StringIO) -> None:
    metrics = Metrics()
    with collecting() as collector:
        collector.status = status
        await sent(collector, metrics)
    assert counted(metrics) == {
        "registrar_spans_exported_total": 0,
        'registrar_spans_lost_total{reason="stop"}': 1,
    }
    told = log.getvalue()
    assert f"status {status}" in told
    assert "REGISTRAR_OTLP_ENDPOINT" in told
    assert "tracing.spans_lost" in told


async def test_without_an_endpoint_there_is_no_tracing() -> None:
    async with AsyncExitStack() as stack:
        assert open_tracing(Settings(), stack, Metrics(), None) is None
