"""TorchServe's worker threads: one that gave up stays in its model's list, is counted, and never works again.

``WorkerThread.run`` starts its worker again until ``maxRetryTimeoutInSec`` is over, and then leaves without a word.
``WorkLoadManager.modelChanged`` looks at the length of the model's list alone: below ``min_worker`` it appends new
threads, beyond ``max_worker`` it removes the last ones, whichever of them live (TorchServe 0.12.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Seconds before the first, second ... try to start a worker again (WorkerThread.BACK_OFF, whose entry 0 is never
#: used).
BACK_OFF = (1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597)
#: maxRetryTimeoutInSec where a model does not say otherwise (Model.java).
RETRY_SECONDS = 300
#: Seconds that a worker may load (default_startup_timeout).
LOAD_SECONDS = 120.0
#: Seconds from the start of a worker's process until TorchServe has read its pid: Python and its imports.
START_SECONDS = 30.0


@dataclass(frozen=True)
class Thread:
    """One of a model's worker threads.

    Attributes:
        pid: Of its worker, or of the last one that it had.
        ready: Whether its worker has loaded.
        gave_up: Whether it never starts a worker again.
    """

    pid: int
    ready: bool
    gave_up: bool = False


def quiet_seconds(retry_seconds: int) -> float:
    """Seconds without a try after which a thread makes no other.

    Args:
        retry_seconds: The model's maxRetryTimeoutInSec.
    """
    waited = longest = 0
    for pause in BACK_OFF:
        if waited >= retry_seconds:
            break
        waited, longest = waited + pause, pause
    return longest + START_SECONDS


def to_ask_for(threads: Sequence[Thread], count: int) -> int:
    """For how many threads TorchServe must be asked so that so many work.

    Args:
        threads: Those of a model, in TorchServe's order.
        count: How many shall work.

    Returns:
        The shortest beginning of the list that has as many; where none has, all of it and as many as it lacks.
    """
    for length in range(len(threads)):
        if working(threads[:length]) == count:
            return length
    return len(threads) + count - working(threads)


def working(threads: Sequence[Thread]) -> int:
    """How many of these work."""
    return sum(not thread.gave_up for thread in threads)
