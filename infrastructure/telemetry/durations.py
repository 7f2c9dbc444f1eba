"""A histogram by route and status that costs a request next to nothing, and a bounded number of series."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Final

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

OTHER: Final = "other"
"""The route of what there was no place for any more; its status is `2xx`, `4xx` and so on."""


class Durations(Collector):
    """The library's own takes a lock three times for each observation, which is a tenth of a refusal (our measurement).
    This one is for a single thread, and can count many observations of the same duration at once.

    How a duration is distributed is shown of those routes and statuses alone that an objective is about; all others
    show how many there were and how long they took together. Each of those takes three series, and there are as many of
    them as clients can think of, so their number is bounded; the rest goes under `OTHER`.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        *,
        fine: Mapping[str, int],
        failures: Sequence[int],
        most: int,
    ) -> None:
        """
        Args:
            buckets: upper ends in ascending order; that without an end comes by itself.
            fine: routes, each with the status whose durations are shown by `buckets`.
            failures: statuses of those routes that are shown before they have happened: a series that begins with its
                first failure hides that failure, as Prometheus sees no increase in it.
            most: how many pairs of route and status have series of their own beside those of `fine`.
        """
        self._name, self._type, self._labelnames = name, "histogram", tuple(labels)  # as the library's have them
        self._documentation = documentation
        self._series: dict[tuple[str, int | str], _Series] = {
            (route, status): _Series(tuple(buckets)) for route, status in fine.items()
        }
        self._most = len(self._series) + most
        for route in fine:
            for status in failures:
                self._series_of(route, status)

    def observe(self, route: str, status: int, seconds: float, times: int = 1) -> None:
        series = self._series.get((route, status))
        if series is None:
            series = self._series_of(route, status)
        series.counts[bisect_left(series.tops, seconds)] += times
        series.sum += seconds * times

    def _series_of(self, route: str, status: int) -> _Series:
        """That of a pair which has none: a new one, or that of all the others."""
        place: tuple[str, int | str] = (route, status)
        if len(self._series) >= self._most:
            place = (OTHER, f"{status // 100}xx")
        return self._series.setdefault(place, _Series(()))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        family = self._family()
        for (route, status), series in self._series.items():
            family.add_metric((route, str(status)), series.shown(), series.sum)
        yield family

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """What the registry knows the name by."""
        yield self._family()

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)


class Distribution(Collector):
    """The library's `Histogram` without labels, for a single thread: for the same reason."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        """
        Args:
            buckets: upper ends in ascending order; that without an end comes by itself.
        """
        self._name, self._type, self._labelnames = name, "histogram", ()  # as the library's have them
        self._documentation = documentation
        self._series = _Series(tuple(buckets))
        registry.register(self)

    def observe(self, value: float) -> None:
        series = self._series
        series.counts[bisect_left(series.tops, value)] += 1
        series.sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        buckets, total = self._series.shown(), self._series.sum
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """What the registry knows the name by."""
        yield HistogramMetricFamily(self._name, self._documentation)


class _Series:
    """
    Attributes:
        tops: upper ends of the buckets, but for the last one's.
        counts: by bucket, each by itself.
        sum: of all values.
    """

    __slots__ = ("counts", "sum", "tops")

    def __init__(self, tops: tuple[float, ...]) -> None:
        self.tops = tops
        self.counts = [0] * (len(tops) + 1)
        self.sum = 0.0

    def shown(self) -> list[tuple[str, float]]:
        """Upper ends of the buckets, each with how many values are below it."""
        ends = [floatToGoString(top) for top in (*self.tops, inf)]  # type: ignore[no-untyped-call]
        return [(end, float(count)) for end, count in zip(ends, accumulate(self.counts), strict=True)]
