"""Latencies counted in buckets say what the raw latencies say."""

from __future__ import annotations

import math
import timeit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.bench.histogram import (
    FASTEST,
    LAST,
    RELATIVE_ERROR,
    SLOWEST,
    Collector,
    bounds,
    bucket_of,
    merged,
    middle,
    percentile,
    total,
    within,
)
from ts_mps.bench.records import Histogram

SECONDS = st.floats(FASTEST, SLOWEST)
MANY = st.lists(SECONDS, min_size=1, max_size=200)


def counted(values: list[float]) -> Histogram:
    collector = Collector()
    for value in values:
        collector.add(value)
    return collector.histogram()


@given(MANY, st.floats(0, 100))
def test_a_percentile_is_numpys_within_the_stated_error(values: list[float], percent: float) -> None:
    raw = 1000 * float(np.percentile(values, percent))
    assert percentile(counted(values), percent) == pytest.approx(raw, rel=RELATIVE_ERROR)


@pytest.mark.parametrize("percent", [50, 90, 95, 99, 99.9])
def test_percentiles_of_a_tail_are_numpys(percent: float) -> None:
    values = np.random.default_rng(3).lognormal(math.log(0.02), 1.0, 20_000)
    raw = 1000 * float(np.percentile(values, percent))
    assert percentile(counted(values.tolist()), percent) == pytest.approx(raw, rel=RELATIVE_ERROR)


@given(SECONDS)
def test_a_bucket_holds_what_is_counted_in_it_and_its_middle_is_near(seconds: float) -> None:
    low, high = bounds(bucket_of(seconds))
    assert low * (1 - 1e-12) <= seconds <= high * (1 + 1e-12)
    assert middle(bucket_of(seconds)) == pytest.approx(seconds, rel=RELATIVE_ERROR)


def test_buckets_follow_each_other_without_gap() -> None:
    for bucket in range(LAST):
        assert bounds(bucket)[1] == bounds(bucket + 1)[0]
    assert bounds(0)[0] == 0
    assert bounds(LAST)[1] == math.inf


@given(MANY, MANY, MANY)
def test_merging_is_associative_and_equals_counting_everything_at_once(
    one: list[float], two: list[float], three: list[float]
) -> None:
    a, b, c = counted(one), counted(two), counted(three)
    together = counted([*one, *two, *three])
    assert merged([merged([a, b]), c]) == merged([a, merged([b, c])]) == merged([c, a, b]) == together
    assert total(together) == len(one) + len(two) + len(three)


def test_merging_nothing_and_the_empty_changes_nothing() -> None:
    some = counted([0.01, 0.02])
    assert merged([]) == Histogram()
    assert merged([some, Histogram()]) == some


@given(MANY, SECONDS)
def test_within_counts_what_is_at_most_the_limit_but_for_the_stated_error(values: list[float], limit: float) -> None:
    seen = within(counted(values), 1000 * limit)
    surely = sum(value <= limit / (1 + 2 * RELATIVE_ERROR) for value in values)
    perhaps = sum(value <= limit * (1 + 2 * RELATIVE_ERROR) for value in values)
    assert surely <= seen <= perhaps


def test_latencies_beyond_the_range_are_counted_at_its_ends() -> None:
    assert bucket_of(0.0) == bucket_of(FASTEST) == 0
    assert bucket_of(SLOWEST) == bucket_of(10 * SLOWEST) == bucket_of(math.inf) == LAST


@pytest.mark.parametrize("wrong", [-0.001, math.nan, -math.inf])
def test_what_is_no_latency_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="cannot be counted"):
        Collector().add(wrong)


def test_an_empty_histogram_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="without counts"):
        percentile(Histogram(), 50)


@pytest.mark.parametrize("percent", [-1, 100.1, math.nan])
def test_a_percentile_beyond_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        percentile(counted([0.1]), percent)


def test_counting_is_cheap_enough_for_the_load_generator() -> None:
    collector = Collector()
    # 0.2 microseconds where it was written; a request costs a generator some hundreds of them.
    best = min(timeit.repeat(lambda: collector.add(0.0123), number=20_000, repeat=5)) / 20_000
    assert best < 10e-6
