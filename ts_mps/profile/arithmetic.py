"""The arithmetic of a profile: percentiles, answers within a window, time in which a GPU was busy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Categories of torch.profiler's chrome trace that are work on the GPU (kineto's ActivityType).
_GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` per cent of the values lie, interpolated between neighbours.

    Args:
        values: At least one, in any order.
        percent: From 0 to 100; 50 is the median.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def answered_within(answers: Sequence[float], begin: float, end: float) -> float:
    """How many batches were answered in a window; those at its edges count by the part that lies inside.

    So the figure does not jump by a whole batch with the window's position, which would be 10 % for a model that
    answers ten batches in it.

    Args:
        answers: Ascending times: the start of the first batch, then the answer to each.
        begin: The window's start, at or after the first time.
        end: The window's end.

    Raises:
        ValueError: The times do not cover the window.
    """
    if len(answers) < 2 or begin < answers[0] or end > answers[-1]:
        raise ValueError("the answers do not cover the window")
    return _place(answers, end) - _place(answers, begin)


def _place(times: Sequence[float], when: float) -> float:
    after = max(1, bisect_left(times, when))
    before = times[after - 1]
    length = times[after] - before
    return after - 1 + ((when - before) / length if length > 0 else 1.0)


def union_length(intervals: Iterable[tuple[float, float]]) -> float:
    """The time covered by intervals (start, end) that may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def gpu_milliseconds(trace: Mapping[str, Any], batches: int) -> float | None:
    """GPU time of a batch: kernels and copies of a trace, overlaps counted once, divided by its batches.

    Args:
        trace: The JSON that ``torch.profiler.profile.export_chrome_trace`` writes; its times are in microseconds.
        batches: Batches that ran while it was taken.

    Returns:
        Milliseconds; None if the trace shows no work on a GPU.
    """
    work = [
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in trace.get("traceEvents", ())
        if event.get("cat") in _GPU_WORK and "ts" in event and "dur" in event
    ]
    return union_length(work) / 1000 / batches if work and batches else None
