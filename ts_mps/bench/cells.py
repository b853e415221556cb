"""A study's runs, sorted: every arm at every load, what counts of it, and which runs are pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from ts_mps.bench.histogram import LAST, merged, percentile
from ts_mps.bench.records import Arm, Histogram, LoadResult, Run, Study

THROUGHPUT, P99 = "throughput", "p99"


@dataclass(frozen=True)
class Cell:
    """One arm at one load.

    Attributes:
        arm: The arm.
        kind: Of the load: "closed", "poisson" or "constant".
        rate: Planned arrivals per second; 0 of a closed loop.
        runs: Those that count, in their order.
        failed: Those that do not.
    """

    arm: Arm
    kind: str
    rate: float
    runs: tuple[Run, ...]
    failed: tuple[Run, ...]

    @property
    def results(self) -> tuple[LoadResult, ...]:
        """What the generator saw in the runs that count."""
        return tuple(run.result for run in self.runs if run.result is not None)

    @property
    def throughput(self) -> float:
        """Median requests per second; 0 where no run counts."""
        return median([result.requests_per_second for result in self.results]) if self.runs else 0.0


def why_not(run: Run) -> str:
    """Why a run's figures are not used, as a sentence; empty if they are.

    A run that answered nothing has neither a latency nor a ratio: it failed, whatever the runner thought of it.
    """
    if run.failure or run.result is None:
        return run.failure or "It has no result."
    if run.result.void:
        return run.result.void
    if run.result.answered == 0:
        first = "; ".join(f"{name}: {text}" for name, text in run.result.first_errors.items())
        return f"None of its {run.result.sent:,} requests was answered{f' ({first})' if first else ''}."
    return ""


def cells(study: Study) -> tuple[Cell, ...]:
    """Every arm at every load it was run at, in the order of the study's arms, closed loops first.

    A failed run that never got to its load is counted with its arm's first load; an arm all of whose runs are such is
    a cell of a closed loop without runs.
    """
    found: list[Cell] = []
    for arm in study.arms:
        runs = [run for run in study.runs if run.arm == arm.name]
        loads = sorted({(run.result.load.kind, run.result.load.rate) for run in runs if run.result is not None})
        loads.sort(key=lambda load: load[0] != "closed")
        for place, (kind, rate) in enumerate(loads or ([("closed", 0.0)] if runs else [])):
            here = [run for run in runs if _at(run, kind, rate) or (run.result is None and place == 0)]
            counting = tuple(run for run in here if not why_not(run))
            found.append(Cell(arm, kind, rate, counting, tuple(run for run in here if why_not(run))))
    return tuple(found)


def paired(arm: Cell, baseline: Cell, measure: str) -> tuple[list[float], list[float]]:
    """The figures of both in the blocks in which both have a run that counts; the first such run of a block.

    Args:
        arm: The one that is judged.
        baseline: The one that it is judged against, at the same load.
        measure: THROUGHPUT in requests per second, or P99 in milliseconds.
    """
    ours, theirs = _by_block(arm.runs), _by_block(baseline.runs)
    blocks = [block for block in sorted(ours) if block in theirs]
    figures = [[measured(side[block], measure) for block in blocks] for side in (ours, theirs)]
    return figures[0], figures[1]


def paired_best(arms: Sequence[Cell], baselines: Sequence[Cell]) -> tuple[list[float], list[float]]:
    """Throughputs, block by block, of the best of some closed loops and of the best of others.

    Whoever picks the best of many by the same runs that are then compared picks luck along with it. So the best of
    each side is picked, for each block, by the median of the other blocks alone, and only its figure of this block
    counts. Where one arm is clearly the best, that is the same as pairing it.
    """
    ours, theirs = [], []
    for block in sorted({run.block for cell in arms for run in cell.runs}):
        arm, baseline = (_picked_without(block, side) for side in (arms, baselines))
        if block in arm and block in baseline:
            ours.append(measured(arm[block], THROUGHPUT))
            theirs.append(measured(baseline[block], THROUGHPUT))
    return ours, theirs


def _picked_without(block: int, found: Sequence[Cell]) -> dict[int, LoadResult]:
    """The runs, by block, of the cell with the best median outside of this block."""

    def elsewhere(runs: dict[int, LoadResult]) -> float:
        others = [measured(result, THROUGHPUT) for other, result in runs.items() if other != block]
        return median(others) if others else 0.0

    return max((_by_block(cell.runs) for cell in found), key=elsewhere)


def _at(run: Run, kind: str, rate: float) -> bool:
    return run.result is not None and (run.result.load.kind, run.result.load.rate) == (kind, rate)


def _by_block(runs: Sequence[Run]) -> dict[int, LoadResult]:
    # Reversed, so that the first run of a block is the one that stays.
    return {run.block: run.result for run in reversed(runs) if run.result is not None}


def measured(result: LoadResult, measure: str) -> float:
    """THROUGHPUT in requests per second, or P99 in milliseconds, of one run that answered something.

    A request without a good answer was never answered, or who refuses would look faster than who serves.
    """
    if measure == THROUGHPUT:
        return result.requests_per_second
    failed = sum(result.errors.values())
    never = Histogram(((LAST, failed),) if failed else ())
    return percentile(merged((result.histogram, never)), 99)


def fastest(found: Iterable[Cell]) -> Cell | None:
    """The cell with the best median throughput among closed loops with runs that count; None without any."""
    able = [cell for cell in found if cell.kind == "closed" and cell.runs]
    return max(able, key=lambda cell: cell.throughput) if able else None
