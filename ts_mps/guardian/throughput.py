"""How much each model answers, from two readings of TorchServe's counters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ts_mps.torchserve.counters import Counters


@dataclass(frozen=True)
class Throughput:
    """One model over a while.

    Attributes:
        model: Registered model name.
        per_second: Requests answered per second.
        mean_ms: Mean milliseconds from arrival to answer; None if nothing was answered.
        queue_ms: Mean milliseconds of these in the queue; None if nothing was answered.
        total: Requests answered since TorchServe's start.
    """

    model: str
    per_second: float
    mean_ms: float | None
    queue_ms: float | None
    total: int


def throughput(before: Counters, after: Counters, models: Collection[str]) -> tuple[Throughput, ...]:
    """Each model between two readings, by name.

    A counter that shrank belongs to a TorchServe that was started in between, which counts from 0.

    Args:
        before: The first reading.
        after: The second, a while later.
        models: Models to show although they have had no request yet.
    """
    names = sorted({*models, *after.requests})
    return tuple(_one(name, before, after) for name in names)


def _one(model: str, before: Counters, after: Counters) -> Throughput:
    total = after.requests.get(model, 0.0)
    anew = total < before.requests.get(model, 0.0)
    base = Counters(before.at) if anew else before
    answered = total - base.requests.get(model, 0.0)
    seconds = after.at - before.at

    def mean(sums: str) -> float | None:
        if not answered:
            return None
        first, second = (getattr(counters, sums).get(model, 0.0) for counters in (base, after))
        return float(max(second - first, 0.0)) / answered / 1e3

    return Throughput(
        model,
        per_second=answered / seconds if seconds > 0 else 0.0,
        mean_ms=mean("latency_us"),
        queue_ms=mean("queue_us"),
        total=int(total),
    )
