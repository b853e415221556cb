"""The arms of a comparison: which ways of serving one model are set against each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ts_mps.bench.records import Arm, Run

#: What serves: ts-mps, or stock TorchServe started as its users start it.
ENGINES = ("ts-mps", "torchserve")


@dataclass(frozen=True)
class Wish:
    """What is to be compared.

    Attributes:
        workers: Numbers of workers.
        batch_sizes: Most requests in a batch.
        percentages: Thread percentages in (0, 100) that are tried beside MPS without a limit.
        mps: Whether there are arms with MPS.
        device: "gpu" or "cpu".
        ceiling: Whether each number of workers and batch size gets a no-op arm: what the frontend itself can do.
        engine: One of :data:`ENGINES`.
        options: Put into every arm's options.
    """

    workers: Sequence[int]
    batch_sizes: Sequence[int]
    percentages: Sequence[float] = ()
    mps: bool = True
    device: str = "gpu"
    ceiling: bool = False
    engine: str = "ts-mps"
    options: Mapping[str, str] = field(default_factory=dict)


def make_arms(wish: Wish) -> tuple[Arm, ...]:
    """All arms: first one worker at each batch size with MPS off, then the others by workers and batch size.

    One worker is always there, as whoever asks whether MPS pays could also do without a second worker. MPS on with one
    worker is there where one worker is asked for: it shows what MPS itself costs.
    """
    batches = sorted(set(wish.batch_sizes))
    counts = sorted(set(wish.workers))
    arms = [_arm(wish, 1, batch) for batch in batches]
    for workers in counts:
        for batch in batches:
            if workers > 1:
                arms.append(_arm(wish, workers, batch))
            if wish.mps and wish.device == "gpu":
                arms.append(_arm(wish, workers, batch, mps=True))
                limits = sorted(set(wish.percentages), reverse=True)
                arms += [_arm(wish, workers, batch, mps=True, percentage=limit) for limit in limits]
    if wish.ceiling:
        arms += [_arm(wish, workers, batch, noop=True) for workers in sorted({1, *counts}) for batch in batches]
    return tuple(arms)


def baseline_first(arms: Sequence[Arm], runs: Iterable[Run]) -> tuple[Arm, ...]:
    """The arms with the baseline in front: one worker, MPS off, at the batch size with the best median throughput.

    To choose the best of several batch sizes by the same runs that are then compared favours the baseline by a little,
    which is the side on which an error is acceptable: it never makes MPS look better.
    """
    rates: dict[str, list[float]] = {}
    for run in runs:
        if run.counts and run.result is not None and run.result.load.kind == "closed":
            rates.setdefault(run.arm, []).append(run.result.requests_per_second)
    able = [arm for arm in arms if arm.workers == 1 and not arm.mps and not arm.noop and arm.name in rates]
    if not able:
        return tuple(arms)
    best = max(able, key=lambda arm: statistics.median(rates[arm.name]))
    return (best, *(arm for arm in arms if arm != best))


def best_arm(arms: Iterable[Arm], runs: Sequence[Run], *, mps: bool) -> Arm | None:
    """The arm with the best median throughput of closed loops, among those with or without MPS; None without runs."""
    found: list[tuple[float, Arm]] = []
    for arm in arms:
        rates = [
            run.result.requests_per_second
            for run in runs
            if run.arm == arm.name and run.counts and run.result is not None and run.result.load.kind == "closed"
        ]
        if rates and arm.mps == mps and not arm.noop:
            found.append((statistics.median(rates), arm))
    return max(found, key=lambda one: one[0])[1] if found else None


def _arm(
    wish: Wish, workers: int, batch: int, *, mps: bool = False, percentage: float | None = None, noop: bool = False
) -> Arm:
    count = f"{workers} worker{'s' if workers > 1 else ''} x {batch}"
    if noop:
        name = f"no-op, {count}"
    elif wish.device == "cpu":
        name = f"{count}, CPU"
    else:
        limit = "" if percentage is None else f" at {percentage:g} %"
        name = f"{count}, MPS {'on' if mps else 'off'}{limit}"
    if wish.engine != "ts-mps":
        name = f"{wish.engine}: {name}"
    arm = Arm(name, workers, batch, mps, percentage, engine=wish.engine, device=wish.device, noop=noop)
    # The no-op handler needs no GPU, so its ceiling is that of the frontend and of nothing else.
    return replace(arm, options=dict(wish.options), device="cpu" if noop else wish.device)
