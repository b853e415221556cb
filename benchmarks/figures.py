"""What the bursts of a row come to: medians, how far the bursts lie apart, and where our handler's time went."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from closed_loop import Burst

#: Of one burst, each with a median over all of them.
_MEASURED = ("requests_per_s", "p50_ms", "p90_ms", "p99_ms")
#: The parts of a worker's time that our handlers count, by the counter of each.
_COUNTED = {"decode": "BatchDecodeTime", "run": "BatchRunTime", "encode": "BatchEncodeTime"}


def middle(bursts: Sequence[Burst]) -> dict[str, float]:
    """The medians of one side's bursts, its slowest and fastest one in requests/s, and the errors of all."""
    found = {name: statistics.median(getattr(one, name) for one in bursts) for name in _MEASURED}
    return {**found, **extent([one.requests_per_s for one in bursts]), "errors": errors(bursts)}


def extent(rates: Sequence[float]) -> dict[str, float]:
    """The slowest and the fastest of several bursts, in requests/s."""
    return {"least_per_s": min(rates), "most_per_s": max(rates)}


def errors(bursts: Sequence[Burst]) -> int:
    """Requests of all bursts that were not answered with 200."""
    return sum(sum(one.errors.values()) for one in bursts)


def ratios(naive: Mapping[str, float], ours: Mapping[str, float]) -> dict[str, float]:
    """Ours to naive: of the medians, and the least and the most that any two bursts make; see :func:`middle`.

    Raises:
        ZeroDivisionError: One of the naive bursts answered nothing.
    """
    return {
        "ratio": ours["requests_per_s"] / naive["requests_per_s"],
        "ratio_least": ours["least_per_s"] / naive["most_per_s"],
        "ratio_most": ours["most_per_s"] / naive["least_per_s"],
    }


def stages(
    before: Mapping[str, float], after: Mapping[str, float], workers: int, requests_per_s: float
) -> dict[str, float]:
    """What one run of a worker was spent on, in milliseconds, and its requests, between two looks at the counters.

    ``torchserve`` is what is left of a worker's time: reading, sending and waiting. The handler's own idle time would
    count the pauses between bursts.

    Args:
        before: The Batch* counters before the burst.
        after: The same after it.
        workers: Workers that shared the requests.
        requests_per_s: Of the burst.
    """
    spent = {name: after[name] - before[name] for name in after if name in before}
    runs = spent["BatchRuns"] or 1.0
    found = {name: spent[counter] / runs for name, counter in _COUNTED.items()}
    requests = spent["BatchRequests"] / runs
    whole = 1e3 * workers * requests / requests_per_s if requests_per_s else 0.0
    return {**found, "torchserve": whole - sum(found.values()), "requests": requests}


def middle_stages(bursts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each stage over several bursts."""
    return {name: statistics.median(one[name] for one in bursts) for name in bursts[0]}
