"""Latencies as counts in log-spaced buckets: small enough to send and store, exact enough for a percentile.

A percentile of several runs, or of several generator processes, can only be had from all their latencies together; an
average of percentiles is no percentile. Counts can be added, so each process counts on its own and the counts are
merged afterwards. The buckets are those of HdrHistogram in spirit (http://hdrhistogram.org), with one fixed ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ts_mps.bench.records import Histogram

#: Seconds; what is faster is counted as this fast.
FASTEST = 1e-6
#: Seconds; what is slower is counted as this slow. No request of a benchmark is waited for that long.
SLOWEST = 3600.0
#: Upper bound of a bucket to its lower one. Its middle is the geometric one, at most sqrt(1.01) - 1 = 0.4988 % from
#: any latency in it.
RATIO = 1.01
#: What a percentile may differ by from the one of the raw latencies, as a part.
RELATIVE_ERROR = 0.005

_PER_BUCKET = 1 / math.log(RATIO)
#: Number of the last bucket, the one that SLOWEST is in.
LAST = int(math.log(SLOWEST / FASTEST) * _PER_BUCKET)


def bucket_of(seconds: float) -> int:
    """The bucket, from 0 to ``LAST``, that a latency is counted in.

    Raises:
        ValueError: It is negative or not a number: no clock that only goes forward gives such a latency.
    """
    if seconds > FASTEST:
        return LAST if seconds >= SLOWEST else int(math.log(seconds / FASTEST) * _PER_BUCKET)
    if not seconds >= 0:
        raise ValueError(f"a latency of {seconds} seconds cannot be counted")
    return 0


def bounds(bucket: int) -> tuple[float, float]:
    """The seconds from which and up to which a bucket counts; the first starts at 0, the last has no end."""
    low = 0.0 if bucket == 0 else FASTEST * RATIO**bucket
    high = math.inf if bucket == LAST else FASTEST * RATIO ** (bucket + 1)
    return low, high


def middle(bucket: int) -> float:
    """The seconds that stand for every latency in a bucket: the geometric middle of its bounds."""
    return FASTEST * float(RATIO ** (bucket + 0.5))


class Collector:
    """Counts latencies. One addition is one logarithm and one list access, as it runs inside the load generator."""

    def __init__(self) -> None:
        self._counts = [0] * (LAST + 1)

    def add(self, seconds: float) -> None:
        """Count one latency.

        Raises:
            ValueError: It is negative or not a number.
        """
        self._counts[bucket_of(seconds)] += 1

    def histogram(self) -> Histogram:
        """What was counted so far."""
        return Histogram(tuple((bucket, count) for bucket, count in enumerate(self._counts) if count))


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All counts together, as if one collector had counted everything."""
    sums: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.counts:
            sums[bucket] = sums.get(bucket, 0) + count
    return Histogram(tuple(sorted(sums.items())))


def total(histogram: Histogram) -> int:
    """How many latencies were counted."""
    return sum(count for _, count in histogram.counts)


def percentile(histogram: Histogram, percent: float) -> float:
    """The latency in milliseconds that ``percent`` of 100 requests do not exceed.

    Between two ranks it is interpolated linearly, as ``numpy.percentile`` does, so that it is within
    ``RELATIVE_ERROR`` of numpy's figure for the raw latencies, as long as they lie from FASTEST to SLOWEST.

    Raises:
        ValueError: Nothing was counted, or ``percent`` is not from 0 to 100.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile is from 0 to 100, not {percent}")
    if not histogram.counts:
        raise ValueError("a histogram without counts has no percentiles")
    counted = np.cumsum([count for _, count in histogram.counts])
    rank = (int(counted[-1]) - 1) * percent / 100
    below, above = math.floor(rank), math.ceil(rank)
    # Ranks are from 0: the bucket of rank r is the first with more than r latencies up to its end.
    places = np.searchsorted(counted, [below, above], side="right")
    low, high = (middle(histogram.counts[place][0]) for place in places)
    return 1000 * (low + (high - low) * (rank - below))


def within(histogram: Histogram, milliseconds: float) -> int:
    """How many latencies were at most this long.

    A bucket counts wholly or not at all, by its middle: the limit is as exact as ``RELATIVE_ERROR``.
    """
    return sum(count for bucket, count in histogram.counts if 1000 * middle(bucket) <= milliseconds)
