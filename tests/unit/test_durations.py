"""Histograms of our own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

import infrastructure.telemetry.metrics  # noqa: F401 - the library shows no times of creation from then on
from infrastructure.telemetry.durations import Distribution


def test_a_distribution_is_shown_as_the_librarys_histogram() -> None:
    buckets = (0.001, 0.5, 10)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distribution = Distribution("appends_seconds", "Appends", buckets, ours)
    histogram = Histogram("appends_seconds", "Appends", buckets=buckets, registry=theirs)

    assert generate_latest(ours) == generate_latest(theirs)
    for value in (0.0, 0.001, 0.4, 10, 11):
        distribution.observe(value)
        histogram.observe(value)

    assert generate_latest(ours) == generate_latest(theirs)
