"""What a running process says of itself at `/metrics`: its requests and its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from infrastructure.alerts.webhook import NotTaken, Webhook

PATIENCE: Final = timedelta(seconds=2)
"""For one process; the next look comes anyway."""


@dataclass(slots=True)
class Scraped:
    """One process; counts are since it started.

    Attributes:
        trouble: why nothing is known of it, None if it answered.
        requests, errors, shed: HTTP requests, those answered with 5xx, and those refused because of overload.
        limits: what each limit said: by name and outcome ("passed", "refused", …).
        degraded: Redis does not count, and the process does.
    """

    url: str
    trouble: str | None = None
    requests: int = 0
    errors: int = 0
    shed: int = 0
    under_way: int = 0
    hash_queue: int = 0
    degraded: bool = False
    limits: dict[str, Counter[str]] = field(default_factory=dict)


async def scrape(url: str) -> Scraped:
    """Ask a process; whatever goes wrong is its `trouble`."""
    try:
        status, body = await Webhook(url, deadline=PATIENCE).ask("GET", "/metrics", b"", {})
    except NotTaken as error:
        return Scraped(url, trouble=error.failure)
    if status != 200:
        return Scraped(url, trouble=f"status {status}")
    try:
        families = text_string_to_metric_families(body.decode())
        return _read(url, (sample for family in families for sample in family.samples))
    except ValueError:
        return Scraped(url, trouble="no metrics")


def _read(url: str, samples: Iterable[Sample]) -> Scraped:
    found = Scraped(url)
    for name, labels, value, *_ in samples:
        match name:
            case "registrar_requests_seconds_count":
                found.requests += int(value)
                found.errors += int(value) * labels["status"].startswith("5")
            case "registrar_shed_total":
                found.shed += int(value)
            case "registrar_requests_under_way":
                found.under_way += int(value)
            case "registrar_hash_queue_depth":
                found.hash_queue = int(value)
            case "registrar_limiter_degraded":
                found.degraded = bool(value)
            case "registrar_limit_total":
                found.limits.setdefault(labels["policy"], Counter())[labels["outcome"]] += int(value)
    return found
