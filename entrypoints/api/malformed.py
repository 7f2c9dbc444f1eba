"""What is no HTTP: counted always, and logged as one line a minute, however much strangers send of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from entrypoints.api.guard import UNMATCHED
from infrastructure.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

SUMMARY: Final = timedelta(minutes=1)
"""How long what comes after a first one is only counted: a line for each would let strangers fill a disk with logs."""


class MalformedRequests:
    """Those of one listener."""

    def __init__(self, metrics: Metrics, *, summary: timedelta = SUMMARY) -> None:
        self._metrics = metrics
        self._summary = summary.total_seconds()
        self._count = 0
        self._summing_up: asyncio.TimerHandle | None = None

    def refused(self) -> None:
        """One more was answered with 400. The first is logged at once, the following together when the time is over."""
        self._metrics.request(UNMATCHED, 400, 0.0)
        self._count += 1
        if self._summing_up is None:
            self._sum_up()

    def _sum_up(self) -> None:
        self._summing_up = None
        if self._count:
            log.info("requests.malformed", requests=self._count)
            self._count = 0
            self._summing_up = asyncio.get_running_loop().call_later(self._summary, self._sum_up)
