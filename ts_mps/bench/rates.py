"""The largest rate of arrivals that a server bears, by bisection."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum

from ts_mps.bench.histogram import within
from ts_mps.bench.records import Run

#: Of the requests that were sent, so many must be answered in time: the 99th percentile with failed ones counted as
#: never answered, so that a server does not look better by refusing.
PART = 0.99


class Outcome(Enum):
    """What a run says of the rate that it tried."""

    HELD = "held"
    BROKEN = "broken"
    #: The generator was too late to tell: the server has not met this rate, nor would it meet a higher one.
    BEHIND = "behind"
    #: The server did not start, a worker died, a proof failed: nothing is known of the rate.
    FAILED = "failed"


def search(ceiling: float, steps: int) -> Generator[float, Outcome, None]:
    """Bisect between 0 and ``ceiling``: yields a rate and wants to be sent its outcome.

    As a generator it can be driven by turns with that of another arm, so that both meet the machine at the same time.
    A rate that the generator cannot make bounds what is tried, as one that did not hold does; a rate of which nothing
    is known is tried again. What was found is read from the runs: ``figures.rates_found``.

    Args:
        ceiling: Requests per second that are surely too many, or just enough: the throughput of a closed loop.
        steps: How many tries there are; the answer is then known to ceiling / 2**steps, where none of them failed.
    """
    low, high = 0.0, ceiling
    for _ in range(steps):
        tried = round((low + high) / 2, 3)
        seen = yield tried
        if seen is Outcome.HELD:
            low = tried
        elif seen is not Outcome.FAILED:
            high = tried


def outcome(run: Run, objective_ms: float) -> Outcome:
    """Whether a run held the objective: :data:`PART` of what was sent was answered within it."""
    result = run.result
    if result is not None and not result.void and result.sent and not result.answered:
        return Outcome.BROKEN  # which is why the run does not count
    if run.failure or result is None or not result.sent:
        return Outcome.FAILED
    if result.void:
        return Outcome.BEHIND
    needed = PART * result.sent
    if within(result.histogram, objective_ms) >= needed:
        return Outcome.HELD
    # Latencies count from the planned instant, so what the generator was late may be all that was too much.
    return Outcome.BEHIND if within(result.histogram, objective_ms + result.behind_ms) >= needed else Outcome.BROKEN
