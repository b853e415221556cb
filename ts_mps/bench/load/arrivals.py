"""When an open loop sends: planned from a seed alone, whatever the server does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Gaps that are drawn at once.
_DRAWN = 4096


def arrivals(kind: str, rate: float, seed: int, share: int = 0, of: int = 1) -> Iterator[tuple[int, float]]:
    """One process's part of the planned arrivals, without end.

    Every process makes the same plan and takes each ``of``-th arrival of it. So all parts together are exactly the
    plan of one process, with no arrival twice or left out, for any number of processes.

    Args:
        kind: "poisson" (gaps are exponential, so arrivals are independent of each other) or "constant".
        rate: Of all processes together, per second.
        seed: Of the gaps.
        share: Which part, from 0.
        of: How many parts.

    Yields:
        The arrival's number in the whole plan, from 0, and its instant in seconds.
    """
    random = np.random.default_rng(seed)
    first, now = 0, 0.0
    while True:
        if kind == "poisson":
            instants = now + np.cumsum(random.exponential(1 / rate, _DRAWN))
            now = float(instants[-1])
        else:
            instants = np.arange(first, first + _DRAWN) / rate
        begin = (share - first) % of
        for place in range(begin, _DRAWN, of):
            yield first + place, float(instants[place])
        first += _DRAWN


def payload_order(count: int, seed: int) -> list[int]:
    """In which order ``count`` payloads are sent, again and again."""
    return [int(number) for number in np.random.default_rng(seed).permutation(count)]
