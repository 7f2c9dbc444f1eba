"""A histogram by labels that costs a request next to nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Durations(Collector):
    """The library's own takes a lock three times for each observation, which is a tenth of a refusal (our measurement).
    This one is for a single thread, and can count many observations of the same duration at once."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], buckets: Sequence[float]) -> None:
        """
        Args:
            buckets: upper ends in ascending order; that without an end comes by itself.
        """
        self._name, self._type, self._labelnames = name, "histogram", tuple(labels)  # as the library's have them
        self._documentation = documentation
        self._tops = tuple(buckets)
        self._series: dict[tuple[str, int], _Series] = {}

    def observe(self, route: str, status: int, seconds: float, times: int = 1) -> None:
        series = self._series.get((route, status))
        if series is None:
            series = self._series[route, status] = _Series(len(self._tops) + 1)
        series.counts[bisect_left(self._tops, seconds)] += times
        series.seconds += seconds * times

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        family = self._family()
        ends = [floatToGoString(top) for top in (*self._tops, inf)]  # type: ignore[no-untyped-call]
        for (route, status), series in self._series.items():
            buckets = [(end, float(count)) for end, count in zip(ends, accumulate(series.counts), strict=True)]
            family.add_metric((route, str(status)), buckets, series.seconds)
        yield family

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """What the registry knows the name by."""
        yield self._family()

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)


class _Series:
    """
    Attributes:
        counts: by bucket, each by itself.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.seconds = 0.0
