"""The arms of a comparison: which ways of serving one model are set against each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ts_mps.bench.records import Arm, Run

#: What serves: ts-mps; stock TorchServe started as its users start it; LitServe, which a user might pick instead.
ENGINES = ("ts-mps", "torchserve", "litserve")
#: Those whose frontend is TorchServe's, so that its no-op handler shows what the frontend can do.
_TORCHSERVE = ("ts-mps", "torchserve")


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
        engines: Of :data:`ENGINES`; the first one has the baseline.
        options: Put into every arm's options.
    """

    workers: Sequence[int]
    batch_sizes: Sequence[int]
    percentages: Sequence[float] = ()
    mps: bool = True
    device: str = "gpu"
    ceiling: bool = False
    engines: Sequence[str] = ("ts-mps",)
    options: Mapping[str, str] = field(default_factory=dict)


def make_arms(wish: Wish) -> tuple[Arm, ...]:
    """All arms, engine by engine: one worker at each batch size with MPS off, then the others by workers and batch.

    One worker is always there, as whoever asks whether MPS pays could also do without a second worker. MPS on with one
    worker is there where one worker is asked for: it shows what MPS itself costs.
    """
    return tuple(arm for engine in dict.fromkeys(wish.engines) for arm in _of_engine(wish, engine))


def _of_engine(wish: Wish, engine: str) -> list[Arm]:
    def made(workers: int, batch: int, **more: Any) -> Arm:
        return make_arm(workers, batch, engine=engine, device=wish.device, options=wish.options, **more)

    batches = sorted(set(wish.batch_sizes))
    counts = sorted(set(wish.workers))
    arms = [made(1, batch) for batch in batches]
    for workers in counts:
        for batch in batches:
            if workers > 1:
                arms.append(made(workers, batch))
            if wish.mps and wish.device == "gpu":
                arms.append(made(workers, batch, mps=True))
                limits = sorted(set(wish.percentages), reverse=True)
                arms += [made(workers, batch, mps=True, thread_percentage=limit) for limit in limits]
    if wish.ceiling and engine in _TORCHSERVE:
        arms += [made(workers, batch, noop=True) for workers in sorted({1, *counts}) for batch in batches]
    return arms


def baseline_first(arms: Sequence[Arm], runs: Iterable[Run]) -> tuple[Arm, ...]:
    """The arms with the baseline in front: one worker, MPS off, at the batch size with the best median throughput.

    It is of the engine that is in front already, as that is the one which was named first.

    To choose the best of several batch sizes by the same runs that are then compared favours the baseline by a little,
    which is the side on which an error is acceptable: it never makes MPS look better.
    """
    rates: dict[str, list[float]] = {}
    for run in runs:
        if run.counts and run.result is not None and run.result.load.kind == "closed":
            rates.setdefault(run.arm, []).append(run.result.requests_per_second)
    able = [
        arm
        for arm in arms
        if arm.workers == 1 and not arm.mps and not arm.noop and arm.name in rates and arm.engine == arms[0].engine
    ]
    if not able:
        return tuple(arms)
    best = max(able, key=lambda arm: statistics.median(rates[arm.name]))
    return (best, *(arm for arm in arms if arm != best))


def best_arms(arms: Sequence[Arm], runs: Sequence[Run]) -> tuple[Arm, ...]:
    """Of each engine, on each device, the best arm without MPS and the best with it, by median throughput.

    Arms without a closed loop that counts are none of them.
    """
    found: dict[tuple[str, str, bool], tuple[float, Arm]] = {}
    for arm in arms:
        rates = [
            run.result.requests_per_second
            for run in runs
            if run.arm == arm.name and run.counts and run.result is not None and run.result.load.kind == "closed"
        ]
        if not rates or arm.noop:
            continue
        rate, kind = statistics.median(rates), _kind(arm)
        if kind not in found or rate > found[kind][0]:
            found[kind] = rate, arm
    return tuple(arm for _, (_, arm) in sorted(found.items(), key=lambda one: _rank(one[0])))


def most_best_arms(arms: Iterable[Arm]) -> int:
    """How many arms :func:`best_arms` finds where every arm has runs that count."""
    return len({_kind(arm) for arm in arms if not arm.noop})


def engine_rank(engine: str) -> int:
    """Its place in :data:`ENGINES`; behind them for one that only a study of another version knows."""
    return ENGINES.index(engine) if engine in ENGINES else len(ENGINES)


def _kind(arm: Arm) -> tuple[str, str, bool]:
    return arm.engine, arm.device, arm.mps


def _rank(kind: tuple[str, str, bool]) -> tuple[int, str, bool]:
    engine, device, mps = kind
    return engine_rank(engine), device, mps


def make_arm(
    workers: int,
    batch: int,
    *,
    mps: bool = False,
    thread_percentage: float | None = None,
    engine: str = "ts-mps",
    device: str = "gpu",
    noop: bool = False,
    options: Mapping[str, str] | None = None,
) -> Arm:
    """An arm with a name that tells it from every other; see :class:`ts_mps.bench.records.Arm`."""
    count = f"{workers} worker{'s' if workers > 1 else ''} x {batch}"
    if noop:
        name = f"no-op, {count}"
    elif device == "cpu":
        name = f"{count}, CPU"
    else:
        limit = "" if thread_percentage is None else f" at {thread_percentage:g} %"
        name = f"{count}, MPS {'on' if mps else 'off'}{limit}"
    if engine != "ts-mps":
        name = f"{engine}: {name}"
    return Arm(
        name,
        workers,
        batch,
        mps,
        thread_percentage,
        engine=engine,
        # The no-op handler needs no GPU, so its ceiling is that of the frontend and of nothing else.
        device="cpu" if noop else device,
        noop=noop,
        options=dict(options or {}),
    )
