"""The interval of a median: against the values that tables of the binomial distribution have."""

from __future__ import annotations

import random

import pytest

from tests.support.paired import MedianInterval, interval_rank, median_interval


@pytest.mark.parametrize(
    ("size", "confidence", "rank"),
    [(5, 0.95, 0), (6, 0.95, 1), (10, 0.95, 2), (20, 0.95, 6), (50, 0.95, 18), (100, 0.95, 40), (20, 0.99, 4)],
)
def test_the_ranks_of_the_interval_are_those_of_the_tables(size: int, confidence: float, rank: int) -> None:
    assert interval_rank(size, confidence) == rank


def test_of_many_values_the_interval_is_that_of_the_normal_distribution() -> None:
    assert interval_rank(10_000, 0.95) == round(10_000 / 2 - 1.96 * 10_000**0.5 / 2)


def test_the_interval_goes_from_the_kth_smallest_to_the_kth_largest_in_whatever_order() -> None:
    values = [float(n) for n in range(1, 21)]

    assert (
        median_interval(values[::-1]) == median_interval(values[10:] + values[:10]) == MedianInterval(10.5, 6.0, 15.0)
    )


def test_few_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="5 values"):
        median_interval([1.0, 2.0, 3.0, 4.0, 5.0])


def test_the_interval_misses_the_true_median_as_seldom_as_it_says() -> None:
    """Of a lopsided distribution, where a mean would be far away; with three standard deviations of leeway."""
    draw = random.Random(7)  # noqa: S311 - the same every time

    samples = [[draw.paretovariate(1.2) for _ in range(100)] for _ in range(2000)]
    missed = sum(not one.low <= 2 ** (1 / 1.2) <= one.high for one in map(median_interval, samples))

    exact = 0.0352  # 2·P(X < 40), X binomial (100, 1/2)
    assert abs(missed / 2000 - exact) < 3 * (exact * (1 - exact) / 2000) ** 0.5
