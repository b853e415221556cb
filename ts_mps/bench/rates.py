"""The largest rate of arrivals that a server bears, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
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
    #: The generator fell behind its plan: the server has not met this rate, nor would it meet a higher one.
    BEHIND = "behind"
    #: The server did not start, a worker died, a proof failed: nothing is known of the rate.
    FAILED = "failed"


@dataclass(frozen=True)
class Found:
    """How a search ended.

    Attributes:
        rate: The largest rate that held; 0 if none did.
        broken: The smallest rate that did not; None if none was found.
        behind: The smallest rate that the generator could not make; None if it made all below ``broken``.
    """

    rate: float
    broken: float | None
    behind: float | None = None


def search(ceiling: float, steps: int) -> Generator[float, Outcome, Found]:
    """Bisect between 0 and ``ceiling``: yields a rate, wants to be sent its outcome, and returns what it found.

    As a generator it can be driven by turns with that of another arm, so that both meet the machine at the same time.
    A rate that the generator cannot make bounds what is tried, and is no rate that the server did not hold. A rate of
    which nothing is known is tried again.

    Args:
        ceiling: Requests per second that are surely too many, or just enough: the throughput of a closed loop.
        steps: How many tries there are; the answer is then known to ceiling / 2**steps, where none of them failed.
    """
    rate, high = 0.0, ceiling
    broken: float | None = None
    behind: float | None = None
    for _ in range(steps):
        tried = round((rate + high) / 2, 3)
        outcome = yield tried
        if outcome is Outcome.HELD:
            rate = tried
        elif outcome is Outcome.BROKEN:
            # It lies below every rate that the generator could not make: those do not matter any more.
            high, broken, behind = tried, tried, None
        elif outcome is Outcome.BEHIND:
            high = behind = tried
    return Found(rate, broken, behind)


def largest_rate(tries: Callable[[float], Outcome], ceiling: float, steps: int) -> Found:
    """The same with a callback that tries one rate."""
    going = search(ceiling, steps)
    try:
        tried = next(going)
        while True:
            tried = going.send(tries(tried))
    except StopIteration as end:
        found: Found = end.value
        return found


def outcome(run: Run, objective_ms: float) -> Outcome:
    """Whether a run held the objective: :data:`PART` of what was sent was answered within it."""
    result = run.result
    if result is not None and not result.void and result.sent and not result.answered:
        return Outcome.BROKEN  # which is why the run does not count
    if run.failure or result is None or not result.sent:
        return Outcome.FAILED
    if result.void:
        return Outcome.BEHIND
    return Outcome.HELD if within(result.histogram, objective_ms) >= PART * result.sent else Outcome.BROKEN
