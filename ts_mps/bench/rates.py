"""The largest rate of arrivals that a server bears, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from ts_mps.bench.histogram import within
from ts_mps.bench.records import Run

#: Of the requests that were sent, so many must be answered in time: the 99th percentile with failed ones counted as
#: never answered, so that a server does not look better by refusing.
PART = 0.99


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        rate: The largest rate that held; 0 if none did.
        broken: The smallest rate that did not; None if all did.
    """

    rate: float
    broken: float | None


def search(ceiling: float, steps: int) -> Generator[float, bool, Found]:
    """Bisect between 0 and ``ceiling``: yields a rate, wants to be sent whether it held, and returns what it found.

    As a generator it can be driven by turns with that of another arm, so that both meet the machine at the same time.

    Args:
        ceiling: Requests per second that are surely too many, or just enough: the throughput of a closed loop.
        steps: How many rates are tried; the answer is then known to ceiling / 2**steps.
    """
    rate, broken = 0.0, None
    high = ceiling
    for _ in range(steps):
        tried = round((rate + high) / 2, 3)
        if (yield tried):
            rate = tried
        else:
            high = broken = tried
    return Found(rate, broken)


def largest_rate(holds: Callable[[float], bool], ceiling: float, steps: int) -> Found:
    """The same with a callback that tries one rate."""
    going = search(ceiling, steps)
    try:
        tried = next(going)
        while True:
            tried = going.send(holds(tried))
    except StopIteration as end:
        found: Found = end.value
        return found


def held(run: Run, objective_ms: float) -> bool:
    """Whether a run held the objective: it counts, and :data:`PART` of what was sent was answered within it."""
    if not run.counts or run.result is None or not run.result.sent:
        return False
    return within(run.result.histogram, objective_ms) >= PART * run.result.sent
