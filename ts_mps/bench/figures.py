"""The figures of one arm at one load, what limited it, and the rates at which arms held their objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from ts_mps.bench.cells import Cell
from ts_mps.bench.findings import ArmFigures, Cost, RateFound
from ts_mps.bench.histogram import merged, percentile, within
from ts_mps.bench.rates import Outcome, outcome
from ts_mps.bench.records import LoadResult
from ts_mps.bench.statistics import median_interval

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
#: Part of the cores it may use from which on the generator's own speed may be in the figures.
GENERATOR_BUSY = 0.8
#: Part of their cores from which on server and workers wait for a core.
CORES_BUSY = 0.9
#: Part of the no-op arm's throughput from which on the frontend is what was measured.
FRONTEND_REACHED = 0.9
#: Percent of samples with a kernel running from which on the GPU had no gap left. NVML says that something ran, not
#: how much of the GPU it used: an arm without MPS can be here and leave most of the GPU idle.
GPU_BUSY = 95.0


def arm_figures(cell: Cell, objective_ms: float | None, ceiling: float | None) -> ArmFigures:
    """All figures of an arm at one load.

    Args:
        cell: With at least one run that counts.
        objective_ms: What an answer must not exceed to be goodput; None for no goodput.
        ceiling: Requests per second of the no-op handler with as many workers and the same batch size, if measured.
    """
    results = cell.results
    histogram = merged(result.histogram for result in results)
    utilisation, memory = _gpu(cell)
    goodput = None
    if objective_ms is not None:
        goodput = median_interval([within(one.histogram, objective_ms) / one.load.seconds for one in results])
    return ArmFigures(
        arm=cell.arm.name,
        kind=cell.kind,
        rate=cell.rate,
        throughput=median_interval([result.requests_per_second for result in results]),
        goodput=goodput,
        percentiles=tuple((percent, percentile(histogram, percent)) for percent in PERCENTILES),
        errors=_errors(results),
        gpu_utilisation=utilisation,
        gpu_memory=memory,
        frontend_cores=fmean(run.frontend_cores for run in cell.runs),
        worker_cores=fmean(run.worker_cores for run in cell.runs),
        generator_cores=fmean(result.generator_cores for result in results),
        bottleneck=_bottleneck(cell, ceiling, utilisation),
        failed=len(cell.failed),
    )


def generator_share(cell: Cell) -> float:
    """Part of its cores that the generator kept busy, mean over the runs."""
    return fmean(result.generator_cores / max(result.generator_limit, 1) for result in cell.results)


def cores_share(cell: Cell) -> float:
    """Part of their cores that frontend and workers kept busy, mean over the runs; 0 where the limit is not known."""
    return fmean(
        (run.frontend_cores + run.worker_cores) / run.server_limit if run.server_limit else 0.0 for run in cell.runs
    )


def ceiling_of(cell: Cell, found: Sequence[Cell]) -> float | None:
    """Median requests per second of the no-op arm with the cell's engine, workers and batch size; None without one."""
    like = (cell.arm.engine, cell.arm.workers, cell.arm.batch_size)
    rates = [
        other.throughput
        for other in found
        if other.arm.noop and other.kind == "closed" and other.runs and not cell.arm.noop
        if (other.arm.engine, other.arm.workers, other.arm.batch_size) == like
    ]
    return max(rates, default=None)


def limit_of(cell: Cell, ceiling: float | None) -> str:
    """What besides the GPU was at its end: "generator", "frontend", "host cores", or "" for none of them.

    Args:
        cell: With at least one run that counts.
        ceiling: Of :func:`ceiling_of`.
    """
    # From the outside in: a busy generator makes everything behind it look limited.
    if generator_share(cell) >= GENERATOR_BUSY:
        return "generator"
    if ceiling is not None and cell.kind == "closed" and cell.throughput >= FRONTEND_REACHED * ceiling:
        return "frontend"
    return "host cores" if cores_share(cell) >= CORES_BUSY else ""


def errors_share(cell: Cell) -> float:
    """Part of the requests, from 0 to 1, that had no good answer."""
    return _errors(cell.results)


def rates_found(found: Sequence[Cell], objective_ms: float) -> tuple[RateFound, ...]:
    """For each arm with open loops the largest rate that held the objective below the lowest one that did not.

    A rate held if all its runs that say something did; a rate without such a run is as if it was not tried. One that
    held above one that did not is taken for luck. A rate at which the generator fell behind is neither.
    """
    answer = []
    for name in dict.fromkeys(cell.arm.name for cell in found if cell.kind != "closed"):
        seen: dict[float, set[Outcome]] = {}
        for cell in found:
            if cell.arm.name == name and cell.kind != "closed":
                outcomes = {outcome(run, objective_ms) for run in (*cell.runs, *cell.failed)}
                seen.setdefault(cell.rate, set()).update(outcomes)
        broken = min((rate for rate, outcomes in seen.items() if Outcome.BROKEN in outcomes), default=math.inf)
        below = {rate: outcomes for rate, outcomes in seen.items() if rate < broken}
        rate = max((rate for rate, outcomes in below.items() if Outcome.HELD in outcomes), default=0.0)
        behind = [one for one, outcomes in below.items() if one > rate and Outcome.BEHIND in outcomes]
        if rate or behind or broken < math.inf:
            lowest = None if broken == math.inf else broken
            answer.append(RateFound(name, rate, lowest, objective_ms, min(behind, default=None)))
    return tuple(answer)


def costs(found: Sequence[Cell], prices: Mapping[str, float]) -> tuple[Cost, ...]:
    """What a million requests cost on each arm at the throughput of its closed loop.

    Args:
        found: All cells.
        prices: Of the machine per hour, by an arm's name or, for all others, by its device: {"gpu": 4.0, "cpu": 0.8}.

    Raises:
        ValueError: A price is for no arm and no device, or not above 0.
    """
    known = {"gpu", "cpu", *(cell.arm.name for cell in found)}
    for name, price in prices.items():
        if name not in known:
            raise ValueError(f"there is a price for {name}, which is neither gpu, cpu nor an arm of this study")
        if not price > 0:
            raise ValueError(f"a price per hour is above 0, not {price}")
    answer = []
    for cell in found:
        price = prices.get(cell.arm.name, prices.get(cell.arm.device, 0.0))
        if price and cell.kind == "closed" and cell.runs and not cell.arm.noop:
            answer.append(Cost(cell.arm.name, price, price / (cell.throughput * 3600) * 1e6))
    return tuple(answer)


def _errors(results: Sequence[LoadResult]) -> float:
    sent = sum(result.sent for result in results)
    return sum(sum(result.errors.values()) for result in results) / sent if sent else 0.0


def _gpu(cell: Cell) -> tuple[float | None, int | None]:
    """Mean over the runs of the mean utilisation in percent; most bytes in use on one GPU."""
    means = []
    for run in cell.runs:
        seen = [sample.utilisation for sample in run.samples if sample.utilisation is not None]
        means += [fmean(seen)] if seen else []
    memory = [sample.memory for run in cell.runs for sample in run.samples if sample.memory is not None]
    return (fmean(means) if means else None), max(memory, default=None)


def _bottleneck(cell: Cell, ceiling: float | None, utilisation: float | None) -> str:
    if limit := limit_of(cell, ceiling):
        return limit
    return "gpu" if utilisation is not None and utilisation >= GPU_BUSY else ""
