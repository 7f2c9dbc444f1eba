"""The median of paired differences, and an interval that holds the true one: no assumption but independent pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MedianInterval:
    """A sample's median, and the bounds between which the true median lies with the confidence asked for, at least."""

    median: float
    low: float
    high: float


def median_interval(sample: Sequence[float], *, confidence: float = 0.95) -> MedianInterval:
    """The interval of the sign test: from the k-th smallest to the k-th largest value.

    Each value is below the true median with probability 1/2, whatever their distribution is, so how many are is
    binomial, and the interval misses with probability 2·P(X < k) (Conover, Practical Nonparametric Statistics, 3.2).
    Nothing is drawn at random, as a bootstrap would: the same sample has the same interval.

    Raises:
        ValueError: there are too few values for an interval of this confidence.
    """
    ordered = sorted(sample)
    rank = interval_rank(len(ordered), confidence)
    if rank == 0:
        raise ValueError(f"{len(ordered)} values have no interval of confidence {confidence}")
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return MedianInterval(median, ordered[rank - 1], ordered[-rank])


def interval_rank(size: int, confidence: float) -> int:
    """The largest k for which 2·P(X < k) ≤ 1 - `confidence`, with X binomial (`size`, 1/2); 0 if there is none."""
    rank, ways = 0, 1  # to choose `rank` of them
    below = ways
    while 2 * below / 2**size <= 1 - confidence:
        rank += 1
        ways = ways * (size - rank + 1) // rank
        below += ways
    return rank
